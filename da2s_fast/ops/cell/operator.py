"""The cell as operators of torch's: schemas, fake implementations, operation counts.

`da2s_fast.ops.cell.function` says what they compute; compiled libraries and, on GPUs, the drivers
of `da2s_fast.ops.cell.triton` implement them;
`da2s_fast.ops.cell.autograd` differentiates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from da2s_fast.ops._backend import LIBRARY, define_operator, has_kernel
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import register_triton
from da2s_fast.ops.cell import autograd
from da2s_fast.ops.cell.cost import Size, backward_operations, forward_operations
from da2s_fast.ops.cell.memory import saved_size
from da2s_fast.ops.cell.plan import CellPlan, decode

# statistics: by norm slot mean, then biased variance. saved: what backward needs beside the
# arguments, in a form of the kernels' own. running: mean, variance by norm slot, or nothing when
# no slot is frozen.
_FORWARD = define_operator(
    "cell(Tensor[] inputs, Tensor p, Tensor? g, Tensor[] weights, Tensor[] running, "
    "int[] frozen, int[] plan, float eps, bool save) "
    "-> (Tensor output, Tensor statistics, Tensor saved)"
)
# mask: one per input, then p, g, weights; what is not asked for is empty. All gradients of weights
# come in one flat tensor, one after the other.
_BACKWARD = define_operator(
    "cell_backward(Tensor grad, Tensor[] inputs, Tensor p, Tensor? g, Tensor[] weights, "
    "Tensor statistics, Tensor saved, int[] frozen, int[] plan, float eps, bool save, "
    "bool[] mask) -> (Tensor[] inputs, Tensor p, Tensor g, Tensor weights)"
)
# counts: values per channel of every preprocessing norm, then of the edges' norms. A negative
# momentum is 1 / tracked.
_UPDATE = define_operator(
    "cell_update_running(Tensor statistics, Tensor(a!)[] running, Tensor(b!)[] tracked, "
    "int[] frozen, int[] plan, int[] counts, float momentum) -> ()"
)
# sizes: channels, height and width of every input. element: bytes per number computed with.
_SAVED_SIZE = define_operator(
    "cell_saved_size(int[] plan, int batch, int[] sizes, bool save, int element) -> int"
)
for _operator in ("cell", "cell_backward", "cell_update_running"):
    register_triton(_operator, "da2s_fast.ops.cell.triton.drivers")
autograd.register()
HAS_CPU_KERNEL = has_kernel(_FORWARD, "cpu")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which inputs of this type are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _half(plan: CellPlan, length: int) -> int:
    return (length + 1) // 2 if plan.reduction else length


@torch.library.register_fake(_FORWARD, lib=LIBRARY)
def _fake_forward(  # noqa: PLR0917 - the schema's arguments
    inputs: list[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: list[Tensor],
    running: list[Tensor],
    frozen: list[int],
    plan: list[int],
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cell = decode(tuple(plan))
    x = inputs[-1]
    size = [_half(cell, length) for length in x.shape[2:]]
    output = x.new_empty((x.shape[0], cell.outputs * cell.channels, *size))
    # The kernels know how much they keep; asked with numbers, a traced size becomes fixed.
    sizes = [int(length) for tensor in inputs for length in tensor.shape[1:]]
    dtype = accumulation_dtype(x.dtype)
    numbers = saved_size(x.device, plan, int(x.shape[0]), sizes, save, dtype.itemsize)
    return (
        output.to(memory_format=memory_format_of(inputs[0])),
        x.new_empty((2 * sum(cell.norm_channels),), dtype=dtype),
        x.new_empty((numbers,), dtype=dtype),
    )


@torch.library.register_fake(_BACKWARD, lib=LIBRARY)
def _fake_backward(  # noqa: PLR0917 - the schema's arguments
    grad: Tensor,
    inputs: list[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: list[Tensor],
    statistics: Tensor,
    saved: Tensor,
    frozen: list[int],
    plan: list[int],
    eps: float,
    save: bool,
    mask: list[bool],
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    *for_inputs, for_p, for_g, for_weights = mask
    numbers = sum(weight.numel() for weight in weights) if for_weights else 0
    return (
        [
            torch.empty_like(x, memory_format=memory_format_of(x)) if wanted else x.new_empty((0,))
            for x, wanted in zip(inputs, for_inputs, strict=True)
        ],
        p.new_empty(p.shape if for_p else (0,)),
        p.new_empty((0,)) if g is None or not for_g else g.new_empty(g.shape),
        (weights[0] if weights else p).new_empty((numbers,)),
    )


@torch.library.register_fake(_UPDATE, lib=LIBRARY)
def _fake_update(*_: Any) -> None:
    """Buffers keep their shapes."""


def _sizes(inputs: Sequence[Sequence[int]]) -> list[Size]:
    return [Size(*shape[1:]) for shape in inputs]


@register_flop_formula(torch.ops.da2s_fast.cell)
def _forward_flops(  # noqa: PLR0917 - the schema's arguments, as shapes
    inputs: list[list[int]],
    p: list[int],
    g: list[int] | None,
    weights: list[list[int]],
    running: list[list[int]],
    frozen: list[int],
    plan: list[int],
    *_: Any,
    **__: Any,
) -> int:
    """Two per multiply-add of the convolutions, as torch counts its own."""
    return forward_operations(decode(tuple(plan)), inputs[0][0], _sizes(inputs))


@register_flop_formula(torch.ops.da2s_fast.cell_backward)
def _backward_flops(  # noqa: PLR0917 - the schema's arguments, as shapes
    grad: list[int],
    inputs: list[list[int]],
    p: list[int],
    g: list[int] | None,
    weights: list[list[int]],
    statistics: list[int],
    saved: list[int],
    frozen: list[int],
    plan: list[int],
    eps: float,
    save: bool,
    mask: list[bool],
    **_: Any,
) -> int:
    """A convolution's worth for each gradient needed; what is computed again does not count."""
    *wanted, _p, _g, for_weights = mask
    return backward_operations(
        decode(tuple(plan)), inputs[0][0], _sizes(inputs), wanted, for_weights
    )
