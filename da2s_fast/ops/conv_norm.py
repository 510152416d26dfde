"""ReLU, convolution and BatchNorm in training mode in one: stems and the blocks between stages.

``y = scale (z - mean) / sqrt(variance + eps) + shift`` with ``z = W * relu(x)`` (Ioffe and Szegedy
2015, algorithm 1). Fused, z is never stored: neither for the output nor, as there x, mean and
variance are enough, for the backward pass.
"""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from da2s_fast.errors import UserError
from da2s_fast.ops._backend import (
    LIBRARY,
    NO_CPU_LIBRARY,
    REFERENCE,
    choose_backend,
    define_operator,
    has_kernel,
    refuse_double_backward,
)
from da2s_fast.ops._layout import memory_format_of, strided_size

# Statistics: mean and biased variance, (2 C_out,); they carry no gradient.
_FORWARD = define_operator(
    "conv_norm(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, int stride, bool relu, "
    "float eps) -> (Tensor output, Tensor statistics)"
)
# A gradient that is not asked for is empty.
_BACKWARD = define_operator(
    "conv_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor? scale, Tensor? shift, "
    "Tensor statistics, int stride, bool relu, float eps, bool[] mask) "
    "-> (Tensor x, Tensor weight, Tensor scale, Tensor shift)"
)
_HAS_CPU_KERNEL = has_kernel(_FORWARD, "cpu")
_KERNELS = (1, 3)
_STRIDES = (1, 2)
_TRITON_REASON = "it has no Triton kernel"


