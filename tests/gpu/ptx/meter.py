"""What a launch executed: instructions of warps, memory traffic in sectors of 32 bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

from tests.gpu.ptx.operands import Array, At
from tests.gpu.ptx.parse import Instruction, Kernel
from tests.gpu.ptx.types import SIZE

_SFU = ("ex2", "lg2", "sin", "cos", "rcp", "rsqrt", "sqrt", "tanh", "div")
_SYNC = ("bar", "barrier", "membar", "fence")
_EXCHANGE = ("shfl", "vote", "match", "activemask", "redux")
_VECTORS = ("v2", "v4", "v8")
_ASYNC = ("cp", "ldmatrix", "stmatrix", "movmatrix")


def _is_float(kind: str) -> bool:
    return kind[0] == "f" or kind.startswith("bf")


def space_of(instruction: Instruction) -> str:
    """The address space that an instruction names, else generic."""
    for part in instruction.opcode[1:]:
        space = part.split("::")[0]
        if space in ("global", "shared", "local", "param", "const"):
            return space
    return "generic"


def classify(instruction: Instruction) -> str:
    """The class under which an instruction is counted, such as fma.f32, ld.global or bar."""
    opcode = instruction.opcode
    name, kind = opcode[0], opcode[-1]
    if name in ("ld", "st", "ldu"):
        return f"{name[:2]}.{space_of(instruction)}"
    if name in ("atom", "red"):
        return f"{name}.{space_of(instruction)}"
    if name == "mma":
        return "mma." + ".".join(opcode[3:])
    if name in _ASYNC:
        return ".".join(opcode[:2]) if name == "cp" else name
    if name in _SYNC:
        return "barrier" if name in ("bar", "barrier") else "fence"
    if name in _EXCHANGE:
        return name
    if name in ("bra", "ret", "exit"):
        return "control"
    if name in ("mov", "cvta"):
        return "mov"
    if name == "cvt":
        return "cvt"
    if name in _SFU and _is_float(kind):
        return "special"
    if name in ("fma", "mad") and _is_float(kind):
        return f"fma.{kind}"
    if kind in SIZE and _is_float(kind):
        return f"float.{kind}"
    return "integer"


@dataclass
class Traffic:
    """Accesses of one kind.

    Attributes:
        instructions: of warps with at least one lane that takes part.
        lanes: that take part.
        sectors: of 32 bytes that the instructions ask for, each instruction of a warp by itself.
        conflicts: further passes over shared memory because of its banks.
    """

    instructions: int = 0
    lanes: int = 0
    sectors: int = 0
    bytes: int = 0
    conflicts: int = 0

    def __iadd__(self, other: Traffic) -> Traffic:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Counts:
    """Gathers while a kernel runs; by instruction."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._edges = [0] * (len(kernel.instructions) + 1)
        self.traffic: dict[tuple[int, bool], Traffic] = {}  # by instruction, and whether shared

    def issued(self, first: int, end: int, warps: int) -> None:
        """Warps have executed the instructions from `first` up to before `end`."""
        self._edges[first] += warps
        self._edges[end] -= warps

    def by_class(self) -> Counter[str]:
        """Instructions of warps."""
        total: Counter[str] = Counter()
        executed = accumulate(self._edges)
        for instruction, times in zip(self.kernel.instructions, executed, strict=False):
            if times:
                total[classify(instruction)] += times
        return total

    def access(self, instruction: Instruction, at: At, addresses: Array, width: int) -> None:
        """Lanes `at` access `width` bytes each at aligned addresses."""
        sectors = addresses >> np.asarray(5, addresses.dtype)
        instructions, different = _per_warp(at, sectors)
        extra = max(1, width // 32)
        self.traffic.setdefault((instruction.index, False), Traffic())
        self.traffic[instruction.index, False] += Traffic(
            instructions, addresses.size, different * extra, addresses.size * width
        )

    def shared(self, instruction: Instruction, at: At, offsets: Array, width: int) -> None:
        """Lanes `at` access `width` bytes each of shared memory."""
        instructions, passes, least = _bank_passes(at, offsets, width)
        self.traffic.setdefault((instruction.index, True), Traffic())
        self.traffic[instruction.index, True] += Traffic(
            instructions, offsets.size, 0, offsets.size * width, passes - least
        )


def _matrix(at: At, values: Array, fill: Any) -> Array:
    """Values of lanes as rows of warps, other lanes filled."""
    if isinstance(at, slice) and at.start % 32 == 0 and at.stop % 32 == 0:
        return values.reshape(-1, 32)
    lanes = np.arange(at.start, at.stop) if isinstance(at, slice) else at
    warps, row = np.unique(lanes >> 5, return_inverse=True)
    full = np.full((len(warps), 32), fill, values.dtype)
    full[row, lanes & 31] = values
    return full


def _per_warp(at: At, values: Array) -> tuple[int, int]:
    """How many warps, and how many different values in every warp, summed."""
    none = np.iinfo(values.dtype).max
    rows = _matrix(at, values, none)
    if (rows[:, 1:] < rows[:, :-1]).any():
        rows = np.sort(rows, axis=1)
    different = int((rows[:, 1:] != rows[:, :-1]).sum()) + len(rows)
    return len(rows), different - int((rows == none).any(axis=1).sum())


def _bank_passes(at: At, offsets: Array, width: int) -> tuple[int, int, int]:
    """Warps, passes over the 32 banks of 4 bytes, and passes without any conflict.

    Accesses of 8 and 16 bytes go by half and quarter warps; lanes with the same word share it.
    """
    rows = _matrix(at, offsets, -1)
    warps = len(rows)
    together = {8: 16, 16: 8}.get(width, 32)
    rows = rows.reshape(-1, together)
    words = np.sort(rows, axis=1) // min(width, 16) if width > 4 else np.sort(rows // 4, axis=1)
    fresh = words >= 0
    fresh[:, 1:] &= words[:, 1:] != words[:, :-1]
    per_bank = 32 * 4 // max(4, min(width, 16))
    banks = np.zeros((len(rows), per_bank), np.int64)
    where = np.nonzero(fresh)
    np.add.at(banks, (where[0], words[where] % per_bank), 1)
    passes = banks.max(axis=1)
    return warps, int(passes.sum()), int((passes > 0).sum())


def widths(kernel: Kernel) -> Counter[int]:
    """Loads and stores of global memory as they are written, not as they run: by bytes of a lane.

    Unlike a meter, this needs nothing executed.
    """
    found: Counter[int] = Counter()
    for instruction in kernel.instructions:
        if classify(instruction) in ("ld.global", "st.global"):
            vector = next((int(p[1:]) for p in instruction.opcode if p in _VECTORS), 1)
            found[vector * SIZE[instruction.opcode[-1]]] += 1
        elif classify(instruction).startswith("cp.async") and len(instruction.operands) > 2:
            found[instruction.operands[2].bits] += 1  # type: ignore[union-attr]
    return found


@dataclass
class Meter:
    """One launch, or the sum of several.

    Attributes:
        kernels: launches by kernel.
        instructions: of warps, by class.
        traffic: by (class, bytes of an access); atomics by (opcode without its type, bytes).
        sectors_read, sectors_written: different sectors of a launch; atomics do both. Summed over
            launches they bound the traffic of DRAM from below if nothing stays in the cache.
        by_tensor: sectors read and written of a single launch, by argument.
        kernel, grid, arch, warps: of a single launch.
        compiled: the kernel of a single launch; its `static` has registers, spills, occupancy.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    instructions: Counter[str] = field(default_factory=Counter)
    traffic: dict[tuple[str, int], Traffic] = field(default_factory=dict)
    sectors_read: int = 0
    sectors_written: int = 0
    by_tensor: dict[str, tuple[int, int]] = field(default_factory=dict)
    kernel: str = ""
    grid: tuple[int, ...] = ()
    arch: int = 0
    warps: int = 0
    compiled: Any = None

    def total(self, start: str) -> Traffic:
        """Of all accesses whose class begins so, such as "ld.global" or "atom"."""
        found = Traffic()
        for (name, _), traffic in self.traffic.items():
            if name.startswith(start):
                found += traffic
        return found

    @property
    def share_of_128_bits(self) -> float:
        """Bytes of global loads and stores that move by 128 bits or more, of all of them."""
        plain = ("ld.global", "st.global", "cp.async")
        sizes = [(w, t.bytes) for (n, w), t in self.traffic.items() if n.startswith(plain)]
        every = sum(size for _, size in sizes)
        return sum(size for width, size in sizes if width >= 16) / every if every else 1.0

    @property
    def requested(self) -> int:
        """Sectors that global loads, stores and atomics ask for."""
        kinds = ("ld.global", "st.global", "cp.async", "atom", "red")
        return sum(t.sectors for (name, _), t in self.traffic.items() if name.startswith(kinds))

    @property
    def atomics(self) -> dict[str, int]:
        """Instructions of warps by opcode, which names semantics and scope."""
        found: Counter[str] = Counter()
        for (name, _), traffic in self.traffic.items():
            if name.startswith(("atom", "red")):
                found[name] += traffic.instructions
        return dict(found)


def read_counts(counts: Counts, meter: Meter) -> Meter:
    """A meter with the counts of one launch."""
    traffic: dict[tuple[str, int], Traffic] = {}
    for (index, shared), found in counts.traffic.items():
        instruction = counts.kernel.instructions[index]
        name = classify(instruction)
        if shared and name == "cp.async":
            name = "st.shared"
        if instruction.opcode[0] in ("atom", "red"):
            name = ".".join(instruction.opcode)
        key = (name, found.bytes // max(1, found.lanes))
        traffic.setdefault(key, Traffic())
        traffic[key] += found
    return replace(meter, instructions=counts.by_class(), traffic=traffic)


def total(meters: Iterable[Meter]) -> Meter:
    """The sum over launches."""
    result = Meter()
    for meter in meters:
        result.kernels += meter.kernels
        result.instructions += meter.instructions
        result.sectors_read += meter.sectors_read
        result.sectors_written += meter.sectors_written
        for key, traffic in meter.traffic.items():
            result.traffic.setdefault(key, Traffic())
            result.traffic[key] += traffic
    return result
