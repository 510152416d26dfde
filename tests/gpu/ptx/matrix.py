"""Matrices spread over the lanes of a warp: ldmatrix, stmatrix, movmatrix and mma.sync.

A lane's group is lane // 4 and its place in the group lane % 4, as the PTX manual draws fragments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.access import address_reader, items
from tests.gpu.ptx.errors import KernelFault
from tests.gpu.ptx.operands import Array, At, Step, numbers
from tests.gpu.ptx.parse import Instruction
from tests.gpu.ptx.rounding import from_bits, to_bits

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

_LANE = np.arange(32)
_GROUP, _PLACE = _LANE // 4, _LANE % 4


def _whole(at: At) -> Array:
    """Lane numbers by warps; an instruction for all lanes of a warp needs all of them."""
    lanes = numbers(at)
    if lanes.size % 32 or (lanes.reshape(-1, 32) - lanes[::32, None] != _LANE).any():
        raise KernelFault("only some lanes of a warp come to an instruction of the whole warp")
    return lanes.reshape(-1, 32)


def _form(instruction: Instruction) -> tuple[int, bool]:
    """How many matrices of 8x8 16-bit numbers, and whether they are transposed."""
    opcode = instruction.opcode
    if "m8n8" not in opcode or opcode[-1] != "b16":
        raise NotImplementedError(str(instruction))
    counts = [int(part[1:]) for part in opcode if part in ("x1", "x2", "x4")]
    return counts[0], "trans" in opcode


def _row_offsets(machine: Machine, at: At, addresses: Array, count: int) -> tuple[Array, Array]:
    """Lanes whose addresses count, and where in shared memory their rows of 16 bytes lie."""
    lanes = _whole(at)[:, : 8 * count].ravel()
    rows = addresses.reshape(-1, 32)[:, : 8 * count].ravel()
    return lanes, machine.shared.offsets(lanes, rows, 16)


def load_matrices(machine: Machine, instruction: Instruction) -> Step:
    """Decode ldmatrix."""
    count, transposed = _form(instruction)
    into, place = instruction.operands
    writers = [machine.registers.writer(r, "b32") for r in items(into)]
    read = address_reader(machine, place)

    def step(at: At) -> None:
        lanes, offsets = _row_offsets(machine, at, read(at), count)
        machine.counts.shared(instruction, lanes, offsets, 16)
        rows = machine.shared.load(lanes, offsets, (2, 8), instruction.index)
        matrices = rows.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, 32)
        for number, write in enumerate(writers):
            write(at, words[:, number].ravel())

    return step


def store_matrices(machine: Machine, instruction: Instruction) -> Step:
    """Decode stmatrix."""
    count, transposed = _form(instruction)
    place, values = instruction.operands
    reads = [machine.registers.reader(r, "b32") for r in items(values)]
    read = address_reader(machine, place)

    def step(at: At) -> None:
        lanes, offsets = _row_offsets(machine, at, read(at), count)
        machine.counts.shared(instruction, lanes, offsets, 16)
        words = [np.broadcast_to(r(at), numbers(at).shape).reshape(-1, 32) for r in reads]
        halves = np.ascontiguousarray(np.stack(words, axis=1)).view(np.uint16)
        matrices = halves.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        machine.shared.store(lanes, offsets, matrices.reshape(-1, 8), instruction.index)

    return step


def move_matrix(machine: Machine, instruction: Instruction) -> Step:
    """Decode movmatrix: one matrix transposed."""
    result, value = instruction.operands
    read = machine.registers.reader(value, "b32")
    write = machine.registers.writer(result, "b32")

    def step(at: At) -> None:
        _whole(at)
        matrices = np.ascontiguousarray(read(at)).view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
        write(at, np.ascontiguousarray(matrices).view(np.uint32).ravel())

    return step


def _places(kind: str, depth: int) -> tuple[Array, Array, Array, Array]:
    """Rows and columns of A's numbers and of B's, by lane and number."""
    if kind == "tf32":
        number = np.arange(depth // 2)
        rows = _GROUP[:, None] + 8 * (number % 2)
        columns = _PLACE[:, None] + 4 * (number // 2)
        other = np.arange(depth // 4)
        return rows, columns, _PLACE[:, None] + 4 * other, _GROUP[:, None] + 0 * other
    number = np.arange(depth // 2)
    rows = _GROUP[:, None] + 8 * (number // 2 % 2)
    columns = 2 * _PLACE[:, None] + number % 2 + 8 * (number // 4)
    other = np.arange(depth // 4)
    inner = 2 * _PLACE[:, None] + other % 2 + 8 * (other // 2)
    return rows, columns, inner, _GROUP[:, None] + 0 * other


_OUTER = (_GROUP[:, None] + 8 * np.array([0, 0, 1, 1]), 2 * _PLACE[:, None] + np.arange(4) % 2)


def _numbers(machine: Machine, operand: Any, kind: str) -> Callable[[At], Array]:
    """Numbers of a fragment as doubles, by lane and number."""
    registers = items(operand)
    held = "b32" if kind != "f32" else "f32"
    reads = [machine.registers.reader(r, held) for r in registers]

    def numbers_of(at: At) -> Array:
        shape = numbers(at).shape
        columns = np.stack([np.broadcast_to(read(at), shape) for read in reads], axis=1)
        if kind == "f32":
            return columns.astype(np.float64)
        if kind == "tf32":
            # The hardware does not look at the 13 lowest bits.
            return (columns & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
        pairs = from_bits(columns.ravel(), f"{kind}x2")
        return pairs.astype(np.float64).reshape(len(columns), -1)

    return numbers_of


def multiply_matrices(machine: Machine, instruction: Instruction) -> Step:
    """Decode mma.sync of m16n8k4, k8 and k16, for f16, bf16 and tf32.

    Products are summed in double precision and rounded once; tensor cores are less exact.
    """
    opcode = instruction.opcode
    shape, row, column, kind_d, kind_a, kind_b, kind_c = opcode[3:10]
    depths = {"tf32": (4, 8), "f16": (8, 16), "bf16": (8, 16)}
    known = shape[:6] == "m16n8k" and (row, column) == ("row", "col") and kind_a == kind_b
    depth = int(shape[6:]) if known else 0
    if depth not in depths.get(kind_a, ()) or {kind_c, kind_d} - {"f32", "f16"}:
        raise NotImplementedError(str(instruction))
    d, *operands = instruction.operands
    kinds = (kind_a, kind_b, kind_c)
    a, b, c = (_numbers(machine, o, k) for o, k in zip(operands, kinds, strict=True))
    writers = [machine.registers.writer(r, "b32") for r in items(d)]
    rows_a, columns_a, rows_b, columns_b = _places(kind_a, depth)

    def step(at: At) -> None:
        warps = len(_whole(at))
        left, right = np.empty((warps, 16, depth)), np.empty((warps, depth, 8))
        left[:, rows_a, columns_a] = a(at).reshape(warps, 32, -1)
        right[:, rows_b, columns_b] = b(at).reshape(warps, 32, -1)
        sums = (left @ right)[:, _OUTER[0], _OUTER[1]].reshape(-1, 4) + c(at)
        if kind_d == "f32":
            bits = to_bits(sums.astype(np.float32), "f32")
        else:
            bits = to_bits(sums.astype(np.float16).reshape(-1, 2), "f16x2").reshape(-1, 2)
        for number, write in enumerate(writers):
            write(at, bits[:, number])

    return step


DECODERS = {
    "ldmatrix": load_matrices,
    "stmatrix": store_matrices,
    "movmatrix": move_matrix,
    "mma": multiply_matrices,
}
