"""The rows that tell the kernels' programs what to do, launch by launch, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import torch

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.cell.rows import Layer, Pack
from da2s_fast.ops.cell.triton.cell_rows import CellRows
from da2s_fast.ops.cell.triton.layout import layout_of
from da2s_fast.ops.cell.triton.node_tasks import MadeNode, NodeTaskRows, NodeTasks
from da2s_fast.ops.cell.triton.packs import (
    POOL_KINDS,
    Rows,
    packs_of,
    upload,
)
from da2s_fast.ops.cell.triton.reach_tasks import ReachedNode, ReachTaskRows, ReachTasks
from da2s_fast.ops.cell.triton.reaching import Reaching, ReachingRows, reaching_of


class Round(NamedTuple):
    """The launches of a node: forward, then backward.

    Attributes:
        first: first layers and pools of its edges, one source after the other.
        second: second layers of separable convolutions.
        candidates: how many it has.
        mixed: all of them, then, with partial channels, a bypass for every edge.
        reaching: what reaches states.
    """

    node: int
    first: Rows
    second: Rows
    candidates: int
    mixed: Rows
    reaching: Reaching


class Tables(NamedTuple):
    """All rows of a cell.

    Attributes:
        parts: convolutions of the preprocessing.
        inputs: one row for every input.
        rounds: node by node.
        states: a group without rows for every place where a state's gradient is collected, those
            beside the gradients first.
        normalized: one row for every preprocessed input.
        candidates: every candidate and bypass of all edges; a power of two for each edge, those
            that are too many without channels.
        making: tasks of csrc/cuda's forward kernel.
        reaching: of its backward kernel.
    """

    parts: Rows
    inputs: Rows
    rounds: list[Round]
    states: Rows
    normalized: Rows
    candidates: Rows
    making: NodeTasks
    reaching: ReachTasks


@lru_cache(maxsize=256)
def tables_of(  # noqa: PLR0917 - a key of the cache
    code: tuple[int, ...],
    batch: int,
    sizes: tuple[tuple[int, ...], ...],
    save: bool,
    frozen: tuple[int, ...],
    again: bool,
    device: torch.device,
) -> Tables:
    """The rows on the device, where they stay.

    Args:
        code: the encoded plan.
        batch: N.
        sizes: of the inputs.
        save: see `Layout`.
        frozen: norms whose statistics are given.
        again: pools are computed for the last node that needs them, not the first: for a backward
            pass that computes them again.
        device: of the tensors.
    """
    cell = CellRows(layout_of(code, batch, sizes, save), frozenset(frozen))
    plan = cell.plan
    rounds = [_round_of(cell, node, again) for node in plan.states[plan.inputs :]]
    making = NodeTaskRows(cell, [own.made for own in rounds], again)
    reaching = ReachTaskRows(
        cell, [ReachedNode(own.node, own.mixed, own.second, own.reaching) for own in rounds]
    )
    lists: list[Sequence[tuple[int, ...]]] = [
        [part for i in plan.preprocess_norms for part in cell.parts(i)],
        [cell.input(i) for i in range(plan.inputs)],
        [
            *(cell.group(s, 0, 0)._replace(gradient=at) for s, at in cell.layout.beside.items()),
            *(cell.group(state, 0, 0) for state in plan.states),
        ],
        [cell.input_sums(i) for i in plan.preprocess_norms],
        _by_edge(len(plan.edges), [row for own in rounds for row in own.mixed]),
    ]
    by_round = [rows for own in rounds for rows in own.lists]
    on_device = iter(upload([*lists, *making.lists, *reaching.lists, *by_round], device))
    parts, inputs, states, normalized, candidates = islice(on_device, len(lists))
    made = making.uploaded([*islice(on_device, len(making.lists))])
    reached = reaching.uploaded([*islice(on_device, len(reaching.lists))])
    return Tables(
        parts,
        inputs,
        [own.uploaded([*islice(on_device, len(own.lists))]) for own in rounds],
        states,
        normalized,
        candidates,
        made,
        reached,
    )


def _by_edge(edges: int, mixed: Sequence[Layer]) -> list[Layer]:
    """Equally many rows for every edge."""
    by_edge = [[row for row in mixed if row.edge == edge] for edge in range(edges)]
    most = max(map(len, by_edge), default=0)
    length = 1 << max(most - 1, 0).bit_length()
    return [row for own in by_edge for row in own + [Layer()] * (length - len(own))]


class _RoundRows(NamedTuple):
    """A `Round` before it is uploaded."""

    node: int
    first: list[Layer]
    second: list[Layer]
    first_packs: list[Pack]
    second_packs: list[Pack]
    mixed: list[Layer]
    reaching: ReachingRows

    @property
    def lists(self) -> list[Sequence[tuple[int, ...]]]:
        return [self.first, self.second, self.mixed, *self.reaching.lists]

    @property
    def made(self) -> MadeNode:
        own = self.first, self.second, self.first_packs, self.second_packs, self.mixed
        return MadeNode(self.node, *own)

    def uploaded(self, lists: Sequence[Rows]) -> Round:
        """With its lists on the device."""
        first, second, mixed, *reaching = lists
        return Round(
            self.node,
            first,
            second,
            sum(row.kind != rows.BYPASS.value for row in self.mixed),
            mixed,
            self.reaching.uploaded(*reaching),
        )


def _round_of(cell: CellRows, node: int, again: bool) -> _RoundRows:
    plan, layout = cell.plan, cell.layout
    edges = plan.entering(node)
    first = [row for edge in edges for row in cell.first(edge)]
    for (source, name), nodes in layout.pooled.items():
        if node == nodes[-1 if again else 0]:
            edge = next(e for e in edges if e.source == source)
            first.append(cell.pool(edge, name))
    first.sort(key=lambda row: (row.source, row.kind not in POOL_KINDS))
    mixed = [row for edge in edges for row in cell.candidates(edge)]
    second = [row for row in mixed if row.inner >= 0]
    if plan.partial_channels > 1:
        mixed += [cell.bypass(edge) for edge in edges]
    return _RoundRows(
        node,
        first,
        second,
        packs_of(first, layout.chunks, plan.mixed_channels),
        packs_of(second, layout.chunks, plan.mixed_channels),
        mixed,
        reaching_of(cell, node, edges, mixed),
    )