def conv_norm(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = False,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply ReLU if asked, a convolution without bias, and BatchNorm with the batch's statistics.

    The padding is (k - 1) / 2, which keeps the size at stride 1.

    Args:
        x: (N, C, H, W), any strides.
        weight: (C_out, C, k, k), k odd.
        scale: of the norm, (C_out,); None for 1.
        shift: of the norm, (C_out,); None for 0.
        stride: of the convolution.
        relu: whether x goes through ReLU first.
        eps: of the norm, added to the variance.
        backend: "cpu" (compiled; float32 and float64, k of 1 or 3, stride 1 or 2), "reference"
            (plain PyTorch, on GPUs too) or None for the best that can run. "triton" says why it
            cannot.

    Returns:
        The output, (N, C_out, ceil(H / stride), ceil(W / stride)), channels_last where x is, and
        the statistics that it was normalized with, (2 C_out,): means, then biased variances. They
        carry no gradient.

    Raises:
        UserError: shapes that do not fit, a single value per channel, a backend that is unknown or
            cannot run.
    """
    _check(x, weight, scale, shift, stride)
    reasons = {"cpu": cpu_reason(x, weight, scale, shift, stride), "triton": _TRITON_REASON}
    if choose_backend("conv_norm", backend, reasons) == REFERENCE:
        return conv_norm_reference(x, weight, scale, shift, stride=stride, relu=relu, eps=eps)
    output, statistics = torch.ops.da2s_fast.conv_norm(x, weight, scale, shift, stride, relu, eps)
    return output, statistics


def conv_norm_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    stride: int,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Compute `conv_norm` in plain PyTorch, one step after the other."""
    z = F.conv2d(x.relu() if relu else x, weight, None, stride, (weight.shape[-1] - 1) // 2)
    output = F.batch_norm(z, None, None, scale, shift, training=True, eps=eps)
    variance, mean = torch.var_mean(z.detach(), (0, 2, 3), correction=0)
    return output, torch.cat((mean, variance))


def _check(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, stride: int
) -> None:
    channels = x.shape[1] if x.dim() == 4 else 0
    k = weight.shape[-1]
    if weight.dim() != 4 or weight.shape[1:] != (channels, k, k) or k % 2 == 0:
        raise UserError(
            f"conv_norm got an input of shape {tuple(x.shape)} and a weight of shape "
            f"{tuple(weight.shape)}; give it (N, C, H, W) and (C_out, C, k, k) with k odd"
        )
    for name, numbers in (("scale", scale), ("shift", shift)):
        if numbers is not None and numbers.shape != weight.shape[:1]:
            raise UserError(
                f"conv_norm got a {name} of shape {tuple(numbers.shape)} for {weight.shape[0]} "
                f"channels; give it ({weight.shape[0]},)"
            )
    if x.shape[0] * math.prod(strided_size(x, stride)) == 1:
        raise UserError(
            f"conv_norm got a single value per channel (input {tuple(x.shape)}, stride {stride}), "
            "whose variance means nothing; give it more images or larger ones"
        )


def cpu_reason(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, stride: int
) -> str | None:
    """Say why the compiled CPU operator cannot run; None where it can."""
    if not _HAS_CPU_KERNEL:
        return NO_CPU_LIBRARY
    if torch.is_autocast_enabled("cpu"):
        return "autocast computes convolutions in a type it does not take"
    for tensor in (x, weight, scale, shift):
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != x.dtype:
            return f"tensors are {x.dtype} and {tensor.dtype}"
    if weight.shape[-1] not in _KERNELS or stride not in _STRIDES:
        return f"the kernel has {weight.shape[-1]} rows and stride {stride}"
    if x.numel() == 0 or weight.numel() == 0:
        return "a tensor is empty"
    return None


@torch.library.register_fake(_FORWARD, lib=LIBRARY)
def _fake_forward(  # noqa: PLR0917 - the schema's arguments
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stride: int,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    output = x.new_empty((x.shape[0], weight.shape[0], *strided_size(x, stride)))
    return output.to(memory_format=memory_format_of(x)), x.new_empty((2 * weight.shape[0],))


@torch.library.register_fake(_BACKWARD, lib=LIBRARY)
def _fake_backward(  # noqa: PLR0917 - the schema's arguments
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    statistics: Tensor,
    stride: int,
    relu: bool,
    eps: float,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layouts = (memory_format_of(x), torch.contiguous_format)
    large = [
        torch.empty_like(tensor, memory_format=layout) if wanted else x.new_empty((0,))
        for tensor, layout, wanted in zip((x, weight), layouts, mask[:2], strict=True)
    ]
    small = [x.new_empty((weight.shape[0] if wanted else 0,)) for wanted in mask[2:]]
    return large[0], large[1], small[0], small[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, scale, shift, *ctx.settings = inputs
    statistics = output[1]
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(x, weight, scale, shift, statistics)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:4])
    grads = torch.ops.da2s_fast.conv_norm_backward(grad, *ctx.saved_tensors, *ctx.settings, mask)
    wanted = (g if needed else None for g, needed in zip(grads, mask, strict=True))
    return *wanted, None, None, None


def _double_backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
    refuse_double_backward("conv_norm")


@register_flop_formula(torch.ops.da2s_fast.conv_norm)
def _forward_flops(
    x: list[int],
    weight: list[int],
    *_: Any,
    out_shape: tuple[list[int], list[int]],
    **__: Any,
) -> int:
    """Two per multiply-add of the convolution, as torch counts its own; none for the norm."""
    images, _channels, *size = out_shape[0]
    return 2 * images * math.prod(size) * math.prod(weight)


@register_flop_formula(torch.ops.da2s_fast.conv_norm_backward)
def _backward_flops(  # noqa: PLR0917 - the schema's arguments, as shapes
    grad: list[int],
    x: list[int],
    weight: list[int],
    scale: list[int] | None,
    shift: list[int] | None,
    statistics: list[int],
    stride: int,
    relu: bool,
    eps: float,
    mask: list[bool],
    **_: Any,
) -> int:
    """A convolution's worth for each gradient asked for; what is recomputed does not count."""
    to_x, to_weight, *_norm = mask
    return 2 * (to_x + to_weight) * grad[0] * math.prod(grad[2:]) * math.prod(weight)


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd(_BACKWARD, _double_backward, lib=LIBRARY)
