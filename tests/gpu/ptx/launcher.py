"""Executes launches of kernels on CPU tensors, by their PTX for an architecture."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from da2s_fast.kernels.launch import CudaKernel, Launch
from tests.gpu.ptx import cuda
from tests.gpu.ptx.compile import Compiled, compile_launch
from tests.gpu.ptx.machine import Machine
from tests.gpu.ptx.memory import GlobalMemory
from tests.gpu.ptx.meter import Counts, Meter, read_counts
from tests.gpu.ptx.parse import Kernel, parse

_FORMATS = {
    "i1": "?", "u1": "?", "i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I",
    "i64": "q", "u64": "Q", "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip

_parsed: dict[tuple[str, str], Kernel] = {}


@dataclass(frozen=True)
class _Argument:
    name: str
    type: str
    value: Any


def flatten(signature: Any, value: Any, name: str) -> Iterator[_Argument]:
    """Arguments that are passed at run time; tuples element by element, constants left out."""
    if isinstance(signature, tuple):
        for position, (inner, part) in enumerate(zip(signature, value, strict=True)):
            yield from flatten(inner, part, f"{name}[{position}]")
    elif signature != "constexpr":
        yield _Argument(name, signature, value)


class PtxLauncher:
    """Give one to `da2s_fast.kernels.launch.launched_by`.

    Args:
        arch: compute capability, such as 80, 90 or 100.
        read_only: names of parameters (of any kernel) that must not be written.
        change: receives the PTX text and returns what is executed; plants faults in tests.

    Attributes:
        meters: one for every launch so far.
    """

    def __init__(self, arch: int, *, read_only: Iterable[str] = (), change: Any = None) -> None:
        self.arch = arch
        self.read_only = frozenset(read_only)
        self.change = change
        self.meters: list[Meter] = []

    def __call__(self, launch: Launch) -> None:
        """Compile and execute.

        Raises:
            KernelFault: see errors.py.
            NotImplementedError: for what the machine cannot execute.
        """
        of_triton = not isinstance(launch.kernel, CudaKernel)
        if of_triton:
            compiled = compile_launch(launch, self.arch)
        else:
            compiled = cuda.compile_cuda(launch, self.arch)
        text = self.change(compiled.ptx) if self.change else compiled.ptx
        key = text, compiled.name
        kernel = _parsed.get(key)
        if kernel is None:
            kernel = _parsed[key] = parse(text, compiled.name)
        memory = GlobalMemory()
        if of_triton:
            name = compiled.name
            parameters = self._parameters(kernel, compiled, launch.arguments, memory)
        else:
            name = launch.kernel.name
            parameters = cuda.parameters_of(launch, memory, self.read_only)
            parameters = parameters.ljust(kernel.parameter_bytes, b"\0")
        counts = Counts(kernel)
        x, y, z = (*launch.grid, 1, 1)[:3]
        if min(x, y, z) < 1:
            raise ValueError(f"{compiled.name} is launched on a grid of {launch.grid}")
        machine = Machine(
            kernel,
            (x, y, z),
            (32 * compiled.warps, 1, 1),
            parameters,
            memory,
            shared=compiled.shared,
            counts=counts,
        )
        machine.run()
        read, written = memory.sectors()
        meter = Meter(
            sectors_read=read,
            sectors_written=written,
            by_tensor={
                one.name: (int(one.read.sum()), int(one.written.sum()))
                for one in memory.allocations
            },
            kernel=name,
            grid=launch.grid,
            arch=self.arch,
            warps=compiled.warps,
            compiled=compiled,
        )
        meter.kernels[name] += 1
        self.meters.append(read_counts(counts, meter))

    def _parameters(
        self, kernel: Kernel, compiled: Compiled, values: dict[str, Any], memory: GlobalMemory
    ) -> bytes:
        given = [
            argument
            for name, signature in compiled.signature.items()
            for argument in flatten(signature, values.get(name), name)
        ]
        buffer = bytearray(kernel.parameter_bytes)
        # Pointers to scratch memory, which no supported kernel uses, come last.
        if len(kernel.parameters) != len(given) + 2:
            raise NotImplementedError(f"{compiled.name}: {len(kernel.parameters)} parameters")
        for parameter, argument in zip(kernel.parameters, given, strict=False):
            packed = self._pack(argument, memory)
            if len(packed) > parameter.size:
                raise TypeError(f"{argument.name}: {argument.type} for {parameter}")
            buffer[parameter.offset : parameter.offset + len(packed)] = packed
        return bytes(buffer)

    def _pack(self, argument: _Argument, memory: GlobalMemory) -> bytes:
        if argument.type[0] == "*":
            if not isinstance(argument.value, Tensor):
                raise TypeError(f"{argument.name} is no tensor")
            plain = argument.name.split("[")[0]
            writable = plain not in self.read_only and argument.name not in self.read_only
            address = memory.add_tensor(argument.name, argument.value, writable=writable)
            return struct.pack("<Q", address)
        if argument.type == "bf16":
            bits = torch.tensor(argument.value, dtype=torch.bfloat16).view(torch.int16)
            return struct.pack("<h", int(bits))
        if argument.type not in _FORMATS:
            raise NotImplementedError(f"{argument.name} of type {argument.type}")
        return struct.pack("<" + _FORMATS[argument.type], argument.value)


def poison(*tensors: Tensor) -> None:
    """Fill outputs with NaN, or with the bit pattern of ones, before a kernel must write them."""
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.dtype == torch.bool:
            tensor.fill_(True)
        else:
            tensor.fill_(-1 if tensor.dtype.is_signed else torch.iinfo(tensor.dtype).max)
