"""Executes a kernel: all lanes of several programs in lock-step, those of the earliest turn first.

Lanes that are at the same instruction form a group. The group whose turn is the earliest (`order`)
runs until it comes to where another one's turn is, or meets it and joins. Barriers hold lanes back
until all of their program have come.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.gpu.ptx.copies import Copies
from tests.gpu.ptx.errors import DivergentBarrier, KernelFault, NoProgress
from tests.gpu.ptx.memory import GlobalMemory, LocalMemory
from tests.gpu.ptx.meter import Counts
from tests.gpu.ptx.operands import Array, At, Registers, Step, contiguous, numbers, select
from tests.gpu.ptx.order import order_of
from tests.gpu.ptx.parse import Instruction, Kernel, Name
from tests.gpu.ptx.races import Races
from tests.gpu.ptx.shared import SharedMemory

# Lanes that are executed together: their registers should stay in the processor's caches.
_LANES = 1 << 14
_SHARED_BYTES = 1 << 23
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


class Machine:
    """A kernel, decoded for one launch.

    Args:
        grid: programs along three axes.
        block: threads along three axes.
        parameters: bytes of the parameter space.
        shared: bytes of dynamic shared memory.
        counts: where executed instructions and memory accesses are counted.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: bytes,
        memory: GlobalMemory,
        *,
        shared: int = 0,
        counts: Counts | None = None,
    ) -> None:
        self.kernel = kernel
        self.grid = grid
        self.programs = grid[0] * grid[1] * grid[2]
        self.threads = block[0] * block[1] * block[2]
        if self.threads % 32:
            raise NotImplementedError(f"{self.threads} threads, which are no whole warps")
        static = kernel.sizes.get("shared", 0)
        per_program = static + shared
        chunk = max(1, min(self.programs, _LANES // self.threads))
        if per_program:
            chunk = max(1, min(chunk, _SHARED_BYTES // per_program))
        self.chunk = chunk
        lanes = chunk * self.threads
        self.counts = counts or Counts(kernel)
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.memory = memory
        self.cta = np.repeat(np.arange(chunk), self.threads)
        self.lane = np.arange(lanes) & 31
        self.shared = SharedMemory(kernel, chunk, per_program, self.threads)
        self.local = LocalMemory(kernel, lanes)
        self.races = Races(chunk, self.threads // 32)
        self._special(block)
        addresses = {name: v.offset for name, v in kernel.variables.items()}
        addresses |= memory.add_variables(kernel)
        addresses |= {p.name: p.offset for p in kernel.parameters}
        self.registers = Registers(kernel, lanes, self.special, addresses)
        self.carry = np.zeros(lanes, np.bool_)
        self.copies = Copies(self, lanes)
        self.current = 0
        self.order = order_of(kernel)
        self.program = [self._decode(i) for i in kernel.instructions]

    def _special(self, block: tuple[int, int, int]) -> None:
        linear = np.tile(np.arange(self.threads), self.chunk)
        lane = self.lane.astype(np.uint32)
        one = np.uint32(1)
        self.special: dict[str, Any] = {
            "%laneid": lane,
            "%warpid": (linear // 32).astype(np.uint32),
            "%nwarpid": self.threads // 32,
            "WARP_SZ": 32,
            "%lanemask_eq": one << lane,
            "%lanemask_lt": (one << lane) - one,
            "%lanemask_le": ((one << lane) - one) | (one << lane),
            "%lanemask_gt": ~(((one << lane) - one) | (one << lane)),
            "%lanemask_ge": ~((one << lane) - one),
            "%dynamic_smem_size": self.shared.size - self.kernel.sizes.get("shared", 0),
            "%total_smem_size": self.shared.size,
        }
        extents = (block[0], block[0] * block[1])
        tids = (linear % block[0], linear // extents[0] % block[1], linear // extents[1])
        for axis, name in enumerate("xyz"):
            self.special[f"%tid.{name}"] = tids[axis].astype(np.uint32)
            self.special[f"%ntid.{name}"] = block[axis]
            self.special[f"%nctaid.{name}"] = self.grid[axis]
            self.special[f"%ctaid.{name}"] = np.zeros(len(linear), np.uint32)

    def _decode(self, instruction: Instruction) -> Step:
        from tests.gpu.ptx.decode import decode  # noqa: PLC0415

        step = decode(self, instruction)
        if instruction.predicate is None:
            return step
        if instruction.opcode[0] == "bra":
            return self._branch(instruction)
        guard = self.registers.reader(instruction.predicate, "pred")

        def guarded(at: At) -> Any:
            holds = guard(at)
            if holds.all():
                return step(at)
            return step(select(at, holds)) if holds.any() else None

        return guarded

    def _branch(self, instruction: Instruction) -> Step:
        label = instruction.operands[0]
        assert isinstance(label, Name)
        assert instruction.predicate is not None
        target = self.kernel.labels[label.name]
        guard = self.registers.reader(instruction.predicate, "pred")

        def branch(at: At) -> Jump | None:
            taken = guard(at)
            if taken.all():
                return Jump(at, target)
            return Jump(select(at, taken), target) if taken.any() else None

        return branch

    def run(self) -> None:
        """Execute all programs, in ascending order.

        Raises:
            KernelFault: what is wrong, with the kernel's name and the instruction.
            NotImplementedError: for instructions that are not known.
        """
        with np.errstate(all="ignore"):
            for start in range(0, self.programs, self.chunk):
                self._run_chunk(start, min(self.chunk, self.programs - start))

    def _run_chunk(self, first: int, programs: int) -> None:
        program = first + np.repeat(np.arange(programs), self.threads)
        lanes = program.size
        x, y, _ = self.grid
        places = (program % x, program // x % y, program // (x * y))
        for name, value in zip("xyz", places, strict=True):
            self.special[f"%ctaid.{name}"][:lanes] = value
        self.shared.reset()
        self.local.reset()
        self.races.start(first)
        self.copies.reset()
        try:
            _Schedule(self, slice(0, lanes)).run()
        except KernelFault as fault:
            where = self.kernel.instructions[self.current]
            programs_text = f"programs {first} to {first + programs - 1}"
            raise type(fault)(
                f"{self.kernel.name}: {fault}\n  at {where}, {programs_text}"
            ) from None


class _Schedule:
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
        key = heapq.heappop(self.heap)
        parts = self.groups.pop(key)
        if len(parts) == 1:
            return key[1], parts[0]
        return key[1], contiguous(np.sort(np.concatenate([numbers(part) for part in parts])))

    def run(self) -> None:
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
