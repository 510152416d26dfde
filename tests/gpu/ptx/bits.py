"""Instructions on bits and fields of bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.integer import Function, apply, shift_left, shift_right
from tests.gpu.ptx.operands import Step
from tests.gpu.ptx.parse import Instruction
from tests.gpu.ptx.types import SIZE, UNSIGNED, dtype_of

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine


def funnel(machine: Machine, instruction: Instruction) -> Step:
    """Decode shf: 32 bits of a 64-bit pair."""
    _, side, mode, _ = instruction.opcode
    result, low, high, by = instruction.operands

    def compute(low: Any, high: Any, by: Any) -> Any:
        amount = by & np.uint32(31) if mode == "wrap" else np.minimum(by, np.uint32(32))
        pair = (np.asarray(high).astype(np.uint64) << np.uint64(32)) | low
        if side == "l":
            # A shift of the pair by 32 in all leaves its lower half above.
            return (pair << amount.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)
        return (pair >> amount.astype(np.uint64)).astype(np.uint32)

    return apply(machine, compute, "b32", (result, low, high, by))


def _bit_function(name: str, kind: str) -> Function:
    bits = 8 * SIZE[kind]

    def leading(x: Any) -> Any:
        found = np.full(np.shape(x), bits, np.uint32)
        for bit in range(bits):
            found[(np.asarray(x) >> np.asarray(bit, x.dtype)) & 1 == 1] = bits - 1 - bit
        return found

    def reverse(x: Any) -> Any:
        found = np.zeros_like(x)
        for bit in range(bits):
            one = (x >> np.asarray(bit, x.dtype)) & np.asarray(1, x.dtype)
            found |= one << np.asarray(bits - 1 - bit, x.dtype)
        return found

    if name == "popc":
        return lambda x: np.bitwise_count(x).astype(np.uint32)
    if name == "clz":
        return leading
    if name == "brev":
        return reverse

    def find(x: Any) -> Any:
        # Signed numbers: the most significant bit that is not the sign.
        plain = np.where(x < 0, ~x, x) if kind[0] == "s" else x
        zeros = leading(np.asarray(plain).view(UNSIGNED[SIZE[kind]]))
        none = zeros == bits
        return np.where(none, np.uint32(0xFFFFFFFF), np.uint32(bits - 1) - zeros)

    return find


def count_bits(machine: Machine, instruction: Instruction) -> Step:
    """Decode popc, clz, brev, bfind."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    if "shiftamt" in instruction.opcode:
        raise NotImplementedError(str(instruction))
    result, x = instruction.operands
    function = _bit_function(name, kind)
    if name == "brev":
        return apply(
            machine,
            function,
            kind,
            (
                result,
                x,
            ),
        )
    read = machine.registers.reader(x, kind)
    write = machine.registers.writer(result, "u32")
    return lambda at: write(at, function(np.atleast_1d(read(at))))


def extract(machine: Machine, instruction: Instruction) -> Step:
    """Decode bfe: a field of bits, with its sign for signed types."""
    kind = instruction.opcode[-1]
    result, x, start, length = instruction.operands
    bits = 8 * SIZE[kind]

    def compute(x: Any, start: Any, length: Any) -> Any:
        start, length = (np.asarray(v & 255).astype(np.int64) for v in (start, length))
        unsigned = np.asarray(x).view(UNSIGNED[SIZE[kind]]).astype(np.uint64)
        low = shift_right(unsigned, start) & _ones(length)
        if kind[0] == "s":
            top = np.minimum(start + length - 1, bits - 1)
            sign = (unsigned >> top.clip(0).astype(np.uint64)) & np.uint64(1)
            signs = np.where(sign == 1, ~_ones(np.minimum(length, bits - start)), np.uint64(0))
            low = np.where(length > 0, low | signs, np.uint64(0))
        return low.astype(UNSIGNED[SIZE[kind]]).view(dtype_of(kind))

    return apply(machine, compute, kind, (result, x, start, length), (kind, "u32", "u32"))


def _ones(length: Any) -> Any:
    """So many low bits of 64."""
    length = np.clip(np.asarray(length), 0, 64)
    return ~shift_left(np.full(np.shape(length), ~np.uint64(0)), length)


def insert(machine: Machine, instruction: Instruction) -> Step:
    """Decode bfi: a field of one number replaced by the low bits of another."""
    kind = instruction.opcode[-1]
    result, x, into, start, length = instruction.operands

    def compute(x: Any, into: Any, start: Any, length: Any) -> Any:
        start, length = (np.asarray(v & 255).astype(np.int64) for v in (start, length))
        mask = shift_left(_ones(length), start)
        moved = shift_left(np.asarray(x).astype(np.uint64), start)
        kept = np.asarray(into).astype(np.uint64) & ~mask
        return ((moved & mask) | kept).astype(dtype_of(kind))

    return apply(
        machine, compute, kind, (result, x, into, start, length), (kind, kind, "u32", "u32")
    )


def three_inputs(machine: Machine, instruction: Instruction) -> Step:
    """Decode lop3: any function of three bits, from a table of eight."""
    if len(instruction.operands) != 5:
        raise NotImplementedError(str(instruction))
    result, a, b, c, table = instruction.operands
    rows = int(machine.registers.reader(table, "u32")(slice(0, 1)))

    def compute(a: Any, b: Any, c: Any) -> Any:
        found = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c)), np.uint32)
        for row in range(8):
            if rows >> row & 1:
                found |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return found

    return apply(machine, compute, "b32", (result, a, b, c))


def permute(machine: Machine, instruction: Instruction) -> Step:
    """Decode prmt in its default mode: four bytes chosen of eight, or their signs."""
    if instruction.opcode[-1] != "b32":
        raise NotImplementedError(str(instruction))
    result, *operands = instruction.operands

    def compute(a: Any, b: Any, control: Any) -> Any:
        pair = np.asarray(a).astype(np.uint64) | (np.asarray(b).astype(np.uint64) << np.uint64(32))
        found = np.uint64(0)
        for position in range(4):
            nibble = np.asarray(control).astype(np.uint64) >> np.uint64(4 * position)
            byte = (pair >> ((nibble & np.uint64(7)) << np.uint64(3))) & np.uint64(255)
            sign = np.where(byte >> np.uint64(7) == 1, np.uint64(255), np.uint64(0))
            byte = np.where(nibble & np.uint64(8), sign, byte)
            found = found | (byte << np.uint64(8 * position))
        return np.asarray(found).astype(np.uint32)

    return apply(machine, compute, "b32", (result, *operands))


DECODERS = {
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), count_bits),
    "shf": funnel,
    "bfe": extract,
    "bfi": insert,
    "lop3": three_inputs,
    "prmt": permute,
}
