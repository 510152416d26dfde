"""Compile a launch as Triton's JIT would on a GPU of an architecture, without one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from da2s_fast.kernels.launch import FUSION, Launch


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor has (CUDA C++ Programming Guide, technical specifications)."""

    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    shared: int = 167936  # bytes


_LIMITS = {
    80: Limits(shared=164 << 10),
    90: Limits(shared=228 << 10),
    100: Limits(shared=228 << 10),
}
# Shared memory that the driver keeps for itself in every block.
_RESERVED = 1024


@dataclass(frozen=True)
class Static:
    """What ptxas says of a kernel.

    Attributes:
        registers: of a thread.
        spill_stores, spill_loads, stack: bytes of a thread.
        shared: bytes of a program, static and dynamic.
        warps: of a program.
        blocks: programs that fit on one multiprocessor.
        occupancy: resident warps over the most there can be.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    warps: int
    blocks: int
    occupancy: float


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture.

    Attributes:
        ptx: its text.
        name: of the entry.
        warps: of a program.
        shared: bytes of dynamic shared memory.
        signature: types by parameter; "constexpr" for what is compiled in.
    """

    ptx: str
    name: str
    arch: int
    warps: int
    shared: int
    signature: dict[str, Any]
    cubin: bytes

    @property
    def static(self) -> Static:
        """What ptxas says; asked once."""
        return static_evidence(self)


_compiled: dict[Any, Compiled] = {}
_binders: dict[Any, Any] = {}


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile for compute capability `arch`; equal kernels, types and options are compiled once."""
    kernel = launch.kernel
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    binder = _binders.get((kernel, arch))
    if binder is None:
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        _binders[kernel, arch] = binder
    given = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "maxnreg": launch.registers,
        "enable_fp_fusion": FUSION,
    }
    bound, specialization, extra = binder(**launch.arguments)
    if extra:
        raise TypeError(f"{kernel.__name__} has no parameters {sorted(extra)}")
    key = (kernel, arch, launch.warps, launch.stages, launch.registers, str(specialization))
    found = _compiled.get(key)
    if found is None:
        options, signature, constants, attributes = kernel._pack_args(
            backend, dict(given), bound, specialization, given
        )
        source = ASTSource(kernel, signature, constants, attributes)
        built = triton.compile(source, target=target, options=options.__dict__)
        found = Compiled(
            ptx=built.asm["ptx"],
            name=built.metadata.name,
            arch=arch,
            warps=built.metadata.num_warps,
            shared=built.metadata.shared,
            signature=signature,
            cubin=built.asm["cubin"],
        )
        if built.metadata.global_scratch_size or built.metadata.profile_scratch_size:
            raise NotImplementedError(f"{found.name} needs scratch in global memory")
        _compiled[key] = found
    return found


_evidence: dict[bytes, Static] = {}


def static_evidence(compiled: Compiled) -> Static:
    """Registers, spills and shared memory by ptxas, and the occupancy that follows."""
    found = _evidence.get(compiled.cubin)
    if found is None:
        found = _evidence[compiled.cubin] = _ask_ptxas(compiled)
    return found


def _ask_ptxas(compiled: Compiled) -> Static:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.ptx)
        tool = get_ptxas(compiled.arch).path
        gpu = f"--gpu-name={sm_arch_from_capability(compiled.arch)}"
        output = str(Path(folder) / "kernel.cubin")
        done = subprocess.run(
            [tool, "-v", gpu, "--regAllocOptLevel=2", str(source), "-o", output],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"ptxas refuses {compiled.name}: {done.stderr}")
    return said_by_ptxas(done.stdout + done.stderr, compiled)


def said_by_ptxas(said: str, compiled: Compiled) -> Static:
    """What `ptxas -v` says of one kernel."""

    def number(pattern: str) -> int:
        match = re.search(pattern, said)
        return int(match[1]) if match else 0

    registers = number(r"Used (\d+) registers")
    shared = compiled.shared + number(r"(\d+) bytes smem")
    blocks = resident(compiled.arch, registers, shared, compiled.warps)
    return Static(
        registers=registers,
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        stack=number(r"(\d+) bytes stack frame"),
        shared=shared,
        warps=compiled.warps,
        blocks=blocks,
        occupancy=blocks * compiled.warps / _LIMITS[compiled.arch].warps,
    )


def resident(arch: int, registers: int, shared: int, warps: int) -> int:
    """Programs that fit on one multiprocessor.

    Registers are given out to warps in units of 256; shared memory to blocks in units of 128 bytes.
    """
    limits = _LIMITS[arch]
    per_warp = -(-registers * 32 // 256) * 256
    # A quarter of the registers belongs to each of four schedulers.
    by_registers = limits.registers // 4 // per_warp * 4 // warps if per_warp else limits.blocks
    by_shared = limits.shared // (-(-(shared + _RESERVED) // 128) * 128)
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared)
