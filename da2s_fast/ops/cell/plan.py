"""What a cell computes, as data: its states, edges, bundles and the kinds of its operations.

A *bundle* is all edges that leave one state. They read the same input, so that ReLU, padding and
both pools are computed once per bundle instead of once per edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

PreprocessKind = Literal["conv", "reduce"]
"""conv: ReLU, 1x1 convolution, BatchNorm. reduce: FactorizedReduce."""


class Conv(NamedTuple):
    """ReLU, depthwise k x k, pointwise, BatchNorm; `twice` makes it a separable convolution."""

    kernel: int
    dilation: int
    twice: bool

    @property
    def padding(self) -> int:
        """Keeps the size at stride 1."""
        return self.dilation * (self.kernel - 1) // 2


CONVS = {
    "sep_conv_3x3": Conv(3, 1, True),
    "sep_conv_5x5": Conv(5, 1, True),
    "sep_conv_7x7": Conv(7, 1, True),
    "dil_conv_3x3": Conv(3, 2, False),
    "dil_conv_5x5": Conv(5, 2, False),
}
POOLS = ("max_pool_3x3", "avg_pool_3x3")
SKIP, NONE = "skip_connect", "none"
KNOWN = (NONE, SKIP, *POOLS, *CONVS)


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
        preprocess: how each of the two inputs is preprocessed.
        partial_channels: K, mix the first C/K channels only.
    """

    channels: int
    operations: tuple[str, ...]
    nodes: int
    reduction: bool
    preprocess: tuple[PreprocessKind, PreprocessKind]
    partial_channels: int = 1

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

    @cached_property
    def edges(self) -> tuple[EdgePlan, ...]:
        """All edges, node by node: the order of the rows of p and g."""
        pairs = [(s, t) for t in self.states[self.inputs :] for s in range(t)]
        return tuple(
            EdgePlan(i, s, t, 2 if self.reduction and s < self.inputs else 1)
            for i, (s, t) in enumerate(pairs)
        )

    def bundle(self, source: int) -> list[EdgePlan]:
        """The edges that leave a state."""
        return [edge for edge in self.edges if edge.source == source]

    def entering(self, target: int) -> list[EdgePlan]:
        """The edges that enter a node."""
        return [edge for edge in self.edges if edge.target == target]

    def norms_of(self, operation: str, stride: int) -> int:
        """How many BatchNorms the operation has on an edge of this stride."""
        if operation in CONVS:
            return 1 + CONVS[operation].twice
        return int(operation in POOLS or (operation == SKIP and stride == 2))

    def weights_of(self, operation: str, stride: int) -> int:
        """How many weight tensors it has."""
        if operation in CONVS:
            return 2 * (1 + CONVS[operation].twice)
        return 2 if operation == SKIP and stride == 2 else 0

    @cached_property
    def weight_slots(self) -> dict[tuple[int, str], slice]:
        """Where an edge's operation has its weights in the flat list, module order."""
        return self._slots(sum(2 if k == "reduce" else 1 for k in self.preprocess), self.weights_of)

    @cached_property
    def norm_slots(self) -> dict[tuple[int, str], slice]:
        """Where an edge's operation has its norms in the flat list, module order."""
        return self._slots(self.inputs, self.norms_of)

    def _slots(self, start: int, count: object) -> dict[tuple[int, str], slice]:
        slots = {}
        for edge in self.edges:
            for operation in self.operations:
                stop = start + count(operation, edge.stride)  # type: ignore[operator]
                slots[edge.row, operation] = slice(start, stop)
                start = stop
        return slots

    def preprocess_weights(self, position: int) -> slice:
        """Where the preprocessing of an input has its weights in the flat list."""
        before: Sequence[PreprocessKind] = self.preprocess[:position]
        start = sum(2 if kind == "reduce" else 1 for kind in before)
        return slice(start, start + (2 if self.preprocess[position] == "reduce" else 1))
