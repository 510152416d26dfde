"""The discrete architecture a search ends with, in the text forms the field exchanges."""

from __future__ import annotations

from dataclasses import dataclass

from da2s_fast.errors import UserError
from da2s_fast.nn.topology import CellTopology
from da2s_fast.spaces.genotype_parser import parse_genotype
from da2s_fast.wording import counted


@dataclass(frozen=True)
class Genotype:
    """The cells of a derived network.

    Args:
        normal: the normal cell; the only cell in the NAS-Bench-201 layout.
        reduce: the reduction cell, ``None`` in the NAS-Bench-201 layout.

    Raises:
        UserError: cells whose number of inputs does not fit: two each where there is a reduction
            cell, one where there is none.
    """

    normal: CellTopology
    reduce: CellTopology | None = None

    def __post_init__(self) -> None:
        cells = {"normal": self.normal, "reduce": self.reduce}
        wanted = 1 if self.reduce is None else 2
        for kind, cell in cells.items():
            if cell is not None and cell.inputs != wanted:
                raise UserError(
                    f"the {kind} cell has {cell.inputs} inputs, so that its first node is state "
                    f"{cell.inputs}; a genotype {'without' if wanted == 1 else 'with'} a reduction "
                    f"cell needs cells with {wanted}"
                )

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Reads a genotype without evaluating it.

        Three forms are known. DARTS: ``Genotype(normal=[('sep_conv_3x3', 1), ...],
        normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))``, two entries per
        node. Any number of edges per node: the same with entries (operation, source, target).
        NAS-Bench-201: ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+...``.

        Raises:
            UserError: naming the offending token and its line and column.
        """
        return cls(*parse_genotype(text))

    def __str__(self) -> str:
        """The form other projects read where there is one, otherwise ours; ``parse`` reads all."""
        if self.reduce is None:
            cell = self.normal
            complete = all(
                tuple(edge.source for edge in edges) == tuple(range(state))
                for state, edges in enumerate(cell.nodes, start=1)
            )
            if complete and cell.concat == (len(cell.nodes),):
                return self.to_nas_bench_201()
        elif self._first_unpaired() is None:
            return self.to_darts()
        return self._with_targets()

    def to_darts(self) -> str:
        """The text DARTS prints, which other projects' training scripts read.

        Raises:
            UserError: a node does not have two edges (the text has no place for target nodes and
                assumes two entries per node), or there is no reduction cell.
        """
        if self.reduce is None:
            raise UserError(
                "a NAS-Bench-201 cell has no DARTS text, which needs a normal and a reduction "
                "cell; use to_nas_bench_201"
            )
        unpaired = self._first_unpaired()
        if unpaired is not None:
            kind, state, count = unpaired
            raise UserError(
                f"node {state} of the {kind} cell has {counted(count, 'edge')}, but DARTS "
                "text assumes two per node; keep the form str(genotype) gives"
            )
        fields = [
            f"{kind}={[tuple(edge) for edge in cell.edges]}, {kind}_concat={_concat(cell)}"
            for kind, cell in (("normal", self.normal), ("reduce", self.reduce))
        ]
        return f"Genotype({', '.join(fields)})"

    def to_nas_bench_201(self) -> str:
        """The cell as the NAS-Bench-201 tables name it; a dropped edge is the operation ``none``.

        Raises:
            UserError: the cell has two inputs, an output other than its last node, or a node
                that reads one state twice.
        """
        cell = self.normal
        if self.reduce is not None or cell.concat != (len(cell.nodes),):
            raise UserError(
                "this genotype is not a NAS-Bench-201 cell, which has one input, no reduction "
                "cell, and its last node as output"
            )
        nodes = []
        for state, edges in enumerate(cell.nodes, start=1):
            operations = {edge.source: edge.operation for edge in edges}
            if len(operations) != len(edges):
                raise UserError(f"node {state} reads one state twice; NAS-Bench-201 has no such")
            names = [f"{operations.get(source, 'none')}~{source}" for source in range(state)]
            nodes.append(f"|{'|'.join(names)}|")
        return "+".join(nodes)

    def _cells(self) -> dict[str, CellTopology]:
        cells = {"normal": self.normal, "reduce": self.reduce}
        return {kind: cell for kind, cell in cells.items() if cell is not None}

    def _first_unpaired(self) -> tuple[str, int, int] | None:
        """(kind, state, number of edges) of the first node that does not have two edges."""
        for kind, cell in self._cells().items():
            for state, edges in enumerate(cell.nodes, start=cell.inputs):
                if len(edges) != 2:
                    return kind, state, len(edges)
        return None

    def _with_targets(self) -> str:
        fields = []
        for kind, cell in self._cells().items():
            entries = [
                (*edge, state)
                for state, edges in enumerate(cell.nodes, start=cell.inputs)
                for edge in edges
            ]
            fields.append(f"{kind}={entries}, {kind}_concat={_concat(cell)}")
        return f"Genotype({', '.join(fields)})"


def _concat(cell: CellTopology) -> str:
    """``range(2, 6)`` where all nodes form the output, as searches print it, else a list."""
    states = range(cell.inputs, cell.inputs + len(cell.nodes))
    return str(states if cell.concat == tuple(states) else list(cell.concat))
