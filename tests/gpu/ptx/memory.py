"""Address spaces. Every access is checked before it happens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.gpu.ptx.errors import MemoryFault, Race, UninitializedRead
from tests.gpu.ptx.operands import Array, At
from tests.gpu.ptx.parse import Kernel
from tests.gpu.ptx.types import SIZE, UNSIGNED

# Every allocation gets a region of addresses to itself, so that what runs over the end of one
# tensor never meets the next one. Address 0 and its neighbours belong to nobody.
_REGION = 40
_MIDDLE = 1 << (_REGION - 1)
# Alignment of addresses is the one of the host modulo this.
_ALIGNMENT = 512
_SECTOR = 32


@dataclass
class Allocation:
    """Bytes that a kernel may touch.

    Attributes:
        name: for messages.
        base: address of the first byte.
        size: bytes.
        origin: address of `window`'s first byte, a multiple of 32.
        window: the bytes of whole sectors around the allocation; only its own are touched.
        member: which elements of a tensor with gaps are its own, and their size.
    """

    name: str
    base: int
    size: int
    origin: int
    window: Array
    writable: bool = True
    member: tuple[Array, int] | None = None
    owner: Any = None
    read: Array = field(init=False)
    written: Array = field(init=False)

    def __post_init__(self) -> None:
        self.read = np.zeros(len(self.window) // _SECTOR, np.bool_)
        self.written = np.zeros(len(self.window) // _SECTOR, np.bool_)

    def rows(self, element: int, count: int) -> Array:
        """The window as rows of `count` unsigned integers."""
        return self.window.view(UNSIGNED[element]).reshape(-1, count)


def _host_bytes(address: int, size: int) -> Array:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class GlobalMemory:
    """Tensors and module variables, and the check that accesses stay inside of them."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self._tensors: dict[tuple[int, ...], int] = {}

    def _add(self, name: str, host: int, size: int, **more: Any) -> Allocation:
        region = (len(self.allocations) + 1) << _REGION
        base = region + _MIDDLE + host % _ALIGNMENT
        before = host % _SECTOR
        length = -(-(before + size) // _SECTOR) * _SECTOR
        window = _host_bytes(host - before, length) if size else np.empty(0, np.uint8)
        made = Allocation(name, base, size, base - before, window, **more)
        self.allocations.append(made)
        return made

    def add_tensor(self, name: str, tensor: Tensor, *, writable: bool = True) -> int:
        """Register a CPU tensor; the address that the kernel gets for it."""
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} lies on {tensor.device}")
        key = (tensor.data_ptr(), tensor.element_size(), *tensor.shape, *tensor.stride(), writable)
        if key in self._tensors:
            return self._tensors[key]
        item = tensor.element_size()
        extent = 0
        if tensor.numel():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            extent = 1 + sum((size - 1) * stride for size, stride in steps)
        member = None
        if extent > tensor.numel() and 0 not in tensor.stride():
            own = torch.zeros(extent, dtype=torch.bool)
            own.as_strided(tensor.shape, tensor.stride()).fill_(True)
            member = (own.numpy(), item)
        made = self._add(
            name, tensor.data_ptr(), extent * item, writable=writable, member=member, owner=tensor
        )
        self._tensors[key] = made.base
        return made.base

    def add_variables(self, kernel: Kernel) -> dict[str, int]:
        """Lay out the module's .global and .const variables."""
        found = {}
        for name, variable in kernel.variables.items():
            if variable.space not in ("global", "const"):
                continue
            data = np.zeros(variable.size + 2 * _ALIGNMENT, np.uint8)
            start = -data.ctypes.data % _ALIGNMENT
            data[start : start + len(variable.data)] = np.frombuffer(variable.data, np.uint8)
            found[name] = self._add(
                name,
                data.ctypes.data + start,
                variable.size,
                writable=variable.space == "global",
                owner=data,
            ).base
        return found

    def find(
        self, addresses: Array, width: int, *, store: bool
    ) -> Iterator[tuple[Allocation, Any]]:
        """Check accesses of `width` bytes; which allocations they touch, and which of them.

        Raises:
            MemoryFault: for the first access that is not inside of a tensor or not aligned.
        """
        if (addresses & np.uint64(width - 1)).any():
            bad = int(addresses[(addresses & np.uint64(width - 1)) != 0][0])
            raise MemoryFault(f"misaligned access of {width} bytes at {self.describe(bad)}")
        low, high = int(addresses.min()), int(addresses.max())
        index = (low >> _REGION) - 1
        if 0 <= index < len(self.allocations):
            one = self.allocations[index]
            if one.base <= low and high + width <= one.base + one.size:
                self._allow(one, addresses, width, store)
                yield one, slice(None)
                return
        regions = (addresses >> np.uint64(_REGION)).astype(np.int64) - 1
        for index in np.unique(regions):
            chosen = np.flatnonzero(regions == index)
            part = addresses[chosen]
            inside = np.zeros(part.shape, np.bool_)
            if 0 <= index < len(self.allocations):
                one = self.allocations[index]
                last = one.base + one.size - width
                inside = (part >= np.uint64(one.base)) & (part <= np.uint64(max(last, 0)))
            if not inside.all():
                bad = int(part[~inside][0])
                kind = "store to" if store else "read of"
                raise MemoryFault(f"{kind} {width} bytes at {self.describe(bad)}")
            self._allow(one, part, width, store)
            yield one, chosen

    def _allow(self, one: Allocation, addresses: Array, width: int, store: bool) -> None:
        if store and not one.writable:
            raise MemoryFault(f"store to read-only {self.describe(int(addresses[0]))}")
        if one.member is not None:
            own, item = one.member
            elements = (addresses - np.uint64(one.base)) // np.uint64(item)
            for extra in range(max(1, width // item)):
                gaps = ~own[elements + np.uint64(extra)]
                if gaps.any():
                    bad = int(addresses[gaps][0]) + extra * item
                    raise MemoryFault(f"access between elements: {self.describe(bad)}")

    def describe(self, address: int) -> str:
        """Where an address is, relative to the nearest tensor."""
        index = (address >> _REGION) - 1
        if not 0 <= index < len(self.allocations):
            return f"address {address:#x}, which belongs to no tensor that was passed"
        one = self.allocations[index]
        offset = address - one.base
        shape = f" {tuple(one.owner.shape)}" if isinstance(one.owner, Tensor) else ""
        return f"address {address:#x}: {one.name}{shape} of {one.size} bytes, offset {offset}"

    def sectors(self) -> tuple[int, int]:
        """Different sectors read and written so far, counted once where tensors overlap."""
        totals = []
        for kind in ("read", "written"):
            keys = [
                np.flatnonzero(getattr(one, kind)) + one.window.ctypes.data // _SECTOR
                for one in self.allocations
                if one.size
            ]
            totals.append(int(np.unique(np.concatenate(keys)).size) if keys else 0)
        return totals[0], totals[1]


def _granule(kernel: Kernel) -> int:
    """The narrowest access to shared memory: races are told apart at this width."""
    widths = [16]
    for instruction in kernel.instructions:
        if instruction.opcode[0] in ("ld", "st", "atom", "red", "cp", "ldmatrix", "stmatrix"):
            kind = instruction.opcode[-1]
            plain = instruction.opcode[0] in ("ld", "st", "atom", "red")
            if "global" not in instruction.opcode and "param" not in instruction.opcode and plain:
                widths.append(SIZE[kind])
            elif instruction.opcode[0] == "cp":
                widths.append(4)
    return min(widths)


class SharedMemory:
    """Shared memory of the programs of a chunk, with who wrote and read what since a barrier.

    A read of bytes that nobody wrote raises, and so do accesses of two warps to the same bytes, one
    of them a write, without a barrier between them. Barriers of some of a program's warps count for
    all of them: races across those are not seen.
    """

    def __init__(self, kernel: Kernel, programs: int, size: int, threads: int) -> None:
        self.size = size
        self.stride = -(-size // 128) * 128
        self.threads = threads
        self.granule = _granule(kernel) if size else 16
        self.kernel = kernel
        lanes = np.arange(programs * threads)
        self.base = (lanes // threads * self.stride).astype(np.int64)
        self.warp = (lanes % threads // 32 + 1).astype(np.int32)
        self.bytes = np.empty(programs * self.stride, np.uint8)
        granules = programs * self.stride // self.granule
        # 0, or (warp + 1) << 20 | instruction; readers: _MANY once several warps have read.
        self.writer = np.zeros(granules, np.int32)
        self.reader = np.zeros(granules, np.int32)
        self.known = np.zeros(granules, np.bool_)

    _WARP, _ATOMIC, _MANY = 20, 1 << 29, 1 << 30

    def reset(self) -> None:
        """Forget everything: new programs come."""
        self.bytes.fill(0xFF)
        self.writer.fill(0)
        self.reader.fill(0)
        self.known.fill(False)

    def synchronize(self, at: At) -> None:
        """A barrier of the programs of the lanes `at`."""
        if not self.size:
            return
        first, last = (at.start, at.stop - 1) if isinstance(at, slice) else (at[0], at[-1])
        per = self.stride // self.granule
        begin, end = int(first) // self.threads * per, (int(last) // self.threads + 1) * per
        if isinstance(at, slice):
            self.writer[begin:end] = 0
            self.reader[begin:end] = 0
            return
        programs = np.unique(at // self.threads)
        self.writer.reshape(-1, per)[programs] = 0
        self.reader.reshape(-1, per)[programs] = 0

    def offsets(self, at: At, addresses: Array, width: int) -> Array:
        """Check addresses in the window of shared memory; offsets into `bytes`."""
        addresses = np.asarray(addresses, np.int64)
        if (addresses & (width - 1)).any():
            bad = int(addresses[(addresses & (width - 1)) != 0][0])
            raise MemoryFault(f"misaligned access of {width} bytes at shared address {bad}")
        outside = (addresses < 0) | (addresses > self.size - width)
        if outside.any():
            bad = int(np.broadcast_to(addresses, outside.shape)[outside][0])
            raise MemoryFault(f"{width} bytes at shared address {bad} of {self.size}")
        return self.base[at] + addresses

    def note_read(self, at: At, offsets: Array, width: int, pc: int) -> None:
        """Check that the bytes are known and that no other warp wrote them since the barrier."""
        warp = self.warp[at]
        mark = (warp << self._WARP) | np.int32(pc)
        for part in range(0, width, self.granule):
            places = (offsets + part) // self.granule
            if not self.known[places].all():
                bad = int(offsets[~self.known[places]][0] % self.stride) + part
                raise UninitializedRead(f"shared address {bad} was never written")
            writers = self.writer[places]
            raced = (writers != 0) & (writers >> self._WARP != warp)
            if raced.any():
                self._raise("read", "written", (offsets + part)[raced], writers[raced])
            readers = self.reader[places]
            several = (readers != 0) & (readers >> self._WARP != warp)
            self.reader[places] = np.where(several, self._MANY | pc, mark)
            # Of several readers in this one instruction only the last is on record.
            self.reader[places[self.reader[places] >> self._WARP != warp]] = self._MANY | pc

    def note_write(self, at: At, offsets: Array, width: int, pc: int) -> None:
        """Check that no other warp read or wrote the bytes since the barrier."""
        warp = self.warp[at]
        mark = (warp << self._WARP) | np.int32(pc)
        for part in range(0, width, self.granule):
            places = (offsets + part) // self.granule
            for what, marks in (("written", self.writer[places]), ("read", self.reader[places])):
                raced = (marks != 0) & (marks >> self._WARP != warp)
                if raced.any():
                    self._raise("write", what, (offsets + part)[raced], marks[raced])
            self.writer[places] = mark
            self.known[places] = True
            raced = self.writer[places] >> self._WARP != warp
            if raced.any():
                self._raise("write", "written", (offsets + part)[raced], self.writer[places][raced])

    def note_atomic(self, at: At, offsets: Array, width: int, pc: int) -> None:
        """Atomics of several warps are no race, but plain accesses among them are."""
        warp = self.warp[at]
        for part in range(0, width, self.granule):
            places = (offsets + part) // self.granule
            if not self.known[places].all():
                bad = int(offsets[~self.known[places]][0] % self.stride) + part
                raise UninitializedRead(f"shared address {bad} was never written")
            writers, readers = self.writer[places], self.reader[places]
            for what, marks in (("written", writers), ("read", readers)):
                raced = (marks != 0) & (marks >> self._WARP != warp) & (marks & self._ATOMIC == 0)
                if raced.any():
                    self._raise("atomic", what, (offsets + part)[raced], marks[raced])
            self.writer[places] = self._ATOMIC | pc

    def _raise(self, now: str, before: str, places: Array, marks: Array) -> None:
        mark = int(marks[0])
        other = self.kernel.instructions[mark & ((1 << self._WARP) - 1)]
        address = int(places[0] % self.stride)
        several = mark & (self._MANY | self._ATOMIC)
        who = "several warps" if several else f"warp {(mark >> self._WARP) - 1}"
        raise Race(
            f"{now} of shared address {address}, which {who} "
            f"{before} since the last barrier by {other}"
        )

    def rows(self, element: int, count: int) -> Array:
        """All bytes as rows of `count` unsigned integers."""
        return self.bytes.view(UNSIGNED[element]).reshape(-1, count)


class LocalMemory:
    """Private memory of every lane; reads of what was never written raise."""

    def __init__(self, kernel: Kernel, lanes: int) -> None:
        self.size = kernel.sizes.get("local", 0)
        self.stride = -(-self.size // 16) * 16
        self.base = np.arange(lanes) * self.stride
        self.bytes = np.empty(lanes * self.stride, np.uint8)
        self.known = np.empty(lanes * self.stride, np.bool_)

    def reset(self) -> None:
        """Forget everything: new programs come."""
        self.bytes.fill(0xFF)
        self.known.fill(False)

    def offsets(self, at: At, addresses: Array, width: int) -> Array:
        """Check addresses; offsets into `bytes`."""
        addresses = np.asarray(addresses, np.int64)
        wrong = (addresses < 0) | (addresses > self.size - width) | (addresses % width != 0)
        if wrong.any():
            bad = int(np.broadcast_to(addresses, wrong.shape)[wrong][0])
            raise MemoryFault(f"{width} bytes at local address {bad} of {self.size}")
        return self.base[at] + addresses

    def rows(self, element: int, count: int) -> Array:
        """All bytes as rows of `count` unsigned integers."""
        return self.bytes.view(UNSIGNED[element]).reshape(-1, count)
