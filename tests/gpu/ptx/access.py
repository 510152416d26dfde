"""ld and st in all address spaces, and addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.errors import KernelFault, MemoryFault, UninitializedRead
from tests.gpu.ptx.manner import manner_of
from tests.gpu.ptx.meter import space_of
from tests.gpu.ptx.operands import Array, At, Read, Step, count, numbers, select
from tests.gpu.ptx.parse import Address, Instruction, Operand, Register, Vector
from tests.gpu.ptx.types import SIZE, differ

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

# Generic addresses of shared and local memory; those of global memory are below.
SHARED_WINDOW = 1 << 62
LOCAL_WINDOW = 1 << 61


def address_reader(machine: Machine, operand: Operand) -> Read:
    """Addresses of lanes as unsigned 64-bit numbers, one for every lane.

    An offset to a register of 32 bits is added in 32 bits: nvcc lets it wrap around.
    """
    if not isinstance(operand, Address):
        raise NotImplementedError(f"address {operand}")
    base = operand.base
    wide = not isinstance(base, Register) or SIZE[base.type] == 8
    read = machine.registers.reader(base, "u64" if wide else "u32")
    offset = np.uint64(operand.offset & ((1 << 64) - 1))
    narrow = np.uint32(operand.offset & ((1 << 32) - 1))
    fixed = not isinstance(base, Register)

    def addresses(at: At) -> Any:
        if not wide:
            return (read(at) + narrow).astype(np.uint64)
        found = read(at)
        if fixed:
            return np.full(count(at), found + offset, np.uint64)
        return found + offset if offset else found

    return addresses


def items(operand: Operand) -> tuple[Operand, ...]:
    """The registers of a vector, or the one."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def load(machine: Machine, instruction: Instruction) -> Step:
    """Decode ld: widened into registers that are larger than the type."""
    space = space_of(instruction)
    into, place = instruction.operands[:2]
    kind = instruction.opcode[-1]
    if kind[0] != "s":
        kind = f"b{8 * SIZE[kind]}"
    writers = [machine.registers.writer(r, kind) for r in items(into)]
    if space == "param":
        return _load_parameter(machine, place, kind, writers)
    size = SIZE[kind]
    read = address_reader(machine, place)
    fetch = fetcher(machine, instruction, space, size, len(writers))

    def step(at: At) -> None:
        rows = fetch(at, read(at))
        for column, write in enumerate(writers):
            write(at, rows[:, column])

    signed = kind[0] == "s"
    if not signed:
        return step
    narrow = np.dtype(f"i{size}")

    def signed_step(at: At) -> None:
        rows = fetch(at, read(at)).view(narrow)
        for column, write in enumerate(writers):
            write(at, rows[:, column])

    return signed_step


def _load_parameter(
    machine: Machine, place: Operand, kind: str, writers: list[Callable[[At, Any], None]]
) -> Step:
    size = SIZE[kind]
    dtype = np.dtype(f"i{size}" if kind[0] == "s" else f"u{size}")
    width = size * len(writers)
    data = machine.parameters
    if not isinstance(place, Address):
        raise NotImplementedError(f"address {place}")
    if isinstance(place.base, Register):
        return _load_computed_parameter(machine, place, dtype, writers)
    start = machine.registers.addresses[place.base.name] + place.base.offset + place.offset
    values = data[start : start + width].view(dtype)

    def step(at: At) -> None:
        for value, write in zip(values, writers, strict=True):
            write(at, value)

    return step


def _load_computed_parameter(
    machine: Machine, place: Address, dtype: Any, writers: list[Callable[[At, Any], None]]
) -> Step:
    """A read of one of several parameters, which the compiler has chosen by address."""
    read = address_reader(machine, place)
    width = dtype.itemsize * len(writers)
    size = machine.parameters.size

    def step(at: At) -> None:
        addresses = np.asarray(read(at), np.int64)
        wrong = (addresses < 0) | (addresses > size - width) | (addresses % width != 0)
        if wrong.any():
            bad = int(addresses[wrong][0])
            raise MemoryFault(f"{width} bytes at {bad} of {size} bytes of parameters")
        rows = machine.parameters[addresses[:, None] + np.arange(width)].view(dtype)
        for column, write in enumerate(writers):
            write(at, rows[:, column])

    return step


def store(machine: Machine, instruction: Instruction) -> Step:
    """Decode st."""
    space = space_of(instruction)
    place, values = instruction.operands[:2]
    kind = "b" + str(8 * SIZE[instruction.opcode[-1]])
    read = address_reader(machine, place)
    readers = [machine.registers.reader(r, kind) for r in items(values)]
    size = SIZE[kind]
    put = putter(machine, instruction, space, size, len(readers))
    dtype = np.dtype(f"u{size}")

    def step(at: At) -> None:
        rows = np.empty((count(at), len(readers)), dtype)
        for column, reader in enumerate(readers):
            rows[:, column] = reader(at)
        put(at, read(at), rows)

    return step


Fetch = Callable[[At, Array], Array]
Put = Callable[[At, Array, Array], None]


