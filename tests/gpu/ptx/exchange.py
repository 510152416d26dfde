"""What lanes of a warp tell one another, and barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.errors import KernelFault
from tests.gpu.ptx.integer import Function
from tests.gpu.ptx.operands import Array, At, Step, numbers
from tests.gpu.ptx.parse import Immediate, Instruction, Operand, Vector
from tests.gpu.ptx.schedule import Wait

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

_FULL = 0xFFFFFFFF


def _whole_warps(at: At) -> bool:
    return isinstance(at, slice) and at.start % 32 == 0 and at.stop % 32 == 0


class Warps:
    """Lanes as rows of 32, those that are not in `at` marked."""

    def __init__(self, at: At) -> None:
        self.lanes = numbers(at)
        self.column = self.lanes & 31
        if _whole_warps(at):
            self.row = np.arange(self.lanes.size) >> 5
        else:
            self.row = np.unique(self.lanes >> 5, return_inverse=True)[1]
        self.count = int(self.row[-1]) + 1

    def spread(self, values: Any, fill: Any) -> Array:
        """Values of lanes as rows."""
        values = np.asarray(values)
        full = np.full((self.count, 32), fill, values.dtype)
        full[self.row, self.column] = values
        return full

    def active(self) -> Array:
        """For every lane, the mask of its warp's lanes."""
        bits = np.left_shift(1, self.column).astype(np.float64)
        return np.bincount(self.row, bits, self.count).astype(np.uint32)[self.row]


def _members(machine: Machine, operand: Operand) -> Any:
    """A check that exactly the lanes of the mask are here."""
    read = machine.registers.reader(operand, "u32")
    everyone = isinstance(operand, Immediate) and operand.bits & _FULL == _FULL

    def check(at: At) -> None:
        if everyone and _whole_warps(at):
            return
        warps = Warps(at)
        mask = np.broadcast_to(read(at), warps.lanes.shape)
        if not (mask >> warps.column.astype(np.uint32) & np.uint32(1)).all():
            raise KernelFault("a lane executes this that the mask of members does not name")
        absent = mask & ~warps.active()
        if absent.any():
            raise KernelFault(f"members {int(absent[absent != 0][0]):#x} (mask) do not take part")

    return check


