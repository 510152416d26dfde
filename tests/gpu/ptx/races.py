"""Races in global memory: who wrote and who read a number last, and what lies between.

Within a launch a program may read what it wrote itself, after a barrier if another warp did. What
other programs wrote or read it may touch only behind a release and an acquire (`clocks`): else
programs run in any order. Loads by way of the cache that is not coherent (ld.global.nc) must read
nothing that the launch wrote, in whatever order.

Atomics and other strong accesses (ld and st that are relaxed, volatile, acquire or release) are no
races with one another, but with plain accesses they are. Of their scopes it is only looked at what
orders programs.

What is noted of every number is the last plain write, the last strong one, the last read and the
last read by another program than that. So a race may hide behind later harmless accesses: a write
behind reads of three programs is not compared with the first one's, even if it is ordered behind
the others only. Strong loads are compared with what was written before, not with what is written
later. Writes of two warps of a program are compared only if one of them is strong: a warp may write
copies of what others do.
"""

from __future__ import annotations

import numpy as np

from tests.gpu.ptx.clocks import Clocks
from tests.gpu.ptx.errors import Race
from tests.gpu.ptx.manner import Manner, orders
from tests.gpu.ptx.memory import Allocation, GlobalMemory, narrowest
from tests.gpu.ptx.operands import Array
from tests.gpu.ptx.parse import Kernel

# Bits of a stamp that count barriers.
_EPOCH = 24
_PASSED = (1 << _EPOCH) - 1


class _Stamps:
    """Of the last accesses to all numbers from an address of the host on; 0 is nobody's.

    Tensors that overlap share them.
    """

    def __init__(self, start: int, numbers: int) -> None:
        self.start = start
        self.written = np.zeros(numbers, np.int64)
        self.changed: Array | None = None  # by strong writes
        self.read = np.zeros(numbers, np.int64)
        self.elsewhere = np.zeros(numbers, np.int64)  # read by another program than `read`'s