def fetcher(
    machine: Machine, instruction: Instruction, space: str, size: int, number: int
) -> Fetch:
    """A function that reads rows of `number` unsigned integers at addresses of lanes."""
    width = size * number
    if space in ("global", "const"):
        return _global_fetcher(machine, instruction, size, number)
    if space == "shared":
        shared = machine.shared

        def fetch_shared(at: At, addresses: Array) -> Array:
            offsets = shared.offsets(at, addresses, width)
            machine.counts.shared(instruction, at, offsets, width)
            return shared.load(at, offsets, (size, number), instruction.index)

        return fetch_shared
    if space == "local":
        local = machine.local
        local_rows = local.rows(size, number) if local.size else None

        def fetch_local(at: At, addresses: Array) -> Array:
            offsets = local.offsets(at, addresses, width)
            if not all(local.known[offsets + part].all() for part in range(width)):
                raise UninitializedRead("local memory that was never written")
            assert local_rows is not None
            return local_rows[offsets // width]

        return fetch_local
    parts = {s: fetcher(machine, instruction, s, size, number) for s in _GENERIC}

    def fetch_generic(at: At, addresses: Array) -> Array:
        found = np.empty((addresses.size, number), np.dtype(f"u{size}"))
        for part, chosen, lanes, local_addresses in _by_space(at, addresses):
            found[chosen] = parts[part](lanes, local_addresses)
        return found

    return fetch_generic


def putter(machine: Machine, instruction: Instruction, space: str, size: int, number: int) -> Put:
    """A function that writes rows of `number` unsigned integers at addresses of lanes."""
    width = size * number
    if space == "global":
        return _global_putter(machine, instruction, size, number)
    if space == "shared":
        shared = machine.shared

        def put_shared(at: At, addresses: Array, rows: Array) -> None:
            offsets = shared.offsets(at, addresses, width)
            machine.counts.shared(instruction, at, offsets, width)
            shared.store(at, offsets, rows, instruction.index)

        return put_shared
    if space == "local":
        local = machine.local
        local_target = local.rows(size, number) if local.size else None

        def put_local(at: At, addresses: Array, rows: Array) -> None:
            offsets = local.offsets(at, addresses, width)
            for part in range(width):
                local.known[offsets + part] = True
            assert local_target is not None
            local_target[offsets // width] = rows

        return put_local
    if space != "generic":
        raise NotImplementedError(f"st.{space}")
    parts = {s: putter(machine, instruction, s, size, number) for s in _GENERIC}

    def put_generic(at: At, addresses: Array, rows: Array) -> None:
        for part, chosen, lanes, local_addresses in _by_space(at, addresses):
            parts[part](lanes, local_addresses, rows[chosen])

    return put_generic


_GENERIC = ("shared", "local", "global")


def _by_space(at: At, addresses: Array) -> Any:
    windows = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0}
    left = np.ones(addresses.size, np.bool_)
    for space in _GENERIC:
        chosen = left & (addresses >= np.uint64(windows[space]))
        left &= ~chosen
        if chosen.any():
            yield space, chosen, select(at, chosen), addresses[chosen] - np.uint64(windows[space])


def _global_fetcher(machine: Machine, instruction: Instruction, size: int, number: int) -> Fetch:
    width = size * number
    manner = manner_of(instruction)

    def fetch_global(at: At, addresses: Array) -> Array:
        machine.counts.access(instruction, at, addresses, width)
        found: Array | None = None
        for one, chosen in machine.memory.find(addresses, width, store=False):
            offsets = (addresses[chosen] - np.uint64(one.origin)).astype(np.int64)
            one.read[offsets >> 5] = True
            machine.races.read(one, offsets, numbers(at)[chosen], width, manner)
            rows = one.rows(size, number)[offsets // width]
            if manner.strong:
                machine.races.see(one, offsets, numbers(at)[chosen], rows, manner)
            if isinstance(chosen, slice):
                return rows
            if found is None:
                found = np.empty((addresses.size, number), rows.dtype)
            found[chosen] = rows
        assert found is not None
        return found

    return fetch_global


def _global_putter(machine: Machine, instruction: Instruction, size: int, number: int) -> Put:
    width = size * number
    manner = manner_of(instruction)

    def put_global(at: At, addresses: Array, rows: Array) -> None:
        machine.counts.access(instruction, at, addresses, width)
        for one, chosen in machine.memory.find(addresses, width, store=True):
            offsets = (addresses[chosen] - np.uint64(one.origin)).astype(np.int64)
            one.written[offsets >> 5] = True
            machine.races.write(one, offsets, numbers(at)[chosen], width, manner)
            target, index, part = one.rows(size, number), offsets // width, rows[chosen]
            if manner.strong:
                both = target[index], part
                machine.races.publish(one, offsets, numbers(at)[chosen], both, manner)
            target[index] = part
            if differ(target[index], part).any():
                raise KernelFault("lanes store different values to one address in one instruction")

    return put_global


def convert_address(machine: Machine, instruction: Instruction) -> Step:
    """Decode cvta and cvta.to: generic addresses are shifted by their space's window."""
    space = space_of(instruction)
    if space not in ("shared", "local", "global", "const", "param"):
        raise NotImplementedError(str(instruction))
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    kind = instruction.opcode[-1]
    if window and SIZE[kind] != 8:
        raise NotImplementedError(f"generic addresses of 32 bits: {instruction}")
    read = machine.registers.reader(instruction.operands[1], kind)
    write = machine.registers.writer(instruction.operands[0], kind)
    shift = np.uint64(window)
    if "to" not in instruction.opcode:
        return lambda at: write(at, read(at) + shift)

    def step(at: At) -> None:
        addresses = np.asarray(read(at))
        if window and (addresses < shift).any():
            raise MemoryFault(f"an address outside of {space} memory is made one of it")
        write(at, addresses - shift)

    return step


DECODERS = {"ld": load, "ldu": load, "st": store, "cvta": convert_address}
