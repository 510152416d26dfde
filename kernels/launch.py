"""How kernels are started, so that everything that starts them can be run elsewhere.

A GPU is one place; tests have others, which execute the compiled code of a kernel without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

FUSION = True
"""Multiplications and additions are fused: Triton's default, which is about to change."""


class CudaKernel(NamedTuple):
    """A kernel of csrc/cuda.

    Attributes:
        name: for messages and meters.
        operator: of the compiled library; takes the grid, then the arguments by name.
    """

    name: str
    operator: Callable[..., None]


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: the function under `triton.jit`, or a kernel of csrc/cuda.
        grid: programs along each of up to three axes.
        arguments: by the names of the kernel's parameters: tensors, numbers, tuples of them, None,
            and the compile-time constants.
        warps: warps of a program; Triton's.
        stages: of software pipelining; Triton's.
        registers: of a thread at most, Triton's; None leaves that to ptxas, which may rather spill
            than use them.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int
    registers: int | None = None


def on_device(started: Launch) -> Any:
    """Start a kernel on the current device's current stream; return what Triton compiled."""
    if isinstance(started.kernel, CudaKernel):
        return started.kernel.operator(list(started.grid), **started.arguments)
    return started.kernel[started.grid](
        **started.arguments,
        num_warps=started.warps,
        num_stages=started.stages,
        maxnreg=started.registers,
        enable_fp_fusion=FUSION,
    )


_start: ContextVar[Callable[[Launch], Any]] = ContextVar("start", default=on_device)


def starter() -> Callable[[Launch], Any]:
    """What starts this thread's launches."""
    return _start.get()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    warps: int = 4,
    stages: int = 1,
    registers: int | None = None,
    **arguments: Any,
) -> None:
    """Start a kernel on the current device's current stream, without waiting for it."""
    _start.get()(Launch(kernel, grid, arguments, warps, stages, registers))


@contextmanager
def launched_by(start: Callable[[Launch], Any]) -> Iterator[None]:
    """Inside, hand launches of this thread to `start` instead of the GPU."""
    token = _start.set(start)
    try:
        yield
    finally:
        _start.reset(token)
