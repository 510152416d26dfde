"""Executes a kernel: all lanes of several programs in lock-step, in turns (`schedule`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gpu.ptx.copies import Copies
from tests.gpu.ptx.errors import KernelFault
from tests.gpu.ptx.memory import GlobalMemory, LocalMemory
from tests.gpu.ptx.meter import Counts
from tests.gpu.ptx.operands import At, Registers, Step, select
from tests.gpu.ptx.order import order_of
from tests.gpu.ptx.parse import Instruction, Kernel, Name
from tests.gpu.ptx.races import Races
from tests.gpu.ptx.schedule import Jump, Schedule
from tests.gpu.ptx.shared import SharedMemory

# Lanes that are executed together: their registers should stay in the processor's caches.
_LANES = 1 << 14
_SHARED_BYTES = 1 << 23


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
        self._special(block)
        addresses = {name: v.offset for name, v in kernel.variables.items()}
        addresses |= memory.add_variables(kernel)
        self.races = Races(kernel, memory, chunk, self.threads // 32)
        addresses |= {p.name: p.offset for p in kernel.parameters}
        self.registers = Registers(kernel, lanes, self.special, addresses)
        self.carry = np.zeros(lanes, np.bool_)
        self.copies = Copies(self, lanes)
        self.current = 0  # instruction
        self.first = 0  # program of those that run
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
        self.first = first
        program = first + np.repeat(np.arange(programs), self.threads)
        lanes = program.size
        x, y, _ = self.grid
        places = (program % x, program // x % y, program // (x * y))
        for name, value in zip("xyz", places, strict=True):
            self.special[f"%ctaid.{name}"][:lanes] = value
        self.shared.reset()
        self.local.reset()
        self.races.start(first, programs)
        self.copies.reset()
        try:
            Schedule(self, slice(0, lanes)).run()
        except KernelFault as fault:
            where = self.kernel.instructions[self.current]
            programs_text = f"programs {first} to {first + programs - 1}"
            raise type(fault)(
                f"{self.kernel.name}: {fault}\n  at {where}, {programs_text}"
            ) from None
