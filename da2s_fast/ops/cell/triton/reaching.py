"""The rows that hand gradients to the states before a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.cell.rows import Group, Layer
from da2s_fast.ops.cell.plan import EdgePlan
from da2s_fast.ops.cell.triton.cell_rows import CellRows
from da2s_fast.ops.cell.triton.packs import POOL_KINDS, Rows

_WITHOUT_LAYERS = (*POOL_KINDS, rows.SKIP.value, rows.NOTHING.value, rows.BYPASS.value)


class Reaching(NamedTuple):
    """What reaches the states before a node: for every state a group of rows.

    Attributes:
        layers: the rows of all groups, of a group those first that csrc/cuda has a kernel for,
            separable convolutions before all others, FactorizedReduce's halves behind them.
        groups: of all rows.
        others: of those that csrc/cuda has no kernel for; no groups where there are none.
        separable: whether separable convolutions are among the rows.
        dense: whether dense convolutions are.
    """

    layers: Rows
    groups: Rows
    others: Rows
    separable: bool
    dense: bool


class ReachingRows(NamedTuple):
    """The same before it is uploaded, and the groups of rows that csrc/cuda has a kernel for."""

    layers: list[Layer]
    groups: list[Group]
    compiled: list[Group]
    others: list[Group]

    @property
    def lists(self) -> list[Sequence[tuple[int, ...]]]:
        """What is uploaded."""
        return [self.layers, self.groups, self.others]

    def uploaded(self, layers: Rows, groups: Rows, others: Rows) -> Reaching:
        """With these lists on the device."""
        kinds = {row.kind for row in self.layers}
        separable, dense = rows.SEPARABLE.value in kinds, rows.DENSE.value in kinds
        return Reaching(layers, groups, others, separable, dense)


def reaching_of(
    cell: CellRows, node: int, edges: Sequence[EdgePlan], mixed: Sequence[Layer]
) -> ReachingRows:
    """What the edges that enter a node hand the states before it; mixed are its candidates."""
    found = ReachingRows([], [], [], [])
    for state in range(node):
        own = [edge for edge in edges if edge.source == state]
        layers = [row for edge in own for row in cell.first(edge)]
        layers += [
            row
            for edge in own
            for row in mixed
            if row.edge == edge.row and row.kind in _WITHOUT_LAYERS
        ]
        channels = cell.plan.mixed_channels
        layers.sort(key=lambda row: (not _is_compiled(row, channels), _rank(row)))
        start, count = len(found.layers), sum(_is_compiled(row, channels) for row in layers)
        found.layers.extend(layers)
        found.groups.append(cell.group(state, start, len(layers)))
        found.compiled.append(cell.group(state, start, count))
        if count < len(layers):
            found.others.append(cell.group(state, start + count, len(layers) - count))
    return found


def _is_compiled(row: Layer, channels: int) -> bool:
    """Whether csrc/cuda has a kernel for it; channels are those that candidates see."""
    if row.kind == rows.BYPASS.value:
        return row.stride == 1
    if row.kind == rows.DENSE.value:
        # FactorizedReduce: a thread has 4 channels, all of one half.
        return row.cout < channels and channels % 8 == 0
    return True


def _rank(row: Layer) -> int:
    """Where it comes in its group."""
    return {rows.SEPARABLE.value: 0, rows.DENSE.value: 2}.get(row.kind, 1)
