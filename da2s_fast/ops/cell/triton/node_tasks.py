"""The tasks of csrc/cuda's forward kernel.

Of every node: first layers and pools of the edges that enter it, second layers, the node itself.
First layers that do not wait for the node before come before that node, so that there is work
while its last programs run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from da2s_fast.kernels.cell.rows import BYPASS, Layer, Mix, Pack, Work
from da2s_fast.ops.cell.triton.cell_rows import CellRows
from da2s_fast.ops.cell.triton.packs import POOL_KINDS, Rows, Windows, windows_of
from da2s_fast.ops.cell.triton.tasks import Count, TaskList, of_state
from da2s_fast.ops.cell.triton.tiling import ENOUGH_PROGRAMS

_TILE = 4096
"""Numbers that a program mixes at a time."""


class MadeNode(NamedTuple):
    """What makes a node.

    Attributes:
        node: which.
        first: first layers and pools.
        second: second layers.
        first_packs: of the former.
        second_packs: of the latter.
        mixed: candidates, then what goes past them.
    """

    node: int
    first: Sequence[Layer]
    second: Sequence[Layer]
    first_packs: Sequence[Pack]
    second_packs: Sequence[Pack]
    mixed: Sequence[Layer]


class NodeTasks(NamedTuple):
    """The tasks of a cell.

    Attributes:
        tasks: of all nodes.
        waits: the tasks'.
        packs: rows of tasks.
        layers: the packs' rows.
        mixes: rows of tasks.
        mixed: the mixes' rows.
        lengths: how many tasks there are for each node, in the order of the tasks.
        windows: of first layers and pools.
        second_windows: of second layers.
        most: candidates that are mixed at most.
    """

    tasks: Rows
    waits: Rows
    packs: Rows
    layers: Rows
    mixes: Rows
    mixed: Rows
    lengths: tuple[int, ...]
    windows: Windows
    second_windows: Windows
    most: int


class NodeTaskRows:
    """The same before it is uploaded.

    Args:
        cell: the rows of the cell.
        nodes: ascending.
        again: layers only, node by node in the order of the backward pass.
    """

    def __init__(self, cell: CellRows, nodes: Sequence[MadeNode], again: bool) -> None:
        self.cell, self.plan, self.layout = cell, cell.plan, cell.layout
        self.own = TaskList()
        self.packs: list[Pack] = []
        self.layers: list[Layer] = []
        self.mixes: list[Mix] = []
        self.mixed: list[Layer] = []
        self.lengths: list[int] = []
        self.nodes = nodes
        self._pooled: dict[Count, None] = {}
        if again:
            self._layers_only()
        else:
            self._all()

    @property
    def lists(self) -> list[Sequence[tuple[int, ...]]]:
        """What is uploaded."""
        own = self.own
        return [own.tasks, own.waits, self.packs, self.layers, self.mixes, self.mixed]

    def uploaded(self, lists: Sequence[Rows]) -> NodeTasks:
        """With these lists on the device."""
        tasks, waits, packs, layers, mixes, mixed = lists
        return NodeTasks(
            tasks,
            waits,
            packs,
            layers,
            mixes,
            mixed,
            tuple(self.lengths),
            windows_of([row for own in self.nodes for row in own.first]),
            windows_of([row for own in self.nodes for row in own.second]),
            max((mix.candidates for mix in self.mixes), default=0),
        )

    def _layers_only(self) -> None:
        for own in reversed(self.nodes):
            before = len(self.own.tasks)
            self._first(own, range(own.node))
            self._second(own)
            self.lengths.append(len(self.own.tasks) - before)

    def _all(self) -> None:
        behind = range(0)  # states whose first layers for this node are among the tasks
        for own, following in zip(self.nodes, [*self.nodes[1:], None], strict=True):
            self._first(own, range(behind.stop, own.node))
            self._second(own)
            # Where nodes share the room for their z, it is one after the other.
            behind = range(own.node) if following and self.layout.save else range(0)
            if following:
                self._first(following, behind)
            self._mix(own)
        self.lengths.append(len(self.own.tasks))

    def _first(self, own: MadeNode, states: range) -> None:
        start = len(self.layers)
        self.layers.extend(own.first)
        for place, row in enumerate(own.first, start):
            if row.kind in POOL_KINDS:
                self._share(place, own.node)
        before = [other.node for other in self.nodes if other.node < own.node][-1:]
        for state in states:
            needed = [(state, 0, Work.MIX)]
            if not self.layout.save:
                needed += [(node, 0, Work.MIX) for node in before]
            for pack in own.first_packs:
                if own.first[pack.first].source == self.layout.states[state]:
                    work = own.node, state, Work.FIRST
                    self._pack(work, pack, start, needed)
                    if pack.pools:
                        self._pooled[work] = None

    def _share(self, place: int, node: int) -> None:
        """The rows of later nodes that read what a pool's row writes, one after the other."""
        z = self.layers[place].z
        for other in self.nodes:
            for row in other.mixed if other.node > node else ():
                if row.kind in POOL_KINDS and row.z == z:
                    self.layers[place] = self.layers[place]._replace(inner=len(self.layers))
                    place = len(self.layers)
                    self.layers.append(row)

    def _second(self, own: MadeNode) -> None:
        start = len(self.layers)
        self.layers.extend(own.second)
        for state in range(own.node):
            rows = set(of_state(self.plan, state, own.second))
            for pack in own.second_packs:
                if own.second[pack.first] in rows:
                    work = own.node, state, Work.SECOND
                    self._pack(work, pack, start, [(own.node, state, Work.FIRST)])

    def _pack(self, work: Count, pack: Pack, start: int, needed: list[Count]) -> None:
        self.own.add(work, len(self.packs), needed, 0)
        self.packs.append(pack._replace(first=start + pack.first))

    def _mix(self, own: MadeNode) -> None:
        layout, plan, node = self.layout, self.plan, own.node
        needed = [
            (node, state, work) for state in range(node) for work in (Work.FIRST, Work.SECOND)
        ]
        needed += [(state, 0, Work.MIX) for state in range(node)]
        needed += [pool for pool in self._pooled if pool[0] <= node]
        numbers = layout.pixels(node) * plan.channels // layout.chunks
        parts = max(1, min(-(-ENOUGH_PROGRAMS // layout.chunks), numbers // _TILE))
        candidates = sum(row.kind != BYPASS.value for row in own.mixed)
        place = node - (len(plan.states) - plan.outputs)
        for part in range(parts):
            self.own.add((node, 0, Work.MIX), len(self.mixes), needed, layout.chunks)
            self.mixes.append(
                Mix(
                    len(self.mixed),
                    candidates,
                    len(own.mixed),
                    layout.states[node],
                    place * plan.channels if place >= 0 else -1,
                    part,
                    parts,
                )
            )
        self.mixed.extend(own.mixed)
