"""Meters that need nothing executed: what compilers say of a kernel, and its text."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

from da2s_fast.kernels.launch import CudaKernel
from da2s_fast.ops import _triton
from tests.gpu.ptx.compile import Compiled, compile_launch
from tests.gpu.ptx.cuda import compile_cuda
from tests.gpu.ptx.meter import classify, widths
from tests.gpu.ptx.parse import Kernel, parse
from tests.gpu.report.cases import Case, launches_of

Row = dict[str, Any]

_parsed: dict[tuple[str, str], Kernel] = {}


def compiled_rows(name: str, case: Case, arch: int) -> list[Row]:
    """A row for each kernel that a case launches: the worst of what it is compiled to.

    Triton compiles a kernel anew where numbers are divisible by 16 or not, for example.
    """
    counts: Counter[str] = Counter()
    variants: dict[str, dict[Any, Compiled]] = {}
    # Launch parameters are those of the architecture, as on a GPU.
    with patch.object(_triton, "architecture", lambda device: arch):
        launches = launches_of(case)
    for launch in launches:
        if isinstance(launch.kernel, CudaKernel):
            compiled: Compiled = compile_cuda(launch, arch)
            kernel, key = launch.kernel.name, (compiled.name, compiled.shared)
        else:
            compiled = compile_launch(launch, arch)
            kernel, key = compiled.name, (id(compiled), 0)
        counts[kernel] += 1
        variants.setdefault(kernel, {})[key] = compiled
    return [
        {
            "case": name,
            "kernel": kernel,
            "arch": arch,
            "launches": counts[kernel],
            **_worst([*found.values()]),
        }
        for kernel, found in variants.items()
    ]


def _worst(variants: list[Compiled]) -> Row:
    static = [compiled.static for compiled in variants]
    kernels = [_kernel(compiled) for compiled in variants]
    return {
        "registers": max(s.registers for s in static),
        "spilled": max(s.spill_stores + s.spill_loads for s in static),
        "shared": max(s.shared for s in static),
        "occupancy": min(s.occupancy for s in static),
        "wide": min(map(_wide, kernels)),
        "atomics": max(map(_atomics, kernels)),
    }


def _kernel(compiled: Compiled) -> Kernel:
    key = compiled.ptx, compiled.name
    if key not in _parsed:
        _parsed[key] = parse(compiled.ptx, compiled.name)
    return _parsed[key]


def _wide(kernel: Kernel) -> float:
    """Bytes that loads and stores move by 128 bits, of all of them, each counted once."""
    found = widths(kernel)
    every = sum(width * count for width, count in found.items())
    wide = sum(width * count for width, count in found.items() if width >= 16)
    return round(wide / every, 3) if every else 1.0


def _atomics(kernel: Kernel) -> int:
    return sum(classify(i).startswith(("atom", "red.")) for i in kernel.instructions)
