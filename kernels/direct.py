"""Kernels started again without what Triton does before each launch.

Triton looks at every argument of every launch to find the compiled kernel, which takes longer than
many a kernel. Where arguments only differ by addresses, and these are aligned alike, it would find
the same one. How Triton starts that is no interface of Triton's: it is watched doing so, once for
each launch, and what it does not start as expected it goes on starting.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import reduce
from operator import itemgetter, or_
from threading import get_ident
from typing import Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

from da2s_fast.kernels.launch import Launch, on_device

ALIGNMENT = 16
"""Bytes: Triton compiles for addresses that are multiples of it, and for those that are not."""

COMPILED = not knobs.runtime.interpret
"""Whether kernels are compiled: Triton has an interpreter as well."""

Started = Callable[[Sequence[int], Sequence[Any], int], None]
"""Starts a kernel, given addresses, tensors and a stream."""


def is_watched() -> bool:
    """Whether somebody wants to hear of each launch, or of compiled kernels other than the usual.

    Profilers do; only Triton knows all that they are told.
    """
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # None, a function, or in later versions a chain of them.
    told = any(hook is not None and getattr(hook, "calls", True) for hook in hooks)
    # Unknown to Triton 3.5.
    return told or bool(getattr(knobs.compilation, "instrumentation_mode", ""))


def is_recorded() -> bool:
    """Whether a CUDA graph records what is started now, to start it again whenever it likes."""
    # Without a GPU torch has no answer.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def alignment(addresses: Sequence[int]) -> Hashable:
    """Which of them are aligned: the same answer for those for which Triton compiles the same."""
    if reduce(or_, addresses, 0) % ALIGNMENT == 0:
        return True  # all of them, as nearly always
    return tuple([address % ALIGNMENT == 0 for address in addresses])


def current_stream() -> int:
    """Of the current device, as Triton asks for it."""
    active = driver.active
    return int(active.get_current_stream(active.get_current_device()))


def operator(launch: Launch, tensors: Mapping[Any, int]) -> Started:
    """How to start a kernel of csrc/cuda.

    Args:
        launch: with slots among its arguments.
        tensors: which of the given tensors each slot is.
    """
    run, grid = launch.kernel.operator.default, list(launch.grid)
    # The grid is the first argument of each.
    template = [launch.arguments[argument.name] for argument in run._schema.arguments[1:]]
    moving = [(place, tensors[value]) for place, value in enumerate(template) if value in tensors]

    def started(addresses: Sequence[int], given: Sequence[Any], stream: int) -> None:
        filled = template.copy()
        for place, tensor in moving:
            filled[place] = given[tensor]
        run(grid, *filled)

    return started


def kernel(
    launch: Launch, full: Launch, compiled: Any, addresses: Mapping[Any, int]
) -> Started | None:
    """How to start a kernel of Triton's; None where only Triton can.

    Args:
        launch: with slots among its arguments.
        full: the same with tensors.
        compiled: what Triton found when it started that.
        addresses: which of the given addresses each slot is.
    """
    names = [parameter.name for parameter in launch.kernel.params]
    if not _is_as_expected(full, compiled, names):
        return None
    run, (x, y, z) = compiled.run, _axes(launch)
    template = [_addressed(launch.arguments[name]) for name in names]
    fills = [(place, _filling(value, addresses)) for place, value in enumerate(template)]
    moving = [(place, fill) for place, fill in fills if fill is not None]

    def started(given: Sequence[int], tensors: Sequence[Any], stream: int) -> None:
        arguments = template.copy()
        for place, fill in moving:
            arguments[place] = fill(given)
        # Nobody is told of the launch. The kernel is unloaded when `compiled` goes.
        told = None, None, None
        run(x, y, z, stream, compiled.function, compiled.packed_metadata, *told, *arguments)

    return started


def _filling(value: Any, addresses: Mapping[Any, int]) -> Callable[[Sequence[int]], Any] | None:
    """What puts given addresses into slots; None where there are none."""
    if not isinstance(value, tuple):
        return itemgetter(addresses[value]) if value in addresses else None
    if len(value) > 1 and all(item in addresses for item in value):
        return itemgetter(*(addresses[item] for item in value))
    template = list(value)
    fills = [(place, _filling(item, addresses)) for place, item in enumerate(template)]
    moving = [(place, fill) for place, fill in fills if fill is not None]

    def filled(given: Sequence[int]) -> tuple[Any, ...]:
        found = template.copy()
        for place, fill in moving:
            found[place] = fill(given)
        return tuple(found)

    return filled if moving else None


def _axes(launch: Launch) -> tuple[int, ...]:
    return (*launch.grid, 1, 1)[:3]


def _addressed(value: Any) -> Any:
    """With addresses instead of tensors that stay where they are."""
    if isinstance(value, tuple):
        return tuple(map(_addressed, value))
    return value.data_ptr() if hasattr(value, "data_ptr") else value


def _is_as_expected(full: Launch, compiled: Any, names: Sequence[str]) -> bool:
    """Whether Triton starts a kernel as `kernel` does."""
    if not isinstance(compiled, CompiledKernel) or set(names) != set(full.arguments):
        return False
    if getattr(compiled, "_run", None) is not compiled.run or full.kernel.pre_run_hooks:
        return False
    started, given = _watched(full, compiled), [full.arguments[name] for name in names]
    if started is None:
        return False
    start = (*_axes(full), current_stream(), compiled.function, compiled.packed_metadata)
    told, values = started[len(start) : len(start) + 3], started[len(start) + 3 :]
    return (
        started[: len(start)] == start
        and len(told) == 3
        and len(values) == len(given)
        and all(value is own for value, own in zip(values, given, strict=True))
    )


def _watched(full: Launch, compiled: Any) -> tuple[Any, ...] | None:
    """What Triton hands over to start a kernel, which is not started."""
    run, thread, seen = compiled.run, get_ident(), []

    def watch(*arguments: Any) -> Any:
        return seen.append(arguments) if get_ident() == thread else run(*arguments)

    compiled._run = watch
    try:
        # Unless that is what Triton will call, it would start the kernel once more.
        if compiled.run is watch:
            on_device(full)
    finally:
        compiled._run = run
    return seen[0] if len(seen) == 1 else None
