"""Races in global memory: who wrote and who read a number last, and whether a barrier lies between.

Within a launch a program may read what it wrote itself, after a barrier if another warp did, and
nothing that another program wrote: programs run in any order. What is noted is the last read and
the last write of every two bytes, so that a race may hide behind a later harmless access.
"""

from __future__ import annotations

import numpy as np

from tests.gpu.ptx.errors import Race
from tests.gpu.ptx.memory import Allocation
from tests.gpu.ptx.operands import Array

_GRANULE = 2  # bytes of the smallest number
_EPOCHS = np.int64(1 << 24)


class Races:
    """Stamps of all accesses of a launch to memory that it writes.

    A stamp is the warp's number in the launch and how many barriers its program had passed.

    Args:
        programs: that run at the same time.
        warps: of a program.
    """

    def __init__(self, programs: int, warps: int) -> None:
        self.warps = warps
        self.first = 0
        self.passed = np.zeros(programs, np.int64)
        self.stamps: dict[int, tuple[Array, Array]] = {}  # of writes and reads, by allocation

    def start(self, first: int) -> None:
        """Programs from number `first` on begin."""
        self.first = first
        self.passed[:] = 0

    def synchronize(self, programs: Array) -> None:
        """These programs, counted from the first that runs, pass a barrier."""
        self.passed[programs] += 1

    def read(self, one: Allocation, offsets: Array, lanes: Array) -> None:
        """Lanes read numbers at offsets from the window's start.

        Raises:
            Race: if another program wrote there, or another warp and no barrier lies between.
        """
        stamps = self.stamps.get(id(one))
        if stamps is None:
            return
        written, read = stamps
        own = self._stamp(lanes)
        at = offsets // _GRANULE
        self._compare(written[at], own, f"read of {one.name}, which", "wrote", elsewhere=True)
        read[at] = own

    def write(self, one: Allocation, offsets: Array, lanes: Array, width: int) -> None:
        """As `read`, for lanes that write `width` bytes each."""
        stamps = self.stamps.get(id(one))
        if stamps is None:
            length = len(one.window) // _GRANULE
            stamps = np.zeros(length, np.int64), np.zeros(length, np.int64)
            self.stamps[id(one)] = stamps
        written, read = stamps
        own = self._stamp(lanes)
        at = offsets // _GRANULE
        self._compare(read[at], own, f"write to {one.name}, which", "read", elsewhere=False)
        for part in range(max(1, width // _GRANULE)):
            written[at + part] = own

    def _stamp(self, lanes: Array) -> Array:
        warps = lanes >> 5
        return (warps + self.first * self.warps + 1) * _EPOCHS + self.passed[warps // self.warps]

    def _compare(self, found: Array, own: Array, what: str, did: str, *, elsewhere: bool) -> None:
        warps, mine = found // _EPOCHS - 1, own // _EPOCHS - 1
        programs, my_programs = warps // self.warps, mine // self.warps
        known = found > 0
        if elsewhere:
            _complain(known & (programs != my_programs), programs, f"{what} program", did)
        same = (programs == my_programs) & (found % _EPOCHS == own % _EPOCHS)
        _complain(known & same & (warps != mine), warps % self.warps, f"{what} warp", did)


def _complain(wrong: Array, who: Array, what: str, did: str) -> None:
    if wrong.any():
        raise Race(f"{what} {int(who[wrong][0])} {did} without a barrier between")
