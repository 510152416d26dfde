"""Address spaces. Every access is checked before it happens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.gpu.ptx.errors import MemoryFault
from tests.gpu.ptx.meter import space_of
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
_ACCESSES = ("ld", "ldu", "st", "atom", "red")


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

    @property
    def host(self) -> int:
        """The host's address of the window."""
        return self.window.ctypes.data

    def rows(self, element: int, count: int) -> Array:
        """The window as rows of `count` unsigned integers."""
        return self.window.view(UNSIGNED[element]).reshape(-1, count)


def _host_bytes(address: int, size: int) -> Array:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def narrowest(kernel: Kernel, space: str) -> int:
    """Bytes of a kernel's narrowest numbers in a space: races are told apart at this width."""
    widths = [16]
    for instruction in kernel.instructions:
        opcode = instruction.opcode
        if opcode[0] == "cp":
            widths.append(4)
        elif opcode[0] in _ACCESSES and space_of(instruction) in (space, "generic"):
            widths.append(SIZE.get(opcode[-1], 1))
    return min(widths)


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
        held = sorted((one for one in self.allocations if one.size), key=lambda one: one.host)
        ends = [one.host + len(one.window) for one in held]
        apart = all(end <= after.host for end, after in zip(ends, held[1:], strict=False))
        read, written = (
            _different([(one.host // _SECTOR, marks(one)) for one in held], apart)
            for marks in (lambda one: one.read, lambda one: one.written)
        )
        return read, written


def _different(marked: list[tuple[int, Array]], apart: bool) -> int:
    """How many sectors are marked; by their first sector and marks of the ones that follow."""
    if apart:
        return sum(int(np.count_nonzero(marks)) for _, marks in marked)
    return int(np.unique(np.concatenate([s + np.flatnonzero(m) for s, m in marked])).size)


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
