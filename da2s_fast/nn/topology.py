"""The wiring of a cell as data: which operation leads from which state to which node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from da2s_fast.errors import UserError


class Edge(NamedTuple):
    """One kept edge of a node: the operation and the state it reads.

    States count from 0 and the cell's inputs come first, so that with two inputs the first
    intermediate node is state 2.
    """

    operation: str
    source: int


@dataclass(frozen=True)
class CellTopology:
    """A discrete cell: for every intermediate node its edges, and the states that form the output.

    Any number of edges per node is allowed, also two from the same state (as in NASNet).

    Args:
        nodes: the edges of each intermediate node, in the order in which their outputs are added.
        concat: intermediate states (``inputs`` ... ``inputs + len(nodes) - 1``) whose
            concatenation along the channels is the cell's output, in this order.
        inputs: number of input states: 2 in DARTS cells, 1 in NAS-Bench-201 cells.

    Raises:
        UserError: a node without edges, a source that is not an earlier state, or a state in
            ``concat`` that is not an intermediate node or appears twice.
    """

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]
    inputs: int = 2

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UserError("a cell needs at least one intermediate node, but none is given")
        for state, edges in enumerate(self.nodes, start=self.inputs):
            if not edges:
                raise UserError(f"node {state} has no edges; every node needs at least one")
            for operation, source in edges:
                if not 0 <= source < state:
                    raise UserError(
                        f"edge ({operation!r}, {source}) of node {state} reads state {source}; "
                        f"node {state} can read the states 0 to {state - 1}"
                    )
        if not self.concat:
            raise UserError("the cell's output is empty: concat must name at least one node")
        last = self.inputs + len(self.nodes) - 1
        for state in self.concat:
            if not self.inputs <= state <= last:
                raise UserError(
                    f"concat names state {state}, which is not an intermediate node of this "
                    f"cell; these are {self.inputs} to {last}"
                )
        if len(set(self.concat)) != len(self.concat):
            raise UserError(f"concat names a state twice: {list(self.concat)}")

    @property
    def edges_per_node(self) -> tuple[int, ...]:
        """Number of kept edges of each intermediate node."""
        return tuple(len(edges) for edges in self.nodes)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, node by node: the order of a derived cell's operations."""
        return tuple(edge for edges in self.nodes for edge in edges)
