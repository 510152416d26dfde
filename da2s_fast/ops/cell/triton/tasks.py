"""What programs of one launch of csrc/cuda do, in which order, and what they wait for.

A task is done by a program for each chunk, in the order of the table; nobody waits for what comes
later. What is waited for is all the work of one kind for the edges from a state to a node, which
has a counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from da2s_fast.kernels.cell.rows import Layer, Task, Wait
from da2s_fast.ops.cell.plan import CellPlan

Count = tuple[int, int, int]
"""(node, state, work): what programs with that work for the edges from a state to a node count."""


class TaskList:
    """Tasks, as they are added.

    Attributes:
        tasks: see `Task`.
        waits: the tasks'.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.waits: list[Wait] = []
        self._counters: dict[Count, int] = {}
        self._used = 1  # tickets are counted with the first
        self._programs: Counter[Count] = Counter()

    def add(self, work: Count, row: int, needed: Sequence[Count], chunks: int) -> None:
        """A task that comes after all that is needed.

        Args:
            work: what is counted up.
            row: index of what the task is about.
            needed: what of it is among the tasks so far must be done.
            chunks: programs that count; 0: the last one counts, for all.
        """
        waits = [
            Wait(self._counters[one], self._programs[one])
            for one in dict.fromkeys(needed)
            if self._programs[one]
        ]
        if work not in self._counters:
            self._counters[work] = self._counter()
        arrivals = 0 if chunks else self._counter()
        self._programs[work] += chunks or 1
        counter = self._counters[work]
        self.tasks.append(Task(work[2], row, len(self.waits), len(waits), counter, arrivals))
        self.waits.extend(waits)

    def _counter(self) -> int:
        self._used += 1
        return self._used - 1


def of_state(plan: CellPlan, state: int, rows: Sequence[Layer]) -> list[Layer]:
    """Those of the edges from a state."""
    edges = {edge.row for edge in plan.edges if edge.source == state}
    return [row for row in rows if row.edge in edges]