def _lay_out(allocations: list[Allocation], granule: int) -> dict[int, _Stamps]:
    """Stamps by allocation."""
    found: dict[int, _Stamps] = {}
    together: list[Allocation] = []
    end = 0

    def finish() -> None:
        if together:
            start = together[0].host
            stamps = _Stamps(start, (end - start) // granule)
            found.update((id(one), stamps) for one in together)
            together.clear()

    for one in sorted((one for one in allocations if one.size), key=lambda one: one.host):
        if one.host >= end:
            finish()
        together.append(one)
        end = max(end, one.host + len(one.window))
    finish()
    return found


class Races:
    """Stamps of all accesses of a launch to global memory.

    A stamp is the warp's number in the launch and how many barriers its program had passed.

    Args:
        kernel: whose accesses come.
        memory: with all that the kernel may touch.
        programs: that run at the same time.
        warps: of a program.
    """

    def __init__(self, kernel: Kernel, memory: GlobalMemory, programs: int, warps: int) -> None:
        self.warps = warps
        self.first = 0
        self.now = np.zeros(programs * warps, np.int64)  # stamps of the warps that run
        self.granule = narrowest(kernel, "global")
        self.stamps = _lay_out(memory.allocations, self.granule)
        self.clocks = Clocks(programs, warps) if orders(kernel) else None
        self.behind = False  # somebody has seen an older value than the latest

    def start(self, first: int, programs: int) -> None:
        """Programs from number `first` on begin."""
        self.first = first
        self.now[:] = (first * self.warps + 1 + np.arange(self.now.size)) << _EPOCH
        if self.clocks:
            self.clocks.start(first, programs)

    def synchronize(self, programs: Array) -> None:
        """These programs, counted from the first that runs, pass a barrier."""
        self.now.reshape(-1, self.warps)[programs] += 1
        if self.clocks:
            self.clocks.synchronize(programs)

    def read(
        self, one: Allocation, offsets: Array, lanes: Array, width: int, manner: Manner
    ) -> None:
        """Lanes read `width` bytes each at offsets from the window's start.

        Raises:
            Race: see above.
        """
        stamps, places, own = self._find(one, offsets, lanes, width)
        what = f"read of {one.name}, which"
        if not manner.coherent:
            self._demand_unwritten(one, stamps, places)
        self._compare(stamps.written[places], own, what, "wrote")
        if not manner.strong:
            if stamps.changed is not None:
                self._compare(stamps.changed[places], own, what, "changed", strong=True)
            self._note_read(stamps, places, own)

    def write(
        self, one: Allocation, offsets: Array, lanes: Array, width: int, manner: Manner
    ) -> None:
        """As `read`, for lanes that write or execute an atomic."""
        stamps, places, own = self._find(one, offsets, lanes, width)
        what = f"{'change of' if manner.strong else 'write to'} {one.name}, which"
        for read in (stamps.read, stamps.elsewhere):
            self._compare(read[places], own, what, "read")
        self._compare(stamps.written[places], own, what, "wrote", copies=not manner.strong)
        if manner.strong:
            if stamps.changed is None:
                stamps.changed = np.zeros_like(stamps.read)
            stamps.changed[places] = own
            return
        if self.clocks:
            self.clocks.forget(one.host + offsets, width)
        if stamps.changed is not None:
            self._compare(stamps.changed[places], own, what, "changed", strong=True)
        stamps.written[places] = own
        # Of several lanes that write one number now, one is the last.
        self._compare(stamps.written[places], own, what, "wrote", copies=True)

    def see(
        self, one: Allocation, offsets: Array, lanes: Array, rows: Array, manner: Manner
    ) -> None:
        """Strong loads that have read these rows see older values, if they may."""
        if self.clocks:
            addresses = one.host + offsets
            self.behind |= self.clocks.load(addresses, lanes >> 5, rows[:, 0], manner)

    def publish(
        self,
        one: Allocation,
        offsets: Array,
        lanes: Array,
        rows: tuple[Array, Array],
        manner: Manner,
    ) -> None:
        """Strong writes have found rows, and left others."""
        if self.clocks:
            before, behind = rows
            addresses = one.host + offsets
            self.clocks.store(addresses, lanes >> 5, before[:, 0], behind[:, 0], manner)

    def fence(self, lanes: Array, manner: Manner) -> None:
        """Lanes execute a fence."""
        if self.clocks:
            self.clocks.fence(lanes >> 5, manner)

    def _find(
        self, one: Allocation, offsets: Array, lanes: Array, width: int
    ) -> tuple[_Stamps, Array, Array]:
        """Where stamps of accesses are, a row for every lane, and the lanes' own."""
        stamps = self.stamps[id(one)]
        first = (one.host - stamps.start + offsets) // self.granule
        places = first[:, None] + np.arange(max(1, width // self.granule))
        return stamps, places, np.broadcast_to(self.now[lanes >> 5][:, None], places.shape)

    def _note_read(self, stamps: _Stamps, places: Array, own: Array) -> None:
        before = stamps.read[places]
        stamps.read[places] = own
        now = stamps.read[places]
        # Lanes of several programs may read one number, of which one is the last.
        for other in (before, own):
            apart = (other >> _EPOCH != now >> _EPOCH) & (other != 0)
            if apart.any():
                apart[apart] = self._program(other[apart]) != self._program(now[apart])
                stamps.elsewhere[places[apart]] = other[apart]

    def _program(self, stamps: Array) -> Array:
        return ((stamps >> _EPOCH) - 1) // self.warps

    def _demand_unwritten(self, one: Allocation, stamps: _Stamps, places: Array) -> None:
        for marks in (stamps.written, stamps.changed):
            if marks is not None and marks[places].any():
                found = marks[places]
                raise Race(
                    f"read of {one.name}, which program {self._program(found[found != 0])[0]} of"
                    " this launch wrote, by way of the cache that is not coherent"
                )

    def _compare(
        self,
        found: Array,
        own: Array,
        what: str,
        did: str,
        *,
        copies: bool = False,
        strong: bool = False,
    ) -> None:
        """Complain of stamps found that are neither of the own warp nor ordered before it.

        With `copies`, other warps of the own program may do the same. If the stamps are `strong`,
        releases of the same stretch between barriers publish what was done: they may be it.
        """
        other = (found >> _EPOCH != own >> _EPOCH) & (found != 0)
        if not other.any():
            return
        found, own = found[other], own[other]
        programs, passed = self._program(found), found & _PASSED
        apart = programs != self._program(own)
        near = ~apart & (passed == own & _PASSED)
        if self.clocks and apart.any():
            warps = (own[apart] >> _EPOCH) - 1 - self.first * self.warps
            apart[apart] = ~self.clocks.knows(warps, programs[apart], passed[apart] - strong)
        if apart.any():
            raise Race(
                f"{what} program {programs[apart][0]} {did} without a release and an acquire"
                " between"
            )
        if near.any() and not copies:
            warp = ((found[near][0] >> _EPOCH) - 1) % self.warps
            raise Race(f"{what} warp {warp} {did} without a barrier between")
