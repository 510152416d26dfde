"""The rows that tell the kernels' programs what to do, launch by launch, kept on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.cell.rows import Group, Layer, Pack, Part
from da2s_fast.ops.cell.operations import CONVS, DENSE, NONE, POOLS, SKIP
from da2s_fast.ops.cell.plan import EdgePlan
from da2s_fast.ops.cell.triton.layout import ENOUGH_PROGRAMS, Key, Layout, layout_of


class Rows(NamedTuple):
    """Consecutive rows of one kind, and how many."""

    table: Tensor
    """From the first row on."""
    length: int


class Packs(NamedTuple):
    """Rows of layers by their input, and what the widest of them needs.

    Attributes:
        rows: of `Pack`.
        halo: pixels that windows reach beyond an output's own.
        taps: of a depthwise convolution.
        stride: of any row.
    """

    rows: Rows
    halo: int
    taps: int
    stride: int


class Reaching(NamedTuple):
    """What reaches the states before a node.

    Attributes:
        groups: of `Group`, one for every state.
        layers: the rows of all groups.
        packs: what the widest of them needs; it has no rows.
        separable: whether separable convolutions are among them.
        dense: whether dense ones are.
    """

    groups: Rows
    layers: Rows
    packs: Packs
    separable: bool
    dense: bool


class Round(NamedTuple):
    """The launches of a node: forward, then backward.

    Attributes:
        first: first layers and pools of its edges, one source after the other.
        second: second layers of separable convolutions.
        first_packs: of the former.
        second_packs: of the latter, each its own.
        mixed: all its candidates, then a bypass for every edge.
        reaching: all that reaches states.
        compiled: those of its layers that csrc/cuda has a kernel for.
        others: all but those.
    """

    node: int
    first: Rows
    second: Rows
    first_packs: Packs
    second_packs: Packs
    mixed: Rows
    reaching: Reaching
    compiled: Reaching
    others: Reaching


class Tables(NamedTuple):
    """All rows of a cell.

    Attributes:
        parts: convolutions of the preprocessing.
        inputs: one row for every input.
        rounds: node by node.
        states: a group without rows for every state.
        normalized: one row for every preprocessed input.
        candidates: every candidate and bypass of all nodes.
    """

    parts: Rows
    inputs: Rows
    rounds: list[Round]
    states: Rows
    normalized: Rows
    candidates: Rows


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
    builder = _Builder(layout_of(code, batch, sizes, save), frozenset(frozen))
    return builder.build(again, device)


class _Builder:
    def __init__(self, layout: Layout, frozen: frozenset[int]) -> None:
        self.layout, self.plan, self.frozen = layout, layout.plan, frozen

    def build(self, again: bool, device: torch.device) -> Tables:
        plan, layout = self.plan, self.layout
        parts = [part for i in plan.preprocess_norms for part in self._parts(i)]
        inputs = [self._input(i) for i in range(plan.inputs)]
        states = [self._group(state, 0, []) for state in plan.states]
        lists: list[Sequence[tuple[int, ...]]] = [parts, inputs, states]
        packs: list[tuple[int, int, int]] = []
        kinds: list[set[int]] = []
        normalized = [self._input_sums(i) for i in plan.preprocess_norms]
        candidates: list[Layer] = []
        for node in plan.states[plan.inputs :]:
            edges = plan.entering(node)
            first = [row for edge in edges for row in self._first(edge)]
            for (source, name), nodes in layout.pooled.items():
                if node == nodes[-1 if again else 0]:
                    edge = next(e for e in edges if e.source == source)
                    first.append(self._pool(edge, name))
            first.sort(key=lambda row: (row.source, row.kind not in _POOL_KINDS))
            mixed = [row for edge in edges for row in self._candidates(edge)]
            second = [row for row in mixed if row.inner >= 0]
            if plan.partial_channels > 1:
                mixed += [self._bypass(edge) for edge in edges]
            own = [self._reaching(source, edges, mixed) for source in range(node)]
            by_compiled = [[row for row in found if _has_kernel(row)] for found in own]
            by_others = [[row for row in found if not _has_kernel(row)] for found in own]
            reaches = [own, by_compiled, by_others]
            packs += [_reach(first), _reach(second)]
            lists += [first, second, *(_packs(r, layout.chunks) for r in (first, second)), mixed]
            kinds += [{row.kind for row in chain.from_iterable(which)} for which in reaches]
            for which in reaches:
                packs.append(_reach([*chain.from_iterable(which)]))
                lists += [self._groups(which), [*chain.from_iterable(which)]]
            candidates += mixed
        lists += [normalized, candidates]
        on_device = iter(_upload(lists, device))
        parts_, inputs_, states_ = (next(on_device) for _ in range(3))
        widest, known = iter(packs), iter(kinds)
        rounds = []
        for node in plan.states[plan.inputs :]:
            first_, second_, first_packs, second_packs, mixed_ = (next(on_device) for _ in range(5))
            rounds.append(
                Round(
                    node,
                    first_,
                    second_,
                    Packs(first_packs, *next(widest)),
                    Packs(second_packs, *next(widest)),
                    mixed_,
                    *(_as_reaching(on_device, next(widest), next(known)) for _ in range(3)),
                )
            )
        return Tables(parts_, inputs_, rounds, states_, next(on_device), next(on_device))

    def _reaching(
        self, source: int, edges: Sequence[EdgePlan], mixed: Sequence[Layer]
    ) -> list[Layer]:
        """What hands a state something from the node that the edges enter."""
        own = [edge for edge in edges if edge.source == source]
        found = [row for edge in own for row in self._first(edge)]
        return found + [
            row
            for edge in own
            for row in mixed
            if row.edge == edge.row and row.kind in _WITHOUT_LAYERS
        ]

    def _groups(self, own: Sequence[Sequence[Layer]]) -> list[Group]:
        """One for every state, whose rows follow one another."""
        found: list[Group] = []
        first = 0
        for state, layers in enumerate(own):
            found.append(self._group(state, first, layers))
            first += len(layers)
        return found

    def _input_sums(self, position: int) -> Layer:
        layout = self.layout
        return Layer(
            kind=rows.STATE.value,
            source=layout.states[position],
            gradient=layout.gradients[position],
            sums=layout.input_sums[position],
        )

    def _input(self, position: int) -> Part:
        slot = self.plan.preprocess_norms.get(position)
        layout = self.layout
        part = Part(
            position,
            state=layout.states[position],
            gradient=layout.gradients[position],
            sums=layout.input_sums[position],
            cout=self.plan.channels,
        )
        if slot is None:
            return part
        return part._replace(
            cin=layout.sizes[position][0],
            z=layout.prepared[0][position],
            moments=layout.input_moments[position],
            statistics=layout.norms[slot],
            frozen=int(slot in self.frozen),
        )

    def _parts(self, position: int) -> list[Part]:
        at = self.layout.weights[self.plan.preprocess_weights(position)]
        part = self._input(position)
        if self.plan.preprocess[position] == "conv":
            return [part._replace(product=at[0])]
        half = self.plan.channels // 2
        return [
            part._replace(product=at[0], cout=half, stride=2),
            part._replace(product=at[1], cout=part.cout - half, column=half, stride=2, shift=1),
        ]

    def _group(self, state: int, first: int, own: Sequence[Layer]) -> Group:
        node = state >= self.plan.inputs
        return Group(
            first,
            len(own),
            self.layout.states[state],
            self.layout.gradients[state],
            self.plan.partial_channels if node else 1,
        )

    def _at(self, edge: EdgePlan, operation: str = "") -> Layer:
        """What every row of an edge has in common."""
        plan, layout = self.plan, self.layout
        height, width = layout.size(edge.source)
        return Layer(
            source=layout.states[edge.source],
            height=height,
            width=width,
            stride=edge.stride,
            cout=plan.mixed_channels,
            edge=edge.row,
            operation=plan.operations.index(operation) if operation else 0,
            gradient=layout.gradients[edge.target],
            gradient_pitch=plan.channels,
            sums=layout.sums[edge.row, operation, 1] if operation else layout.bypass_sums[edge.row],
        )

    def _norm(self, edge: EdgePlan, operation: str, half: int) -> tuple[int, int]:
        """Where the statistics are and whether they are given; -1 without a norm."""
        slots = range(*self.plan.norm_slots[edge.row, operation].indices(len(self.layout.norms)))
        if not slots:
            return -1, 0
        slot = slots[0] if half == 0 else slots[-1]
        return self.layout.norms[slot], int(slot in self.frozen)

    def _layer(self, edge: EdgePlan, operation: str, half: int) -> list[Layer]:
        """A convolution's rows, two for FactorizedReduce."""
        layout, key = self.layout, (edge.row, operation, half)
        statistics, frozen = self._norm(edge, operation, half)
        at = layout.weights[self.plan.weight_slots[edge.row, operation]]
        row = self._at(edge, operation)._replace(
            z=layout.z[key],
            moments=layout.moments[key],
            statistics=statistics,
            frozen=frozen,
            reached=layout.reached[key],
        )
        if operation == SKIP:
            half_channels = row.cout // 2
            row = row._replace(kind=rows.DENSE.value)
            return [
                row._replace(product=at[0], cout=half_channels),
                row._replace(
                    product=at[1],
                    cout=row.cout - half_channels,
                    column=half_channels,
                    padding=-1,
                ),
            ]
        if operation in DENSE:
            k = DENSE[operation]
            return [row._replace(kind=rows.DENSE.value, kernel=k, padding=k // 2, product=at[0])]
        conv = CONVS[operation]
        row = row._replace(
            kind=rows.SEPARABLE.value,
            kernel=conv.kernel,
            dilation=conv.dilation,
            padding=conv.padding,
            spatial=at[2 * (half and conv.twice)],
            product=at[2 * (half and conv.twice) + 1],
        )
        if conv.twice:
            row = self._half(row, (edge.row, operation, 0), edge, half)
        return [row]

    def _half(self, row: Layer, first: Key, edge: EdgePlan, half: int) -> Layer:
        """A separable convolution's first or second layer."""
        layout = self.layout
        inner, sums = layout.inner[first], layout.sums[first]
        if half == 0:
            return row._replace(
                edge=-1,
                gradient=inner,
                gradient_pitch=self.plan.mixed_channels,
                sums=sums,
            )
        place, frozen = self._norm(edge, first[1], 0)
        height, width = layout.after
        return row._replace(
            source=layout.z[first],
            height=height,
            width=width,
            stride=1,
            inner=place,
            inner_moments=layout.moments[first],
            inner_frozen=frozen,
            inner_gradient=inner,
            inner_sums=sums,
        )

    def _first(self, edge: EdgePlan) -> list[Layer]:
        """First layers of an edge."""
        keys = self.layout.layers(edge)
        return [
            row
            for _, name, half in keys
            if half == 0 or (edge.row, name, 0) not in keys
            for row in self._layer(edge, name, half)
        ]

    def _pool(self, edge: EdgePlan, operation: str) -> Layer:
        layout, key = self.layout, (edge.source, operation)
        statistics, frozen = self._norm(edge, operation, 1)
        kind = rows.MAXIMUM if operation.startswith("max") else rows.AVERAGE
        return self._at(edge, operation)._replace(
            kind=kind.value,
            kernel=3,
            padding=1,
            z=layout.pools[key],
            position=layout.positions.get(edge.source, 0),
            moments=layout.pool_moments[key],
            statistics=statistics,
            frozen=frozen,
        )

    def _candidates(self, edge: EdgePlan) -> list[Layer]:
        found: list[Layer] = []
        for name in self.plan.candidates(edge):
            if name in POOLS:
                found.append(self._pool(edge, name))
            elif name == NONE:
                found.append(self._at(edge, name)._replace(kind=rows.NOTHING.value))
            elif name == SKIP and edge.stride == 1:
                found.append(self._at(edge, name)._replace(kind=rows.SKIP.value))
            else:
                found += self._layer(edge, name, 1)
        return found

    def _bypass(self, edge: EdgePlan) -> Layer:
        return self._at(edge)._replace(kind=rows.BYPASS.value)


_POOL_KINDS = (rows.MAXIMUM.value, rows.AVERAGE.value)
_WITHOUT_LAYERS = (*_POOL_KINDS, rows.SKIP.value, rows.NOTHING.value, rows.BYPASS.value)


_MOST_ROWS = 8
"""Of a pack, see csrc/cuda/cell/table.cuh."""


def _packs(layers: Sequence[Layer], chunks: int) -> list[Pack]:
    """Neighbours that read the same input: the more, the more programs are left nevertheless."""
    most = max(1, min(_MOST_ROWS, len(layers) * chunks // ENOUGH_PROGRAMS))
    found: list[Pack] = []
    for place, row in enumerate(layers):
        pool = int(row.kind in _POOL_KINDS)
        last = found[-1] if found else None
        if last and last.length < most and layers[last.first].source == row.source:
            found[-1] = last._replace(length=last.length + 1, pools=last.pools + pool)
        else:
            found.append(Pack(place, 1, pool))
    return found


def _has_kernel(row: Layer) -> bool:
    """Whether `cell_reach_states` of csrc/cuda takes a row."""
    return row.kind == rows.SEPARABLE.value


def _as_reaching(
    on_device: Iterator[Rows], widest: tuple[int, int, int], kinds: set[int]
) -> Reaching:
    """The next two of what was uploaded."""
    groups, layers = next(on_device), next(on_device)
    packs = Packs(Rows(layers.table, 0), *widest)
    return Reaching(groups, layers, packs, rows.SEPARABLE.value in kinds, rows.DENSE.value in kinds)


def _reach(layers: Sequence[Layer]) -> tuple[int, int, int]:
    """The largest halo, number of taps and stride."""
    halo = max((abs(row.padding) for row in layers), default=0)
    taps = max((row.kernel**2 for row in layers if row.kind == rows.SEPARABLE.value), default=0)
    return halo, taps, max((row.stride for row in layers), default=1)


_SECTOR = 4  # numbers


def _upload(lists: Iterable[Sequence[tuple[int, ...]]], device: torch.device) -> list[Rows]:
    """Every list as rows on the device, all in one tensor, each at the start of a sector."""
    numbers: list[int] = []
    places = []
    for own in lists:
        places.append((len(numbers), len(own)))
        numbers += [number for row in own for number in row]
        numbers += [0] * (-len(numbers) % _SECTOR)
    tensor = torch.tensor([*numbers, 0], dtype=torch.int64).to(device)
    return [Rows(tensor[start:], length) for start, length in places]
