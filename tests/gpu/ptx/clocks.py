"""What programs of one launch know of one another: vector clocks.

A release publishes at an address what its program has done and knows; an acquire that reads there
learns it. Understood are, with the scopes gpu and sys:

- releases: st.release, and atom and red with .release or .acq_rel. Atomics and relaxed, volatile
  stores of a warp that has executed a fence release what it had done and known at the fence.
- acquires: ld.acquire, and atom with .acquire or .acq_rel. A fence acquires what its warp's relaxed
  and volatile loads and atomics have read.
- fences: membar.gl and .sys, and fence.

A relaxed atomic leaves what is published at its address, any other store takes it away. Narrower
scopes order nothing between programs.

The clock of a program says of every other one how many barriers that had passed when it released:
what it did before the last of them is known. What it did behind that barrier is not published, not
even what the warp did that releases. What a warp acquires is known to itself at once, and to the
other warps of its program from the program's next barrier on. Lanes of a warp know the same.

Strong loads need not see the latest value: a GPU may be slow. Where something was released they see
the oldest value that what their warp knows allows, and with every look the next one. So nobody
who waits for too small a count is helped by others that are further than they need to be. Atomics
see the latest value, so this does not hold for those who wait by them. Who looks several times
acquires from all that it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.gpu.ptx.manner import Manner
from tests.gpu.ptx.operands import Array


@dataclass(frozen=True)
class _Version:
    """A value that a number has had.

    Attributes:
        clock: what is published with it.
        program: that wrote it, behind as many barriers as it had `passed`; -1 is none.
    """

    value: int
    clock: Array | None = None
    program: int = -1
    passed: int = 0


class Clocks:
    """Clocks of the programs that run, and what all programs so far have published.

    A clock is one number for every program up to the last that runs: in which of its stretches
    between barriers, counted from 1, it released. Published clocks are never changed.

    Args:
        programs: that run at the same time.
        warps: of a program.
    """

    def __init__(self, programs: int, warps: int) -> None:
        self.warps = warps
        self.passed = np.zeros(programs, np.int64)  # barriers
        self.versions: dict[int, list[_Version]] = {}  # by address
        self.lowest, self.highest = 1 << 62, 0  # of those addresses
        self.start(0, 0)

    def start(self, first: int, programs: int) -> None:
        """These programs begin."""
        self.first = first
        self.programs = programs
        self.passed.fill(0)
        self.known = np.zeros((programs, 0), np.int32)  # clocks; 0 of programs further on
        # By warp: acquired since the program's last barrier, read before a fence, done before one.
        self.acquired: dict[int, Array] = {}
        self.read: dict[int, Array] = {}
        self.fenced: dict[int, Array] = {}
        # By address and warp, which version was seen; by these and whether it acquires.
        self.seen: dict[tuple[int, int], int] = {}
        self.learnt: dict[tuple[int, int, bool], Array] = {}

    def synchronize(self, programs: Array) -> None:
        """These programs pass a barrier: what single warps have acquired, all of them know."""
        self.passed[programs] += 1
        if not self.acquired:
            return
        if not self.known.size:
            self.known = np.zeros((self.programs, self.first + self.programs), np.int32)
        passed = set(programs.tolist())
        for warp in [warp for warp in self.acquired if warp // self.warps in passed]:
            row = self.known[warp // self.warps]
            np.maximum(row, self.acquired.pop(warp), out=row)

    def knows(self, warps: Array, programs: Array, passed: Array) -> Array:
        """Whether warps know what programs did when those had passed so many barriers."""
        if self.known.size:
            found = self.known[warps // self.warps, programs] > passed + 1
        else:
            found = np.zeros(warps.size, np.bool_)
        if self.acquired:
            for warp in np.unique(warps[~found]).tolist():
                if warp in self.acquired:
                    mine = warps == warp
                    found[mine] |= self.acquired[warp][programs[mine]] > passed[mine] + 1
        return found

    def load(self, addresses: Array, warps: Array, values: Array, manner: Manner) -> bool:
        """Warps read strongly: change values to older ones; whether there are any."""
        behind = False
        for address, warp, lanes in _pairs(addresses, warps):
            versions = self.versions.get(address)
            if versions is None:
                continue
            number = self._oldest(versions, address, warp)
            values[lanes] = versions[number].value
            behind |= number < len(versions) - 1
            self._learn(versions[number].clock, (address, warp, manner.acquires))
        return behind

    def forget(self, addresses: Array, width: int) -> None:
        """Something else is written there, `width` bytes each."""
        if self._touches(addresses, width):
            # Addresses are multiples of the width.
            held = np.array(list(self.versions), np.int64)
            for address in held[np.isin(held // width, addresses // width)].tolist():
                del self.versions[address]

    def store(
        self, addresses: Array, warps: Array, before: Array, behind: Array, manner: Manner
    ) -> None:
        """Warps write strongly, each lane in the place of `before`; at last `behind` is there."""
        ordered = manner.acquires or manner.releases or self.fenced
        if not ordered and not self._touches(addresses, 1):
            return
        pairs = list(_pairs(addresses, warps))
        for (address, warp, lanes), following in zip(pairs, [*pairs[1:], None], strict=True):
            versions = self.versions.get(address)
            if versions is None:
                versions = [_Version(int(before[lanes[0]]))]
            clock = versions[-1].clock if manner.atomic else None
            self._learn(clock, (address, warp, manner.acquires))
            mine = self._clock(warp) if manner.releases else self.fenced.get(warp)
            if mine is not None:
                clock = mine if clock is None else _latest(clock, mine)
                self.versions[address] = versions
                self.lowest, self.highest = min(self.lowest, address), max(self.highest, address)
            # What the next warp found is what this one left.
            again = following is not None and following[0] == address
            value = before[following[2][0]] if again else behind[lanes[0]]
            program = warp // self.warps
            passed = int(self.passed[program])
            versions.append(_Version(int(value), clock, self.first + program, passed))

    def fence(self, warps: Array, manner: Manner) -> None:
        """Warps execute a fence."""
        for warp in np.unique(warps).tolist():
            if manner.acquires and warp in self.read:
                self._merge(self.acquired, warp, self.read.pop(warp))
            if manner.releases:
                self.fenced[warp] = self._clock(warp)

    def _touches(self, addresses: Array, width: int) -> bool:
        """Whether something may have been released at some of these addresses."""
        return bool(addresses.min() <= self.highest and addresses.max() + width > self.lowest)

    def _oldest(self, versions: list[_Version], address: int, warp: int) -> int:
        """Which version a warp sees."""
        last = len(versions) - 1
        start = min(self.seen.get((address, warp), -1) + 1, last)
        if start < last:
            clock = self._clock(warp)
            for number in range(last, start, -1):
                # The program's own ones, and those that it may know.
                if clock[versions[number].program] > versions[number].passed:
                    start = number
                    break
        self.seen[address, warp] = start
        return start

    def _learn(self, clock: Array | None, what: tuple[int, int, bool]) -> None:
        """A warp reads what is published."""
        if clock is None or self.learnt.get(what) is clock:
            return
        self.learnt[what] = clock
        _, warp, acquires = what
        self._merge(self.acquired if acquires else self.read, warp, clock)

    def _merge(self, into: dict[int, Array], warp: int, clock: Array) -> None:
        if warp not in into:
            into[warp] = np.zeros(self.first + self.programs, np.int32)
        mine = into[warp][: clock.size]
        np.maximum(mine, clock, out=mine)

    def _clock(self, warp: int) -> Array:
        """What a warp publishes."""
        program = warp // self.warps
        clock = np.zeros(self.first + self.programs, np.int32)
        if self.known.size:
            clock[:] = self.known[program]
        if warp in self.acquired:
            np.maximum(clock, self.acquired[warp], out=clock)
        clock[self.first + program] = self.passed[program] + 1
        return clock


def _pairs(addresses: Array, warps: Array) -> Iterator[tuple[int, int, Array]]:
    """Different addresses, different warps at each in ascending order, and their lanes."""
    keys = (addresses - addresses.min()) * (int(warps.max()) + 1) + warps
    order = np.argsort(keys, kind="stable")
    for lanes in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        yield int(addresses[lanes[0]]), int(warps[lanes[0]]), lanes


def _latest(one: Array, other: Array) -> Array:
    """Of clocks; those of earlier programs may be shorter."""
    short, long = sorted((one, other), key=len)
    latest = long.copy()
    np.maximum(latest[: short.size], short, out=latest[: short.size])
    return latest