def shuffle(machine: Machine, instruction: Instruction) -> Step:
    """Decode shfl.sync."""
    mode = instruction.opcode[2]
    into, value, by, clamp, mask = instruction.operands
    result, valid = into.items if isinstance(into, Vector) else (into, None)
    read = machine.registers.reader(value, "b32")
    read_by, read_clamp = (machine.registers.reader(o, "u32") for o in (by, clamp))
    write = machine.registers.writer(result, "b32")
    write_valid = machine.registers.writer(valid, "pred") if valid else None
    check = _members(machine, mask)
    fixed = all(isinstance(o, Immediate) for o in (by, clamp))
    known = (
        _sources(mode, np.arange(32), read_by(slice(0)), read_clamp(slice(0))) if fixed else None
    )

    def step(at: At) -> None:
        check(at)
        values = np.asarray(read(at))
        if known is not None and _whole_warps(at) and values.ndim:
            source, inside = known
            write(at, values.reshape(-1, 32)[:, source].ravel())
            if write_valid:
                write_valid(at, np.tile(inside, values.size // 32))
            return
        warps = Warps(at)
        source, inside = _sources(mode, warps.column, read_by(at), read_clamp(at))
        present = warps.spread(np.ones(warps.lanes.size, np.bool_), False)
        if not present[warps.row, source].all():
            raise KernelFault("a lane asks for the value of one that does not take part")
        rows = warps.spread(np.broadcast_to(values, warps.lanes.shape), 0)
        write(at, rows[warps.row, source])
        if write_valid:
            write_valid(at, inside)

    return step


def _sources(mode: str, lane: Array, by: Any, clamp: Any) -> tuple[Array, Array]:
    """The lane that each lane reads (itself if out of range), and whether it is in range."""
    by = np.asarray(by).astype(np.int64) & 31
    clamp = np.asarray(clamp).astype(np.int64)
    segment, bound = (clamp >> 8) & 31, clamp & 31
    last = (lane & segment) | (bound & ~segment)
    if mode == "up":
        source = lane - by
        inside = source >= last
    else:
        source = {"down": lane + by, "bfly": lane ^ by, "idx": (lane & segment) | (by & ~segment)}[
            mode
        ]
        inside = source <= last
    return np.where(inside, source, lane), inside


def vote(machine: Machine, instruction: Instruction) -> Step:
    """Decode vote.sync."""
    mode = instruction.opcode[2]
    result, value, mask = instruction.operands
    read = machine.registers.reader(value, "pred")
    write = machine.registers.writer(result, instruction.opcode[-1])
    check = _members(machine, mask)

    def step(at: At) -> None:
        check(at)
        warps = Warps(at)
        holds = np.broadcast_to(read(at), warps.lanes.shape)
        every = warps.spread(holds, True).all(axis=1)
        some = warps.spread(holds, False).any(axis=1)
        if mode == "ballot":
            bits = warps.spread(holds, False) << np.arange(32, dtype=np.uint64)
            found = bits.sum(axis=1).astype(np.uint32)
        else:
            found = {"all": every, "any": some, "uni": every | ~some}[mode]
        write(at, found[warps.row])

    return step


def match(machine: Machine, instruction: Instruction) -> Step:
    """Decode match.any and match.all: which lanes of a warp hold an equal value."""
    kind = instruction.opcode[-1]
    into, value, mask = instruction.operands
    result, valid = into.items if isinstance(into, Vector) else (into, None)
    read = machine.registers.reader(value, kind)
    write = machine.registers.writer(result, "b32")
    write_valid = machine.registers.writer(valid, "pred") if valid else None
    check = _members(machine, mask)

    def step(at: At) -> None:
        check(at)
        warps = Warps(at)
        values = np.broadcast_to(read(at), warps.lanes.shape)
        rows = warps.spread(values, 0)
        present = warps.spread(np.ones(values.shape, np.bool_), False)
        equal = (rows[:, :, None] == rows[:, None, :]) & present[:, None, :]
        masks = (equal << np.arange(32, dtype=np.uint64)).sum(axis=2).astype(np.uint32)
        found = masks[warps.row, warps.column]
        if instruction.opcode[1] == "all":
            same = found == warps.active()
            found = np.where(same, found, np.uint32(0))
            if write_valid:
                write_valid(at, same)
        write(at, found)

    return step


def active_mask(machine: Machine, instruction: Instruction) -> Step:
    """Decode activemask."""
    write = machine.registers.writer(instruction.operands[0], "b32")
    return lambda at: write(at, Warps(at).active())


def elect(machine: Machine, instruction: Instruction) -> Step:
    """Decode elect.sync: the lowest of the members."""
    into, mask = instruction.operands
    result, chosen = into.items if isinstance(into, Vector) else (into, None)
    assert chosen is not None
    check = _members(machine, mask)
    write = machine.registers.writer(result, "b32")
    write_chosen = machine.registers.writer(chosen, "pred")

    def step(at: At) -> None:
        check(at)
        warps = Warps(at)
        first = warps.spread(warps.column, 32).min(axis=1)[warps.row]
        write(at, first.astype(np.uint32))
        write_chosen(at, first == warps.column)

    return step


def reduce(machine: Machine, instruction: Instruction) -> Step:
    """Decode redux.sync."""
    opcode, kind = instruction.opcode, instruction.opcode[-1]
    name = opcode[2]
    result, value, mask = instruction.operands
    functions: dict[str, Function] = {
        "add": np.add,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "min": np.minimum,
        "max": np.maximum,
    }
    function = functions[name]
    if kind == "f32" and "NaN" not in opcode:
        function = np.fmin if name == "min" else np.fmax
    read = machine.registers.reader(value, kind)
    write = machine.registers.writer(result, kind)
    check = _members(machine, mask)
    absolute = "abs" in opcode

    def step(at: At) -> None:
        check(at)
        warps = Warps(at)
        values = np.broadcast_to(read(at), warps.lanes.shape)
        if absolute:
            values = np.abs(values)
        starts = np.searchsorted(warps.row, np.arange(warps.count))
        found = function.reduceat(values, starts)  # type: ignore[attr-defined]
        write(at, found[warps.row])

    return step


def barrier(machine: Machine, instruction: Instruction) -> Step:
    """Decode bar and barrier."""
    parts = [p for p in instruction.opcode[1:] if p not in ("cta", "aligned")]
    if parts[0] == "warp":
        check = _members(machine, instruction.operands[0])
        return check
    if parts[0] == "cluster":
        raise NotImplementedError(str(instruction))
    if parts[0] == "red":
        return _barrier_reduction(machine, instruction, parts[1])
    number, *threads = (_fixed(machine, o) for o in instruction.operands)
    expected = threads[0] if threads else None
    holds = parts[0] == "sync"
    return lambda at: Wait(at, number, expected, holds)


def _fixed(machine: Machine, operand: Operand) -> int:
    if not isinstance(operand, Immediate):
        raise NotImplementedError("barriers whose number is not in the instruction")
    return operand.bits


def _barrier_reduction(machine: Machine, instruction: Instruction, name: str) -> Step:
    result, number, *threads, value = instruction.operands
    read = machine.registers.reader(value, "pred")
    write = machine.registers.writer(result, instruction.opcode[-1])
    barrier_number = _fixed(machine, number)
    expected = _fixed(machine, threads[0]) if threads else None

    def done(at: At) -> None:
        programs = machine.cta[at]
        held = np.bincount(programs, read(at), machine.chunk)[programs].astype(np.uint32)
        every = held == np.bincount(programs, minlength=machine.chunk)[programs]
        write(at, {"popc": held, "and": every, "or": held > 0}[name])

    return lambda at: Wait(at, barrier_number, expected, True, done)


DECODERS = {
    "shfl": shuffle,
    "vote": vote,
    "match": match,
    "activemask": active_mask,
    "elect": elect,
    "redux": reduce,
    "bar": barrier,
    "barrier": barrier,
}
