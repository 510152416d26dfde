"""cp.async: copies from global to shared memory that arrive when their thread waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.gpu.ptx.access import address_reader, fetcher
from tests.gpu.ptx.operands import Array, At, Step, count, numbers, select
from tests.gpu.ptx.parse import Immediate, Instruction

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine


@dataclass
class _Copy:
    """Bytes on their way: lanes, their groups, where to, what, by which instruction."""

    lanes: Array
    group: Array
    offsets: Array
    rows: Array
    index: int

    def keep(self, chosen: Array) -> _Copy:
        parts = (self.lanes, self.group, self.offsets, self.rows)
        return _Copy(*(part[chosen] for part in parts), self.index)


class Copies:
    """What every lane has started and not yet waited for."""

    def __init__(self, machine: Machine, lanes: int) -> None:
        self.machine = machine
        self.committed = np.zeros(lanes, np.int64)
        self.pending: list[_Copy] = []

    def reset(self) -> None:
        """Forget everything: new programs come."""
        self.committed.fill(0)
        self.pending.clear()

    def start(self, at: At, offsets: Array, rows: Array, index: int) -> None:
        """The target counts as written from now on, and as unknown until the copy arrives."""
        self.machine.shared.claim(at, offsets, rows.shape[1], index)
        self.pending.append(_Copy(numbers(at), self.committed[at].copy(), offsets, rows, index))

    def wait(self, at: At, newest: int, *, uncommitted: bool = False) -> None:
        """Let all copies of the lanes arrive, but for their `newest` groups."""
        here = np.zeros(self.committed.size, np.bool_)
        here[at] = True
        shared = self.machine.shared
        left = []
        for copy in self.pending:
            due = copy.group < self.committed[copy.lanes] - newest
            arrives = here[copy.lanes] & (due | uncommitted)
            come = copy.keep(arrives)
            if come.lanes.size:
                shared.store(come.lanes, come.offsets, come.rows, come.index)
            if not arrives.all():
                left.append(copy.keep(~arrives))
        self.pending = left


def copy(machine: Machine, instruction: Instruction) -> Step:
    """Decode cp.async, commit_group, wait_group and wait_all."""
    opcode = instruction.opcode
    if opcode[1] != "async" or "bulk" in opcode or "mbarrier" in opcode:
        raise NotImplementedError(str(instruction))
    copies = machine.copies
    if opcode[2] == "commit_group":

        def commit(at: At) -> None:
            copies.committed[at] += 1

        return commit
    if opcode[2] == "wait_all":
        return lambda at: copies.wait(at, 0, uncommitted=True)
    if opcode[2] == "wait_group":
        newest = instruction.operands[0]
        assert isinstance(newest, Immediate)
        return lambda at: copies.wait(at, newest.bits)
    return _start(machine, instruction)


def _start(machine: Machine, instruction: Instruction) -> Step:
    target, source, size, *given = instruction.operands
    hint = any("cache_hint" in part for part in instruction.opcode)
    given = given[: len(given) - hint]
    if not isinstance(size, Immediate) or size.bits not in (4, 8, 16):
        raise NotImplementedError(str(instruction))
    width = size.bits
    read_target, read_source = (address_reader(machine, o) for o in (target, source))
    read_size = machine.registers.reader(given[0], "u32") if given else None
    element = min(width, 8)
    fetch = fetcher(machine, instruction, "global", element, width // element)
    shared = machine.shared

    def bytes_at(at: At, addresses: Array) -> Array:
        rows = fetch(at, addresses)
        return np.ascontiguousarray(rows).view(np.uint8).reshape(-1, width)

    def step(at: At) -> None:
        offsets = shared.offsets(at, read_target(at), width)
        machine.counts.shared(instruction, at, offsets, width)
        addresses = read_source(at)
        if read_size is None:
            rows = bytes_at(at, addresses)
        else:
            wanted = np.broadcast_to(read_size(at), addresses.shape)
            if ((wanted != 0) & (wanted != width)).any():
                raise NotImplementedError(f"copies of parts of {width} bytes: {instruction}")
            rows = np.zeros((count(at), width), np.uint8)
            full = wanted == width
            if full.any():
                rows[full] = bytes_at(select(at, full), addresses[full])
        machine.copies.start(at, offsets, rows, instruction.index)

    return step


DECODERS = {"cp": copy}
