"""atom and red. Lanes take their turns in ascending order, programs too."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.access import address_reader, items
from tests.gpu.ptx.integer import Function
from tests.gpu.ptx.manner import manner_of
from tests.gpu.ptx.meter import space_of
from tests.gpu.ptx.operands import Array, At, Step, numbers
from tests.gpu.ptx.parse import Discarded, Instruction
from tests.gpu.ptx.rounding import from_bits, to_bits
from tests.gpu.ptx.types import SIZE, UNSIGNED, dtype_of

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

_IN_PLACE: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_OTHER: dict[str, Function] = {
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": lambda old, limit: np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1)),
}


def _operation(name: str, kind: str) -> Function:
    """From the bits of what is there and of the operands to new bits."""
    if kind in ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2"):
        plain = {"add": np.add, "min": np.fmin, "max": np.fmax}.get(name)
        if plain is not None:
            return lambda old, x: to_bits(plain(from_bits(old, kind), from_bits(x, kind)), kind)
        return _OTHER[name]
    dtype = dtype_of(kind)
    bits = UNSIGNED[SIZE[kind]]
    function = _IN_PLACE.get(name) or _OTHER[name]
    return lambda old, *x: function(old.view(dtype), *(v.view(dtype) for v in x)).view(bits)


def atomic(machine: Machine, instruction: Instruction) -> Step:
    """Decode atom and red on global and shared memory."""
    opcode, kind = instruction.opcode, instruction.opcode[-1]
    name = next((p for p in opcode if p in _IN_PLACE or p in _OTHER), None)
    space = space_of(instruction)
    if name is None or space not in ("global", "shared", "generic"):
        raise NotImplementedError(str(instruction))
    operands = instruction.operands if opcode[0] == "atom" else (Discarded(), *instruction.operands)
    into, place, *given = operands
    given = given[: 2 if name == "cas" else 1]
    size, bits = SIZE[kind], UNSIGNED[SIZE[kind]]
    vectors = [items(operand) for operand in given]
    number = len(vectors[0])
    reads = [[machine.registers.reader(r, f"b{8 * size}") for r in v] for v in vectors]
    read_address = address_reader(machine, place)
    results = () if isinstance(into, Discarded) else items(into)
    written = kind if kind[0] == "s" else f"b{8 * size}"
    writers = [machine.registers.writer(r, written) for r in results]
    turns = _Turns(name, kind, number)
    locate = _place_shared if space == "shared" else _place_global

    def step(at: At) -> None:
        addresses = read_address(at)
        shape = addresses.shape
        values = [
            np.stack([np.broadcast_to(read(at), shape).astype(bits) for read in row], axis=1)
            for row in reads
        ]
        olds = np.empty((addresses.size, number), bits)
        form = size, number
        for rows, index, chosen, publish in locate(machine, instruction, form, at, addresses):
            given = [v[chosen] for v in values]
            found = turns.take(rows, index, given, bool(writers or publish))
            olds[chosen] = found
            if publish:
                publish(rows=(found, rows[index]))
        for column, write in enumerate(writers):
            write(at, olds[:, column] if kind[0] != "s" else olds[:, column].view(dtype_of(kind)))

    return step


def _place_global(
    machine: Machine, instruction: Instruction, form: tuple[int, int], at: At, addresses: Array
) -> Any:
    size, number = form
    width = size * number
    manner = manner_of(instruction)
    machine.counts.access(instruction, at, addresses, width)
    for one, chosen in machine.memory.find(addresses, width, store=True):
        offsets = (addresses[chosen] - np.uint64(one.origin)).astype(np.int64)
        one.read[offsets >> 5] = True
        one.written[offsets >> 5] = True
        lanes = numbers(at)[chosen]
        machine.races.write(one, offsets, lanes, width, manner)
        publish = None
        if machine.races.clocks:
            publish = partial(machine.races.publish, one, offsets, lanes, manner=manner)
        yield one.rows(size, number), offsets // width, chosen, publish


def _place_shared(
    machine: Machine, instruction: Instruction, form: tuple[int, int], at: At, addresses: Array
) -> Any:
    size, number = form
    shared = machine.shared
    width = size * number
    offsets = shared.offsets(at, addresses, width)
    shared.note_atomic(at, offsets, width, instruction.index)
    machine.counts.shared(instruction, at, offsets, width)
    yield shared.rows(size, number), offsets // width, slice(None), None


class _Turns:
    """Applies an operation at places, one lane after the other where they share one."""

    def __init__(self, name: str, kind: str, number: int) -> None:
        self.function = _operation(name, kind)
        in_place = _IN_PLACE.get(name)
        plain = kind in ("f32", "f64") or (kind[0] in "bsu" and not kind.startswith("bf"))
        self.in_place = in_place if plain else None
        self.dtype = dtype_of(kind)
        self.number = number

    def take(self, rows: Array, index: Array, values: list[Array], wanted: bool) -> Array:
        """Update; what was there before every turn (undefined unless wanted)."""
        if not wanted and self.in_place is not None:
            for column in range(self.number):
                view = rows[:, column].view(self.dtype)
                self.in_place.at(view, index, values[0][:, column].view(self.dtype))
            return values[0]
        olds = np.empty_like(values[0])
        order = np.argsort(index, kind="stable")
        places = index[order]
        fresh = np.ones(places.size, np.bool_)
        fresh[1:] = places[1:] != places[:-1]
        starts = np.flatnonzero(fresh)
        turn = np.arange(places.size) - np.repeat(starts, np.diff(np.append(starts, places.size)))
        by_turn = order[np.argsort(turn, kind="stable")]
        for lanes in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
            here = index[lanes]
            for column in range(self.number):
                old = rows[here, column]
                olds[lanes, column] = old
                rows[here, column] = self.function(old, *(v[lanes, column] for v in values))
        return olds


DECODERS = {"atom": atomic, "red": atomic}
