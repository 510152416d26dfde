"""Whose turn it is: groups of lanes at the same instruction, the earliest first.

Lanes that are at the same instruction form a group. The group whose turn is the earliest (`order`)
runs until it comes to where another one's turn is, or meets it and joins. Barriers hold lanes back
until all of their program have come.

Lanes that execute nanosleep, and with them the other lanes of their warps, go on when no others
can. Whoever waits for another program must sleep between two looks, or looks until no jumps are
left. Programs may wait for programs of earlier numbers and for those of their own chunk.
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
# How often sleepers are woken in vain: code may sleep several times in a row.
_VAIN = 8


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


@dataclass(frozen=True)
class Sleep:
    """Lanes that let all others go first."""

    at: At


@dataclass
class _Held:
    at: Array
    pc: int


class Schedule:
    """Groups of lanes by turn and program counter, and those that wait or sleep."""

    def __init__(self, machine: Machine, at: slice) -> None:
        self.machine = machine
        self.heap: list[tuple[int, int]] = []
        self.groups: dict[tuple[int, int], list[At]] = {}
        self.held: dict[int, list[_Held]] = {}
        self.arrived: dict[int, Array] = {}
        self.asleep: dict[tuple[int, int], list[At]] = {}  # as `groups`
        self.drowsy = np.zeros(machine.chunk * machine.threads // 32, np.bool_)  # warps
        self.told = False  # something that sleepers may wait for, since they were woken
        self.vain = 0  # how often they were woken and nothing was told
        self.add(0, 0, at)

    def add(self, source: int, pc: int, at: At) -> None:
        """Lanes go from the instruction `source` to the one at `pc`."""
        self._push((self.machine.order.turn(source, pc), pc), at)

    def _push(self, key: tuple[int, int], at: At) -> None:
        if key not in self.groups:
            heapq.heappush(self.heap, key)
            self.groups[key] = []
        self.groups[key].append(at)

    def take(self) -> tuple[int, At | None]:
        """The group of the earliest turn, if none of it must wait for sleepers, and where it is."""
        key = heapq.heappop(self.heap)
        parts = self.groups.pop(key)
        at = parts[0]
        if len(parts) > 1:
            at = contiguous(np.sort(np.concatenate([numbers(part) for part in parts])))
        return key[1], self._awake(key, at) if self.asleep else at

    def _awake(self, key: tuple[int, int], at: At) -> At | None:
        """The lanes of a group of whose warps none sleeps: a warp's lanes meet again."""
        lanes = numbers(at)
        drowsy = self.drowsy[lanes >> 5]
        if not drowsy.any():
            return at
        self.asleep.setdefault(key, []).append(lanes[drowsy])
        return None if drowsy.all() else contiguous(lanes[~drowsy])

    def run(self) -> None:
        """Execute until all lanes are done.

        Raises:
            KernelFault: what is wrong.
        """
        machine, program = self.machine, self.machine.program
        block, tells = machine.order.block, machine.order.tells
        end, left = len(program), _RUNS
        while self.heap or self._wake():
            pc, at = self.take()
            if at is None:
                continue
            first = pc
            warps = warps_of(at)
            own = block[pc]
            self.told |= tells[own]
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

    def follow(self, control: Jump | Wait | Sleep, at: At, pc: int) -> At | None:
        """Send lanes where they go; return those that go on at `pc`, if any."""
        if isinstance(control, Sleep):
            self._sleep(control.at, pc)
            if control.at is not at:
                self.add(pc - 1, pc, without(at, control.at))
            return None
        if isinstance(control, Wait):
            return self._arrive(control, at, pc)
        if control.target is not None:
            self.add(pc - 1, control.target, control.at)
        if control.at is at:
            return None
        self.add(pc - 1, pc, without(at, control.at))
        return None

    def _sleep(self, at: At, pc: int) -> None:
        key = self.machine.order.turn(pc - 1, pc), pc
        self.asleep.setdefault(key, []).append(at)
        self.drowsy[numbers(at) >> 5] = True

    def _wake(self) -> bool:
        """Let sleepers go on; whether there are any.

        Raises:
            NoProgress: if nothing happened since they went on the last few times: whatever they
                look at is as it was.
        """
        if not self.asleep:
            return False
        races = self.machine.races
        self.vain = 0 if self.told or races.behind else self.vain + 1
        if self.vain > _VAIN:
            self._complain_of_sleepers()
        self.told = races.behind = False
        woken, self.asleep = self.asleep, {}
        self.drowsy.fill(False)
        for key, parts in woken.items():
            for at in parts:
                self._push(key, at)
        return True

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

    def _complain_of_sleepers(self) -> None:
        # Others of their warps came after them.
        (_, pc), parts = next(iter(self.asleep.items()))
        self.machine.current = pc - 1
        programs = np.unique(self.machine.cta[np.concatenate([numbers(at) for at in parts])])
        which = ", ".join(str(self.machine.first + program) for program in programs[:4].tolist())
        raise NoProgress(
            f"programs wait for counters that nobody increments, {programs.size} of them: {which}"
            f"{', ...' if programs.size > 4 else ''}; do they wait for later ones?"
        )


def without(at: At, gone: At) -> At:
    """The lanes of `at` that are not in `gone`."""
    return contiguous(np.setdiff1d(numbers(at), numbers(gone), assume_unique=True))


def warps_of(at: At) -> int:
    """How many warps have a lane in `at`."""
    if isinstance(at, slice):
        return ((at.stop - 1) >> 5) - (at.start >> 5) + 1
    warps = at >> 5
    return int((warps[1:] != warps[:-1]).sum()) + 1
