"""Shared memory of programs: who has written and read what since the last barrier."""

from __future__ import annotations

import numpy as np

from tests.gpu.ptx.errors import MemoryFault, Race, UninitializedRead
from tests.gpu.ptx.memory import narrowest
from tests.gpu.ptx.operands import Array, At
from tests.gpu.ptx.parse import Kernel
from tests.gpu.ptx.types import UNSIGNED, differ


class SharedMemory:
    """Shared memory of the programs of a chunk.

    Reads of bytes that nobody wrote raise, and so do accesses of two warps to the same bytes, one
    of them a write, without a barrier between them. Not a race: copies of one value that several
    warps write by the same instruction, as Triton has it for data that warps hold in common.

    Barriers of some of a program's warps count for all of them: races across those are not seen,
    nor are races of lanes of one warp.

    Args:
        kernel: whose accesses come.
        programs: of the chunk.
        size: bytes of one program.
        threads: of one program.
    """

    def __init__(self, kernel: Kernel, programs: int, size: int, threads: int) -> None:
        self.size = size
        self.stride = -(-size // 128) * 128
        self.threads = threads
        self.granule = narrowest(kernel, "shared") if size else 16
        self.kernel = kernel
        lanes = np.arange(programs * threads)
        self.base = (lanes // threads * self.stride).astype(np.int64)
        self.warp = np.uint32(1) << (lanes % threads // 32).astype(np.uint32)
        self.bytes = np.empty(programs * self.stride, np.uint8)
        granules = programs * self.stride // self.granule
        # Sets of warps as bits, and the last instruction to write and to read.
        self.writers = np.zeros(granules, np.uint32)
        self.readers = np.zeros(granules, np.uint32)
        self.writer = np.zeros(granules, np.int32)
        self.reader = np.zeros(granules, np.int32)
        self.atomic = np.zeros(granules, np.bool_)
        self.known = np.zeros(granules, np.bool_)

    def reset(self) -> None:
        """Forget everything: new programs come."""
        self.bytes.fill(0xFF)
        self.writers.fill(0)
        self.readers.fill(0)
        self.atomic.fill(False)
        self.known.fill(False)

    def synchronize(self, at: At) -> None:
        """A barrier of the programs of the lanes `at`."""
        if not self.size:
            return
        per = self.stride // self.granule
        if isinstance(at, slice):
            programs = slice(at.start // self.threads, (at.stop - 1) // self.threads + 1)
        else:
            programs = np.unique(at // self.threads)
        for marks in (self.writers, self.readers, self.atomic):
            marks.reshape(-1, per)[programs] = 0

    def rows(self, element: int, count: int) -> Array:
        """All bytes as rows of `count` unsigned integers."""
        return self.bytes.view(UNSIGNED[element]).reshape(-1, count)

    def offsets(self, at: At, addresses: Array, width: int) -> Array:
        """Check addresses in the window of shared memory; offsets into `bytes`."""
        addresses = np.asarray(addresses, np.int64)
        if (addresses & (width - 1)).any():
            bad = int(addresses[(addresses & (width - 1)) != 0][0])
            raise MemoryFault(f"misaligned access of {width} bytes at shared address {bad}")
        outside = (addresses < 0) | (addresses > self.size - width)
        if outside.any():
            bad = int(addresses[outside][0])
            raise MemoryFault(f"{width} bytes at shared address {bad} of {self.size}")
        return self.base[at] + addresses

    def load(self, at: At, offsets: Array, form: tuple[int, int], pc: int) -> Array:
        """Rows of `form[1]` integers of `form[0]` bytes.

        Raises:
            UninitializedRead: nobody wrote there.
            Race: another warp wrote there since the barrier.
        """
        width = form[0] * form[1]
        warp = self.warp[at]
        for part in range(0, width, self.granule):
            places = (offsets + part) // self.granule
            self._demand_known(offsets + part, places)
            writers = self.writers[places]
            raced = (writers != 0) & (writers & warp == 0)
            if raced.any():
                self._complain("read", "wrote", offsets + part, raced)
            _mark(self.readers, places, warp)
            self.reader[places] = pc
        return self.rows(*form)[offsets // width]

    def claim(self, at: At, offsets: Array, width: int, pc: int) -> None:
        """Lanes begin to write; the bytes are unknown until they are stored.

        Raises:
            Race: another warp accessed them since the barrier.
        """
        warp = self.warp[at]
        for part in range(0, width, self.granule):
            places = (offsets + part) // self.granule
            raced = (self.readers[places] & ~warp) != 0
            if raced.any():
                self._complain("write", "read", offsets + part, raced)
            raced = ((self.writers[places] & ~warp) != 0) & (self.writer[places] != pc)
            if raced.any():
                self._complain("write", "wrote", offsets + part, raced)
            _mark(self.writers, places, warp)
            self.writer[places] = pc
            self.known[places] = False

    def store(self, at: At, offsets: Array, rows: Array, pc: int) -> None:
        """Write rows of unsigned integers.

        Raises:
            Race: see `claim`, or several lanes write different values in one instruction.
        """
        width = rows.itemsize * rows.shape[1]
        target, index = self.rows(rows.itemsize, rows.shape[1]), offsets // width
        first = offsets // self.granule
        repeated = (self.writers[first] & ~self.warp[at] != 0) & (self.writer[first] == pc)
        repeated &= self.known[first]
        differs = differ(target[index], rows) & repeated
        if differs.any():
            self._complain("write", "wrote", offsets, differs)
        self.claim(at, offsets, width, pc)
        target[index] = rows
        differs = differ(target[index], rows)
        if differs.any():
            bad = int(offsets[differs][0] % self.stride)
            raise Race(f"lanes write different values to shared address {bad}")
        for part in range(0, width, self.granule):
            self.known[(offsets + part) // self.granule] = True

    def note_atomic(self, at: At, offsets: Array, width: int, pc: int) -> None:
        """Atomics of several warps are no race, but plain accesses among them are."""
        warp = self.warp[at]
        for part in range(0, width, self.granule):
            places = (offsets + part) // self.granule
            self._demand_known(offsets + part, places)
            raced = (self.readers[places] & ~warp) != 0
            if raced.any():
                self._complain("atomic", "read", offsets + part, raced)
            raced = ((self.writers[places] & ~warp) != 0) & ~self.atomic[places]
            if raced.any():
                self._complain("atomic", "wrote", offsets + part, raced)
            _mark(self.writers, places, warp)
            self.writer[places] = pc
            self.atomic[places] = True

    def _demand_known(self, offsets: Array, places: Array) -> None:
        known = self.known[places]
        if not known.all():
            bad = int(offsets[~known][0] % self.stride)
            raise UninitializedRead(f"shared address {bad} was never written")

    def _complain(self, now: str, before: str, offsets: Array, raced: Array) -> None:
        place = int(offsets[raced][0])
        writes = before == "wrote"
        warps = int((self.writers if writes else self.readers)[place // self.granule])
        pc = int((self.writer if writes else self.reader)[place // self.granule])
        who = ", ".join(str(warp) for warp in range(32) if warps >> warp & 1)
        raise Race(
            f"{now} of shared address {place % self.stride}, which warps {who} {before}"
            f" since the last barrier by {self.kernel.instructions[pc]}"
        )


def _mark(sets: Array, places: Array, warp: Array) -> None:
    """Add warps to the sets at places, of which several lanes may share one."""
    while True:
        found = sets[places]
        left = (found & warp) == 0
        if not left.any():
            return
        places, warp = places[left], warp[left]
        sets[places] = found[left] | warp
