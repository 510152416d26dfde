"""Whose turn it is: groups of lanes at the same instruction, the earliest first.

Lanes that are at the same instruction form a group. The group whose turn is the earliest (`order`)
runs until it comes to where another one's turn is, or meets it and joins. Barriers hold lanes back
until all of their program have come.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.gpu.ptx.errors import DivergentBarrier, NoProgress
from tests.gpu.ptx.operands import Array, At, contiguous, numbers

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

_RUNS = 2_000_000


@dataclass(frozen=True)
class Jump:
    """Lanes that go on elsewhere; `target` None means that they are done."""

    at: At
    target: int | None


@dataclass(frozen=True)
class Wait:
    """Lanes that come to a barrier.

    Attributes:
        threads: of a program that must come; None means all, at this same instruction.
        holds: whether they wait.
        done: called with the lanes of complete programs.
    """

    at: At
    barrier: int
    threads: int | None
    holds: bool
    done: Callable[[At], None] | None = None


@dataclass
class _Held:
    at: Array
    pc: int


class Schedule:
    """Groups of lanes by turn and program counter, and those that wait."""

    def __init__(self, machine: Machine, at: slice) -> None:
        self.machine = machine
        self.heap: list[tuple[int, int]] = []
        self.groups: dict[tuple[int, int], list[At]] = {}
        self.held: dict[int, list[_Held]] = {}
        self.arrived: dict[int, Array] = {}
        self.add(0, 0, at)

    def add(self, source: int, pc: int, at: At) -> None:
        """Lanes go from the instruction `source` to the one at `pc`."""
        key = self.machine.order.turn(source, pc), pc
        if key not in self.groups:
            heapq.heappush(self.heap, key)
            self.groups[key] = []
        self.groups[key].append(at)

    def take(self) -> tuple[int, At]:
        """The group of the earliest turn, and where it is."""
        key = heapq.heappop(self.heap)
        parts = self.groups.pop(key)
        if len(parts) == 1:
            return key[1], parts[0]
        return key[1], contiguous(np.sort(np.concatenate([numbers(part) for part in parts])))

    def run(self) -> None:
        """Execute until all lanes are done.

        Raises:
            KernelFault: what is wrong.
        """
        machine, program, block = self.machine, self.machine.program, self.machine.order.block
        end, left = len(program), _RUNS
        while self.heap:
            pc, at = self.take()
            first = pc
            warps = warps_of(at)
            own = block[pc]
            while block[pc] == own:
                machine.current = pc
                control = program[pc](at)
                pc += 1
                if control is None:
                    continue
                rest = self.follow(control, at, pc)
                if rest is None:
                    break
            else:
                if pc < end:
                    self.add(pc - 1, pc, at)
            machine.counts.issued(first, pc, warps)
            left -= 1
            if left < 0:
                raise NoProgress(f"more than {_RUNS} jumps: do threads wait for later ones?")
        if any(self.held.values()):
            self._complain()

    def follow(self, control: Jump | Wait, at: At, pc: int) -> At | None:
        """Send lanes where they go; return those that go on at `pc`, if any."""
        if isinstance(control, Wait):
            return self._arrive(control, at, pc)
        if control.target is not None:
            self.add(pc - 1, control.target, control.at)
        if control.at is at:
            return None
        self.add(pc - 1, pc, without(at, control.at))
        return None

    def _arrive(self, wait: Wait, at: At, pc: int) -> At | None:
        machine = self.machine
        came = wait.at
        if came is not at:
            self.add(pc - 1, pc, without(at, came))
        if wait.threads is None and not self.held.get(wait.barrier) and self._whole(came):
            self._synchronize(came)
            if wait.done:
                wait.done(came)
            if came is at:
                return at
            self.add(pc - 1, pc, came)
            return None
        lanes = numbers(came)
        if (np.bincount(lanes >> 5) % 32).any():
            raise DivergentBarrier("only some threads of a warp come to a barrier")
        held = self.held.setdefault(wait.barrier, [])
        arrived = self.arrived.setdefault(wait.barrier, np.zeros(machine.chunk, np.int64))
        if wait.threads is None and any(h.pc != pc for h in held):
            others = {int(machine.cta[h.at[0]]) for h in held if h.pc != pc}
            if others & set(machine.cta[lanes].tolist()):
                raise DivergentBarrier("threads of a program wait at different barriers")
        arrived += np.bincount(machine.cta[lanes], minlength=machine.chunk)
        if wait.holds:
            held.append(_Held(lanes, pc))
        else:
            self.add(pc - 1, pc, came)
        complete = arrived == (wait.threads or machine.threads)
        if complete.any():
            arrived[complete] = 0
            self._release(wait, held, complete)
        return None

    def _release(self, wait: Wait, held: list[_Held], complete: Array) -> None:
        going = [_Held(h.at[complete[self.machine.cta[h.at]]], h.pc) for h in held]
        held[:] = [_Held(h.at[~complete[self.machine.cta[h.at]]], h.pc) for h in held]
        held[:] = [h for h in held if h.at.size]
        everyone = np.sort(np.concatenate([h.at for h in going]))
        self._synchronize(everyone)
        if wait.done:
            wait.done(everyone)
        for h in going:
            if h.at.size:
                self.add(h.pc - 1, h.pc, contiguous(h.at))

    def _synchronize(self, at: At) -> None:
        """All threads of the lanes' programs have come."""
        self.machine.shared.synchronize(at)
        self.machine.races.synchronize(np.unique(self.machine.cta[at]))

    def _whole(self, at: At) -> bool:
        threads = self.machine.threads
        if isinstance(at, slice):
            return at.start % threads == 0 and at.stop % threads == 0
        per_program = np.bincount(self.machine.cta[at])
        return bool(((per_program == 0) | (per_program == threads)).all())

    def _complain(self) -> None:
        waiting = [h for held in self.held.values() for h in held]
        self.machine.current = waiting[0].pc - 1
        number = sum(h.at.size for h in waiting)
        raise DivergentBarrier(f"{number} threads wait at a barrier that others never reach")


def without(at: At, gone: At) -> At:
    """The lanes of `at` that are not in `gone`."""
    return contiguous(np.setdiff1d(numbers(at), numbers(gone), assume_unique=True))


def warps_of(at: At) -> int:
    """How many warps have a lane in `at`."""
    if isinstance(at, slice):
        return ((at.stop - 1) >> 5) - (at.start >> 5) + 1
    warps = at >> 5
    return int((warps[1:] != warps[:-1]).sum()) + 1
