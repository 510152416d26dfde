"""What the fused operations share: their library of schemas and the choice of a backend."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn, TypeVar

import torch

from da2s_fast.backends import load_libraries
from da2s_fast.errors import UserError

REFERENCE = "reference"
NO_CPU_LIBRARY = "the compiled CPU library is not there (`da2s info` says why)"
"""Why operators whose `has_kernel` is false do not run."""

Function = TypeVar("Function", bound=Callable[..., object])

# Defined here, in Python, so that every operator exists (with its schema, fake implementation
# and autograd rule) where nothing was compiled; the compiled libraries add implementations only.
LIBRARY = torch.library.Library("da2s_fast", "FRAGMENT")
load_libraries()


def define_operator(schema: str) -> str:
    """Define an operator from its schema and return its qualified name.

    ``needs_exact_strides``: the layout of the outputs follows that of the inputs, so compilers
    must hand over the strides they saw while tracing.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    return f"da2s_fast::{schema.split('(', 1)[0]}"


def has_kernel(operator: str, device_type: str) -> bool:
    """Tell whether a compiled library brought an implementation of an operator."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, device_type.upper()))


def constant_in_graphs(function: Function) -> Function:
    """Let compiled graphs keep a function's answer: `torch.compiler.assume_constant_result`.

    That imports the compiler, which takes longer than all of this package; only the mark is made.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def exporting() -> bool:
    """`torch.compiler.is_exporting`, which the compiler of torch 2.10 takes to be always true."""
    return torch.compiler.is_exporting()


def refuse_double_backward(name: str) -> NoReturn:
    """Say, from within a backward formula, that an operation cannot be differentiated twice."""
    raise RuntimeError(
        f"the fused {name} has no second derivative; pass backend='{REFERENCE}' to {name}, or "
        f"compute modules inside `with da2s_fast.nn.use_backend('{REFERENCE}')`, to differentiate "
        "twice"
    )


_CHOSEN: ContextVar[str | None] = ContextVar("backend", default=None)


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Inside, fused operations that are asked for no backend use this one.

    "reference" computes in plain PyTorch, module by module: for comparisons, and to differentiate
    twice. "cpu" and "triton" raise a UserError that says why where a fused operator cannot run,
    instead of turning to the reference. Holds for this thread; what torch.compile compiled keeps
    the backend that was chosen then.
    """
    token = _CHOSEN.set(backend)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


@constant_in_graphs
def chosen_backend() -> str | None:
    """What `use_backend` chose; not every compiler that is supported can read it itself."""
    return _CHOSEN.get()


def choose_backend(name: str, requested: str | None, reasons: Mapping[str, str | None]) -> str:
    """Choose the backend of one call.

    Args:
        name: the operation, for messages.
        requested: what the caller asked for; None for what `use_backend` chose, else for the
            first that can run.
        reasons: for every fused backend, best first, why it cannot run; None where it can.

    Raises:
        UserError: the backend asked for is unknown or cannot run.
    """
    requested = requested or chosen_backend()
    if requested is None:
        return next((key for key, reason in reasons.items() if reason is None), REFERENCE)
    if requested == REFERENCE:
        return requested
    if requested not in reasons:
        known = ", ".join([*reasons, REFERENCE])
        raise UserError(f"{name} has no backend {requested!r}; choose one of: {known}")
    if reasons[requested] is not None:
        raise UserError(
            f"backend {requested!r} of {name} cannot run: {reasons[requested]}; "
            f"pass backend=None or '{REFERENCE}'"
        )
    return requested
