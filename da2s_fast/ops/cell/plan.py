"""What a cell computes, as data: its states, edges, bundles and the kinds of its operations.

A *bundle* is all edges that leave one state. They read the same input, so that ReLU, padding and
both pools are computed once per bundle instead of once per edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

from da2s_fast.errors import UserError
from da2s_fast.ops.cell.operations import CONVS, DENSE, KNOWN, POOLS, SKIP

PreprocessKind = Literal["identity", "conv", "reduce"]
"""identity: the input itself is the state. conv: ReLU, 1x1 convolution, BatchNorm. reduce:
FactorizedReduce. In the order of their codes."""

Active = tuple[tuple[int, ...], ...]
"""Per edge the indices of the operations to run, ascending."""


_KINDS: tuple[PreprocessKind, ...] = get_args(PreprocessKind)


class EdgePlan(NamedTuple):
    """One edge: its row in p and g, the state it reads, the node it feeds (a state), its stride."""

    row: int
    source: int
    target: int
    stride: int


@dataclass(frozen=True)
class CellPlan:
    """The computation of one search cell.

    Args:
        channels: C, channels of every state behind the preprocessing.
        operations: the candidates, all of them in `KNOWN`.
        nodes: intermediate nodes.
        reduction: whether edges that leave the inputs have stride 2.
        preprocess: how each input, one or two, is preprocessed.
        partial_channels: K, mix the first C/K channels only.
        output_nodes: how many nodes, counted from the last, make the output; all by default.
        pool_norm: whether a BatchNorm follows every pool.
        active: the operations to run; all by default. An edge without any contributes nothing,
            not even its bypass.

    Attributes:
        edges: all edges, node by node: the order of the rows of p and g.
        norm_channels: channels of every norm, in the order of the flat list.
        code: the plan as the operators take it: [C, K, nodes, output nodes, reduction, pool_norm,
            inputs, a kind per input, operations, a code per operation, per edge a bit mask of its
            active operations].

    Raises:
        UserError: an operation that is unknown or named twice, or sizes that do not fit.
    """

    channels: int
    operations: tuple[str, ...]
    nodes: int
    reduction: bool
    preprocess: tuple[PreprocessKind, ...]
    partial_channels: int = 1
    output_nodes: int | None = None
    pool_norm: bool = True
    active: Active | None = None
    # Computed once here: whoever calls the operator needs them every time.
    edges: tuple[EdgePlan, ...] = field(init=False, repr=False, compare=False)
    norm_channels: tuple[int, ...] = field(init=False, repr=False, compare=False)
    code: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _edge_shapes: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in KNOWN or self.operations.count(name) > 1:
                raise UserError(
                    f"a cell's operations are some of {', '.join(KNOWN)}, each at most once; "
                    f"got {self.operations}"
                )
        if self.channels < 1 or self.partial_channels < 1 or self.channels % self.partial_channels:
            raise UserError(
                f"{self.channels} channels cannot be split by K={self.partial_channels}; choose a "
                "multiple of K"
            )
        if not 1 <= self.outputs <= self.nodes:
            raise UserError(f"output_nodes={self.output_nodes} of {self.nodes}: choose 1 to nodes")
        if self.preprocess[-1] == "reduce" or not 1 <= self.inputs <= 2:
            raise UserError(
                f"preprocess={self.preprocess}: choose one or two, the last of them not 'reduce'"
            )
        edges = tuple(self._edges())
        if self.active is not None and len(self.active) != len(edges):
            raise UserError(f"active names {len(self.active)} edges of {len(edges)}")
        pairs = [(name, edge.stride) for edge in edges for name in self.operations]
        before = (self.channels,) * len(self.preprocess_norms)
        norms = sum(self.norms_of(*pair) for pair in pairs)
        shapes = tuple(shape for pair in pairs for shape in self.shapes_of(*pair))
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "norm_channels", before + (self.mixed_channels,) * norms)
        object.__setattr__(self, "_edge_shapes", shapes)
        object.__setattr__(self, "code", self._code())

    @property
    def outputs(self) -> int:
        """How many nodes make the output."""
        return self.nodes if self.output_nodes is None else self.output_nodes

    @property
    def mixed_channels(self) -> int:
        """Channels the candidates see, C / K."""
        return self.channels // self.partial_channels

    @property
    def inputs(self) -> int:
        """Number of input states."""
        return len(self.preprocess)

    @property
    def states(self) -> range:
        """All states, inputs first."""
        return range(self.inputs + self.nodes)

    def _edges(self) -> Iterator[EdgePlan]:
        row = 0
        for target in self.states[self.inputs :]:
            for source in range(target):
                stride = 2 if self.reduction and source < self.inputs else 1
                yield EdgePlan(row, source, target, stride)
                row += 1

    @property
    def idle(self) -> bool:
        """Whether any operation of any edge does not run."""
        return self.active is not None and any(
            len(chosen) < len(self.operations) for chosen in self.active
        )

    def candidates(self, edge: EdgePlan) -> tuple[str, ...]:
        """The operations that run on an edge."""
        if self.active is None:
            return self.operations
        return tuple(self.operations[column] for column in self.active[edge.row])

    def bundle(self, source: int) -> list[EdgePlan]:
        """The edges that leave a state, those without active operations left out."""
        return [edge for edge in self.edges if edge.source == source and self.candidates(edge)]

    def entering(self, target: int) -> list[EdgePlan]:
        """The edges that enter a node, those without active operations left out."""
        return [edge for edge in self.edges if edge.target == target and self.candidates(edge)]

    def norms_of(self, operation: str, stride: int) -> int:
        """How many BatchNorms the operation has on an edge of this stride."""
        if operation in CONVS:
            return 1 + CONVS[operation].twice
        if operation in POOLS:
            return int(self.pool_norm)
        return int(operation in DENSE or (operation == SKIP and stride == 2))

    def shapes_of(self, operation: str, stride: int) -> list[tuple[int, ...]]:
        """Shapes of its weights."""
        c = self.mixed_channels
        if operation in CONVS:
            conv = CONVS[operation]
            return [(c, 1, conv.kernel, conv.kernel), (c, c, 1, 1)] * (1 + conv.twice)
        if operation in DENSE:
            return [(c, c, DENSE[operation], DENSE[operation])]
        if operation == SKIP and stride == 2:
            return _reduce_shapes(c, c)
        return []

    @cached_property
    def weight_slots(self) -> dict[tuple[int, str], slice]:
        """Where an edge's operation has its weights in the flat list, module order."""
        start = self.preprocess_weights(self.inputs - 1).stop
        return self._slots(start, lambda name, stride: len(self.shapes_of(name, stride)))

    @cached_property
    def norm_slots(self) -> dict[tuple[int, str], slice]:
        """Where an edge's operation has its norms in the flat list, module order."""
        return self._slots(len(self.preprocess_norms), self.norms_of)

    def _slots(self, start: int, count: Callable[[str, int], int]) -> dict[tuple[int, str], slice]:
        slots = {}
        for edge in self.edges:
            for operation in self.operations:
                stop = start + count(operation, edge.stride)
                slots[edge.row, operation] = slice(start, stop)
                start = stop
        return slots

    def preprocess_weights(self, position: int) -> slice:
        """Where the preprocessing of an input has its weights in the flat list."""
        counts = [_KINDS.index(kind) for kind in self.preprocess]  # a kind's code happens to be it
        start = sum(counts[:position])
        return slice(start, start + counts[position])

    @property
    def preprocess_norms(self) -> dict[int, int]:
        """Position of every input that is normalized -> its norm's place in the flat list."""
        normalized = [i for i, kind in enumerate(self.preprocess) if kind != "identity"]
        return {position: slot for slot, position in enumerate(normalized)}

    def weight_shapes(self, channels: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes of the flat list for inputs of these numbers of channels."""
        shapes: list[tuple[int, ...]] = []
        for kind, before in zip(self.preprocess, channels, strict=True):
            if kind == "conv":
                shapes.append((self.channels, before, 1, 1))
            elif kind == "reduce":
                shapes += _reduce_shapes(before, self.channels)
        return [*shapes, *self._edge_shapes]

    def encode(self, active: Active | None = None) -> list[int]:
        """`code` as a list, with these operations active instead of the plan's own if given."""
        return list(self.code if active is None else replace(self, active=active).code)

    def _code(self) -> tuple[int, ...]:
        everything = tuple(range(len(self.operations)))
        chosen = self.active or (everything,) * len(self.edges)
        return (
            *(self.channels, self.partial_channels, self.nodes, self.outputs),
            *(int(self.reduction), int(self.pool_norm)),
            *(self.inputs, *map(_KINDS.index, self.preprocess)),
            *(len(self.operations), *map(KNOWN.index, self.operations)),
            *(sum(1 << column for column in columns) for columns in chosen),
        )


def _reduce_shapes(before: int, channels: int) -> list[tuple[int, ...]]:
    return [(half, before, 1, 1) for half in (channels // 2, channels - channels // 2)]


@lru_cache(maxsize=1024)
def decode(code: tuple[int, ...]) -> CellPlan:
    """The plan that `CellPlan.encode` wrote down."""
    channels, k, nodes, outputs, reduction, pool_norm, inputs, *rest = code
    kinds, rest = rest[:inputs], rest[inputs:]
    operations, masks = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
    return CellPlan(
        channels,
        tuple(KNOWN[number] for number in operations),
        nodes,
        bool(reduction),
        tuple(_KINDS[kind] for kind in kinds),
        k,
        outputs,
        bool(pool_norm),
        tuple(tuple(c for c in range(len(operations)) if mask >> c & 1) for mask in masks),
    )
