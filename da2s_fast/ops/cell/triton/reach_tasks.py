"""The tasks of csrc/cuda's backward kernel.

Of every node, the last first: the sums of its candidates, its second layers, the states before it.
They follow one another state by state, the node next to be complete first, so that what the next
node's tasks wait for ends early. In the end there are the sums of the preprocessed inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from da2s_fast.kernels.cell.rows import DENSE, SEPARABLE, Group, Layer, Work
from da2s_fast.ops.cell.triton.cell_rows import CellRows
from da2s_fast.ops.cell.triton.packs import Rows, Windows, windows_of
from da2s_fast.ops.cell.triton.reaching import ReachingRows
from da2s_fast.ops.cell.triton.tasks import Count, TaskList, of_state


class ReachedNode(NamedTuple):
    """What there is to be done for a node.

    Attributes:
        node: which.
        mixed: its candidates and what goes past them.
        second: second layers of separable convolutions.
        reaching: what reaches the states before it.
    """

    node: int
    mixed: Sequence[Layer]
    second: Sequence[Layer]
    reaching: ReachingRows


class ReachTasks(NamedTuple):
    """The tasks of a cell.

    Attributes:
        tasks: of all nodes, the last first.
        waits: the tasks'.
        candidates: rows of tasks.
        seconds: likewise.
        groups: likewise.
        layers: the groups' rows, and those of `others`.
        others: groups of what csrc/cuda has no kernel for; of all nodes together, for every state.
        lengths: how many tasks there are for each node, the last first.
        inner_windows: of second layers.
        windows: of first layers.
        dense: whether dense convolutions are among `others`.
        late: whether `others` can wait until all tasks are done.
        inputs: whether the sums of preprocessed inputs are among the tasks.
    """

    tasks: Rows
    waits: Rows
    candidates: Rows
    seconds: Rows
    groups: Rows
    layers: Rows
    others: Rows
    lengths: tuple[int, ...]
    inner_windows: Windows
    windows: Windows
    dense: bool
    late: bool
    inputs: bool


class ReachTaskRows:
    """The same before it is uploaded.

    Args:
        cell: the rows of the cell.
        nodes: ascending.
    """

    def __init__(self, cell: CellRows, nodes: Sequence[ReachedNode]) -> None:
        self.cell, self.layout = cell, cell.layout
        self.own = TaskList()
        self.candidates: list[Layer] = []
        self.seconds: list[Layer] = []
        self.groups: list[Group] = []
        self.layers: list[Layer] = []
        self.lengths: list[int] = []
        self.nodes = [own.node for own in nodes]
        # The inputs' sums, which add what is collected beside, are among the tasks then.
        self.halved = not any(own.reaching.others for own in nodes)
        for own in reversed(nodes):
            before = len(self.own.tasks)
            self._add(own)
            self.lengths.append(len(self.own.tasks) - before)
        self.windows = windows_of([row for row in self.layers if row.kind == SEPARABLE.value])
        before = len(self.layers)
        self.others = self._others(nodes)
        self.dense = any(row.kind == DENSE.value for row in self.layers[before:])
        if not self.others:
            self._sum_inputs()

    @property
    def lists(self) -> list[Sequence[tuple[int, ...]]]:
        """What is uploaded."""
        own = (
            self.own.tasks,
            self.own.waits,
            self.candidates,
            self.seconds,
            self.groups,
            self.layers,
        )
        return [*own, self.others]

    def uploaded(self, lists: Sequence[Rows]) -> ReachTasks:
        """With these lists on the device."""
        inputs = self.layout.states[: self.layout.plan.inputs]
        tasks, waits, candidates, seconds, groups, layers, others = lists
        return ReachTasks(
            tasks,
            waits,
            candidates,
            seconds,
            groups,
            layers,
            others,
            tuple(self.lengths),
            inner_windows=windows_of(self.seconds),
            windows=self.windows,
            dense=self.dense,
            late=self.layout.save and all(group.state in inputs for group in self.others),
            inputs=not self.others,
        )

    def _add(self, own: ReachedNode) -> None:
        node, states = own.node, range(own.node)[::-1]
        for state in states:
            for row in of_state(self.cell.plan, state, own.mixed):
                work = node, state, Work.SUMS
                self._task(work, self.candidates, row, self._gradient(node))
        for state in states:
            work = node, state, Work.INNER
            needed = [(node, state, Work.SUMS), *self._room(node)]
            # The longest first.
            rows = sorted(of_state(self.cell.plan, state, own.second), key=lambda row: -row.kernel)
            for row in rows:
                self._task(work, self.seconds, row, needed)
        for state in states:
            group = own.reaching.compiled[state]
            if not group.length:
                continue
            rows = own.reaching.layers[group.first : group.first + group.length]
            needed = [
                *self._gradient(node),
                *((node, state, work) for work in (Work.SUMS, Work.INNER)),
                *self._room(node),
            ]
            if half := self._beside(node, state):
                beside = group._replace(gradient=self.layout.beside[state])
                self._reach(node, state, beside, rows[:half], needed)
                rows = rows[half:]
            needed += [(later, state, Work.STATES) for later in self._later(node)[:1]]
            self._reach(node, state, group, rows, needed)

    def _beside(self, node: int, state: int) -> int:
        """How many of the first rows collect beside the state's gradient."""
        if not self.halved:
            return 0
        edges = self.cell.plan.entering(node)
        own = [self.layout.layers_beside(edge) for edge in edges if edge.source == state]
        return sum(map(len, own))

    def _reach(
        self, node: int, state: int, group: Group, rows: Sequence[Layer], needed: list[Count]
    ) -> None:
        moved = group._replace(first=len(self.layers), length=len(rows))
        self.layers.extend(rows)
        self._task((node, state, Work.STATES), self.groups, moved, needed)

    def _sum_inputs(self) -> None:
        """Behind all nodes."""
        for state in self.cell.plan.preprocess_norms:
            needed = [(node, state, Work.STATES) for node in self.nodes]
            row = self.cell.input_sums(state)
            self._task((state, state, Work.INPUT), self.candidates, row, needed)
            self.lengths[-1] += 1

    def _later(self, node: int) -> list[int]:
        return [other for other in self.nodes if other > node]

    def _gradient(self, node: int) -> list[Count]:
        """What the node's gradient is complete with."""
        return [(later, node, Work.STATES) for later in self._later(node)]

    def _room(self, node: int) -> list[Count]:
        """Who works where the node's gradients at inner norms and before products will lie."""
        before = [n for n in self._later(node) if (n - node) % self.layout.rooms == 0][:1]
        return [(n, state, Work.STATES) for n in before for state in range(n)]

    def _task(self, work: Count, rows: list, row: tuple[int, ...], needed: list[Count]) -> None:
        self.own.add(work, len(rows), needed, self.layout.image_chunks)
        rows.append(row)

    def _others(self, nodes: Sequence[ReachedNode]) -> list[Group]:
        """For every state a group of what is left, of all nodes."""
        found = []
        for state in self.cell.plan.states:
            start, at = len(self.layers), self.layout.states[state]
            for own in reversed(nodes):
                for group in own.reaching.others:
                    if group.state == at:
                        end = group.first + group.length
                        self.layers.extend(own.reaching.layers[group.first : end])
            if len(self.layers) > start:
                found.append(self.cell.group(state, start, len(self.layers) - start))
        return found
