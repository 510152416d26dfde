"""Opt-in: launch parameters found by trying them, where a GPU is.

With DA2S_AUTOTUNE=1 in the environment every kernel is tried with other numbers of warps and limits
of registers than `kernels.tuning` has, when it is first launched for shapes; the fastest stays
until the process ends. Meanwhile there is a copy of everything the kernel could write, and the host
waits for the GPU. While a CUDA graph is recorded nothing is tried: run the same steps before.

Sums are taken in an order that depends on the number of warps. So results may differ in their last
bits from run to run, and between what was saved and what is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_RUNS = 5
_MOST_WARPS = 16


def autotuned() -> AbstractContextManager[None]:
    """Inside, launches go through the autotuner, if it was asked for and there is a GPU."""
    tuner = _tuner() if os.environ.get("DA2S_AUTOTUNE") == "1" else None
    if tuner is None:
        return nullcontext()
    launched: AbstractContextManager[None] = import_module("da2s_fast.kernels.launch").launched_by(
        tuner
    )
    return launched


@cache
def _tuner() -> Tuner | None:
    """The process's own; None without a driver."""
    runs, _ = import_module("da2s_fast.kernels").can_run()
    return (
        Tuner(import_module("da2s_fast.kernels.launch").on_device, milliseconds) if runs else None
    )


class Tuner:
    """Starts launches with the parameters that were the fastest.

    Args:
        start: starts a launch.
        measure: starts a launch several times and returns how long it took.
    """

    def __init__(
        self,
        start: Callable[[Any], None],
        measure: Callable[[Callable[[Any], None], Any], float],
    ) -> None:
        self._start, self._measure = start, measure
        self._found: dict[Any, Any] = {}

    def __call__(self, launch: Any) -> None:
        """Start it, and before that find out how if it is the first of its kind."""
        if isinstance(launch.kernel, import_module("da2s_fast.kernels.launch").CudaKernel):
            return self._start(launch)  # how many warps it has was settled by its compiler
        key = launch.kernel, launch.grid, _kind(launch.arguments)
        if key not in self._found and not torch.cuda.is_current_stream_capturing():
            fastest = self._fastest(launch)
            self._found[key] = fastest.warps, fastest.registers
        warps, registers = self._found.get(key, (launch.warps, launch.registers))
        self._start(launch._replace(warps=warps, registers=registers))

    def _fastest(self, launch: Any) -> Any:
        """The table's own unless another takes less time; memory is left as it was."""
        failures = import_module("triton").runtime.errors.OutOfResources
        memory = [*_memory(launch.arguments)]
        before = [block.clone() for block in memory]
        best, least = launch, float("inf")
        for candidate in _candidates(launch):
            try:
                time = self._measure(self._start, candidate)
            except failures:
                continue
            finally:
                for block, copy in zip(memory, before, strict=True):
                    block.copy_(copy)
            if time < least:
                best, least = candidate, time
        return best


def _candidates(launch: Any) -> Iterator[Any]:
    """The launch itself, then others."""
    yield launch
    for warps in (launch.warps // 2, launch.warps, 2 * launch.warps):
        for registers in {launch.registers, None}:
            if 1 <= warps <= _MOST_WARPS and (warps, registers) != (launch.warps, launch.registers):
                yield launch._replace(warps=warps, registers=registers)


def _kind(value: Any) -> Any:
    """What decides how long a launch takes: tensors by type and size, numbers by value."""
    if isinstance(value, dict):
        return tuple((name, _kind(item)) for name, item in value.items())
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    if isinstance(value, Tensor):
        return value.dtype, value.numel(), value.device
    return str(value)


def _memory(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All memory that arguments reach, as bytes, each block once."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
    elif isinstance(value, tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _memory(item, seen)


def milliseconds(start: Callable[[Any], None], launch: Any) -> float:
    """The median of some runs on the current stream, compilation left out."""
    start(launch)
    times = []
    for _ in range(_RUNS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        start(launch)
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return sorted(times)[_RUNS // 2]
