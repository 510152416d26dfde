"""Integer, logical and predicate instructions, and moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.operands import Array, At, Step
from tests.gpu.ptx.parse import Instruction, Operand, Vector
from tests.gpu.ptx.types import SIGNED, SIZE, UNSIGNED, dtype_of

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

Function = Callable[..., Any]


def apply(
    machine: Machine,
    function: Function,
    kind: str,
    operands: tuple[Operand, ...],
    kinds: tuple[str, ...] | None = None,
) -> Step:
    """A step that computes `function` of operands of a type, or of types of their own.

    The first operand is the result.
    """
    result, *given = operands
    kinds = kinds or (kind,) * len(given)
    reads = [machine.registers.reader(o, k) for o, k in zip(given, kinds, strict=True)]
    write = machine.registers.writer(result, kind)
    target = machine.registers.target(result, kind)
    if isinstance(function, np.ufunc) and target is not None and kinds == (kind,) * len(kinds):
        if len(reads) == 1:
            (read,) = reads

            def unary(at: At) -> None:
                if isinstance(at, slice):
                    function(read(at), out=target[at])
                else:
                    target[at] = function(read(at))

            return unary
        if len(reads) == 2:
            first, second = reads

            def binary(at: At) -> None:
                if isinstance(at, slice):
                    function(first(at), second(at), out=target[at])
                else:
                    target[at] = function(first(at), second(at))

            return binary
    return lambda at: write(at, function(*(read(at) for read in reads)))


def divide(x: Array, y: Array) -> Array:
    """Quotient rounded to zero; all ones where y is zero, as the hardware does."""
    x, y = np.broadcast_arrays(x, y)
    if x.dtype.kind == "u":
        return np.where(y == 0, ~x.dtype.type(0), x // np.where(y == 0, 1, y).astype(x.dtype))
    wide = UNSIGNED[x.itemsize]
    quotient = _magnitude(x) // np.where(y == 0, 1, _magnitude(y)).astype(wide)
    signed = np.where((x < 0) != (y < 0), wide(0) - quotient, quotient).view(x.dtype)
    return np.where(y == 0, x.dtype.type(-1), signed)


def _magnitude(x: Array) -> Array:
    bits = x.view(UNSIGNED[x.itemsize])
    return np.where(x < 0, bits.dtype.type(0) - bits, bits)


def remainder(x: Array, y: Array) -> Array:
    """With the sign of x; x where y is zero."""
    x, y = np.broadcast_arrays(x, y)
    zero = y == 0
    quotient = divide(x, np.where(zero, 1, y).astype(x.dtype))
    return np.where(zero, x, x - quotient * y)


def high_half(x: Any, y: Any) -> Any:
    """The upper half of the product of two integers of one type."""
    dtype = np.asarray(x).dtype
    size = dtype.itemsize
    if size < 8:
        wide = (SIGNED if dtype.kind == "i" else UNSIGNED)[2 * size]
        product = np.asarray(x).astype(wide) * np.asarray(y).astype(wide)
        return (product >> wide(8 * size)).astype(dtype)
    a, b = np.asarray(x).view(np.uint64), np.asarray(y).view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> half) + (other >> half)
    if dtype.kind == "i":
        high = high - np.where(a >> np.uint64(63), b, 0) - np.where(b >> np.uint64(63), a, 0)
        return high.astype(np.uint64).view(np.int64)
    return high


def shift_left(x: Any, by: Any) -> Any:
    """Zero once all bits are gone."""
    dtype = np.asarray(x).dtype
    bits = 8 * dtype.itemsize
    moved = x << np.minimum(by, bits - 1).astype(dtype)
    return np.where(by >= bits, dtype.type(0), moved)


def shift_right(x: Any, by: Any) -> Any:
    """Signs or zeros come in from the left."""
    dtype = np.asarray(x).dtype
    bits = 8 * dtype.itemsize
    moved = x >> np.minimum(by, bits - 1).astype(dtype)
    return moved if dtype.kind == "i" else np.where(by >= bits, dtype.type(0), moved)


def _saturated(function: Function) -> Function:
    """Add or subtract 32-bit integers, clamped to their range."""
    limits = np.iinfo(np.int32)

    def compute(x: Any, y: Any) -> Any:
        exact = function(np.asarray(x, np.int64), np.asarray(y, np.int64))
        return np.clip(exact, limits.min, limits.max).astype(np.int32)

    return compute


def arithmetic(machine: Machine, instruction: Instruction) -> Step:
    """Decode add, sub, min, max, div, rem, abs, neg of integers."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    function: Function = {
        "add": np.add,
        "sub": np.subtract,
        "min": np.minimum,
        "max": np.maximum,
        "div": divide,
        "rem": remainder,
        "abs": np.abs,
        "neg": np.negative,
    }[name]
    if "sat" in instruction.opcode:
        function = _saturated(function)
    if "cc" in instruction.opcode or "x2" in kind or "relu" in instruction.opcode:
        raise NotImplementedError(str(instruction))
    result, *operands = instruction.operands
    return apply(machine, function, kind, (result, *operands))


