"""Search spaces as data: candidate operations, cell wiring and macro layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from da2s_fast.errors import UserError
from da2s_fast.nn.mixed_op import DARTS_PRIMITIVES
from da2s_fast.nn.operations import OPERATIONS
from da2s_fast.spaces.names import closest

MACROS = ("darts", "nas-bench-201")


@dataclass(frozen=True)
class SearchSpace:
    """What a search chooses from.

    Every intermediate node has one edge from every earlier state, and every edge has one
    candidate for each primitive. Edges are numbered node by node, and within a node by source.

    Args:
        name: name of the space.
        primitives: names of the candidate operations, in the order of the columns of alpha.
        nodes: number of intermediate nodes of a cell.
        inputs: number of input states of a cell.
        kinds: the cell kinds, each with architecture parameters of its own.
        macro: how cells form a network: ``"darts"`` (reduction cells at L//3 and 2L//3) or
            ``"nas-bench-201"`` (three stages with residual blocks between).

    Raises:
        UserError: unknown, repeated or no operations, ``nodes`` below 1, unknown macro.
    """

    name: str
    primitives: tuple[str, ...]
    nodes: int
    inputs: int = 2
    kinds: tuple[str, ...] = ("normal", "reduce")
    macro: str = "darts"

    def __post_init__(self) -> None:
        for operation in self.primitives:
            if operation not in OPERATIONS:
                raise UserError(
                    f"unknown operation {operation!r}{closest(operation, OPERATIONS)}; "
                    "register your own with register_operation"
                )
        if len(set(self.primitives)) != len(self.primitives):
            raise UserError(f"an operation is listed twice: {', '.join(self.primitives)}")
        if not set(self.primitives) - {"none"}:
            raise UserError("the search space needs at least one operation other than 'none'")
        if isinstance(self.nodes, bool) or not isinstance(self.nodes, int) or self.nodes < 1:
            raise UserError(f"nodes is {self.nodes!r}; a cell needs a whole number of 1 or more")
        if self.macro not in MACROS:
            raise UserError(f"unknown macro layout {self.macro!r}; known: {', '.join(MACROS)}")

    @property
    def edges_per_node(self) -> tuple[int, ...]:
        """Number of edges of each intermediate node, before any is dropped."""
        return tuple(self.inputs + node for node in range(self.nodes))

    @property
    def num_edges(self) -> int:
        """Number of edges of a cell: the rows of alpha."""
        return sum(self.edges_per_node)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(source, target) states of every edge, in the order of the rows of alpha."""
        states = range(self.inputs, self.inputs + self.nodes)
        return [(source, target) for target in states for source in range(target)]

    def keep_targets(
        self, keep: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """The number of edges each node keeps after discretization, for every cell kind.

        Args:
            keep: one number per node, for all kinds or per kind (imbalanced targets, for example
                ``[1, 2, 3, 3]``). A kind that is not named gets the default: two edges per node
                in DARTS cells, all of them in NAS-Bench-201 cells.

        Raises:
            UserError: unknown kind, wrong number of nodes, a number below 1 or above the node's
                edges.
        """
        default = self._default_keep()
        if keep is None:
            return dict.fromkeys(self.kinds, default)
        if not isinstance(keep, Mapping):
            keep = dict.fromkeys(self.kinds, keep)
        for kind in keep:
            if kind not in self.kinds:
                raise UserError(
                    f"keep names the cell kind {kind!r}; this space has {', '.join(self.kinds)}"
                )
        return {kind: self._checked_keep(kind, keep.get(kind, default)) for kind in self.kinds}

    def _default_keep(self) -> tuple[int, ...]:
        if self.macro == "nas-bench-201":
            return self.edges_per_node
        return tuple(min(2, edges) for edges in self.edges_per_node)

    def _checked_keep(self, kind: str, counts: object) -> tuple[int, ...]:
        if isinstance(counts, str) or not isinstance(counts, Sequence):
            raise UserError(f"keep is {counts!r} for {kind} cells; give one number per node")
        if len(counts) != self.nodes:
            raise UserError(
                f"keep has {len(counts)} numbers for {kind} cells; give {self.nodes}, one per node"
            )
        for node, (count, edges) in enumerate(zip(counts, self.edges_per_node, strict=True)):
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= edges:
                raise UserError(
                    f"keep is {count!r} for node {node + 1} of {kind} cells; "
                    f"this node can keep 1 to {edges} edges"
                )
        return tuple(counts)


DARTS = SearchSpace(name="darts", primitives=DARTS_PRIMITIVES, nodes=4)
DA2S = replace(DARTS, name="da2s", primitives=DARTS_PRIMITIVES[1:])  # without `none`
NAS_BENCH_201 = SearchSpace(
    name="nas-bench-201",
    primitives=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    nodes=3,
    inputs=1,
    kinds=("normal",),
    macro="nas-bench-201",
)
SPACES = {space.name: space for space in (DA2S, DARTS, NAS_BENCH_201)}


def get_space(
    name: str, operations: Sequence[str] | None = None, nodes: int | None = None
) -> SearchSpace:
    """The search space of this name, with other operations or another number of nodes if given.

    Raises:
        UserError: unknown name, or what :class:`SearchSpace` refuses.
    """
    if name not in SPACES:
        raise UserError(
            f"unknown search space {name!r}{closest(str(name), SPACES)}; known: {', '.join(SPACES)}"
        )
    space = SPACES[name]
    if isinstance(operations, str):
        raise UserError(f"operations is the text {operations!r}; give a list of names")
    return replace(
        space,
        primitives=space.primitives if operations is None else tuple(operations),
        nodes=space.nodes if nodes is None else nodes,
    )