def multiply(machine: Machine, instruction: Instruction) -> Step:
    """Decode mul and mad of integers; mul24 is left out."""
    opcode, kind = instruction.opcode, instruction.opcode[-1]
    if "sat" in opcode or "cc" in opcode:
        raise NotImplementedError(str(instruction))
    result, x, y, *addend = instruction.operands
    if "wide" in opcode:
        wide = f"{kind[0]}{16 * SIZE[kind]}"
        dtype = dtype_of(wide)

        def product(x: Any, y: Any, *z: Any) -> Any:
            exact = np.multiply(x, y, dtype=dtype)
            return exact + z[0] if z else exact

        kinds = (kind, kind, *(wide for _ in addend))
        return apply(machine, product, wide, (result, x, y, *addend), kinds)
    half = high_half if "hi" in opcode else np.multiply
    if not addend:
        return apply(machine, half, kind, (result, x, y))
    return apply(machine, lambda x, y, z: half(x, y) + z, kind, (result, x, y, *addend))


def logic(machine: Machine, instruction: Instruction) -> Step:
    """Decode and, or, xor, not, cnot."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    function: Function = {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "not": np.invert,
        "cnot": lambda x: (x == 0).astype(x.dtype),
    }[name]
    result, *operands = instruction.operands
    return apply(machine, function, kind, (result, *operands))


def shift(machine: Machine, instruction: Instruction) -> Step:
    """Decode shl and shr; the amount is unsigned and not wrapped."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    result, x, by = instruction.operands
    function = shift_left if name == "shl" else shift_right
    return apply(machine, function, kind, (result, x, by), (kind, "u32"))


def carry(machine: Machine, instruction: Instruction) -> Step:
    """Decode add.cc, addc, sub.cc, subc, mad.cc and madc of unsigned numbers: with a carry."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    size = SIZE[kind]
    unsigned = f"u{8 * size}"
    dtype = UNSIGNED[size]
    held = machine.carry
    takes, gives = name.endswith("c"), "cc" in instruction.opcode
    result, *operands = instruction.operands
    reads = [machine.registers.reader(o, unsigned) for o in operands]
    read_signed = [machine.registers.reader(o, kind) for o in operands[:2]]
    write = machine.registers.writer(result, unsigned)
    subtracts = name.startswith("sub")

    def step(at: At) -> None:
        x, y = (np.asarray(read(at)) for read in reads[:2])
        if name.startswith("mad"):
            half = high_half if "hi" in instruction.opcode else np.multiply
            x = np.asarray(half(*(read(at) for read in read_signed))).view(dtype)
            y = np.asarray(reads[2](at))
        incoming = held[at].astype(dtype) if takes else dtype(0)
        if subtracts:
            total = x - y - incoming
            over = (x < y) | ((x == y) & (incoming == 1))
        else:
            total = x + y + incoming
            over = (total < x) | ((total == x) & (incoming == 1))
        write(at, total)
        if gives:
            held[at] = over

    return step


def move(machine: Machine, instruction: Instruction) -> Step:
    """Decode mov, and packing and unpacking of vectors."""
    result, value = instruction.operands
    kind = instruction.opcode[-1]
    if isinstance(result, Vector):
        size = SIZE[kind] // len(result.items)
        part = f"b{8 * size}"
        whole = machine.registers.reader(value, f"b{8 * SIZE[kind]}")
        writers = [machine.registers.writer(r, part) for r in result.items]

        def unpack(at: At) -> None:
            bits = np.asarray(whole(at))
            for position, write in enumerate(writers):
                shifted = bits >> np.asarray(8 * size * position, bits.dtype)
                write(at, shifted.astype(UNSIGNED[size]))

        return unpack
    if isinstance(value, Vector):
        size = SIZE[kind] // len(value.items)
        dtype = UNSIGNED[SIZE[kind]]
        reads = [machine.registers.reader(v, f"b{8 * size}") for v in value.items]
        write_whole = machine.registers.writer(result, f"b{8 * SIZE[kind]}")

        def pack(at: At) -> None:
            bits = dtype(0)
            for position, read in enumerate(reads):
                bits = bits | (np.asarray(read(at)).astype(dtype) << dtype(8 * size * position))
            write_whole(at, bits)

        return pack
    read_one = machine.registers.reader(value, kind)
    write_one = machine.registers.writer(result, kind)
    return lambda at: write_one(at, read_one(at))


def select_by(machine: Machine, instruction: Instruction) -> Step:
    """Decode selp and slct."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    result, x, y, chooser = instruction.operands
    if name == "selp":
        choose, by = (lambda x, y, p: np.where(p, x, y)), "pred"
    else:
        kind, by = instruction.opcode[-2:]
        choose = lambda x, y, c: np.where(c >= 0, x, y)  # noqa: E731
    return apply(machine, choose, kind, (result, x, y, chooser), (kind, kind, by))


DECODERS = {
    **dict.fromkeys(("add", "sub", "min", "max", "div", "rem", "abs", "neg"), arithmetic),
    **dict.fromkeys(("mul", "mad"), multiply),
    **dict.fromkeys(("and", "or", "xor", "not", "cnot"), logic),
    **dict.fromkeys(("shl", "shr"), shift),
    **dict.fromkeys(("addc", "subc", "madc"), carry),
    "mov": move,
    "selp": select_by,
    "slct": select_by,
}
