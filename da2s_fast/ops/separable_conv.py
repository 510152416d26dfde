"""ReLU, depthwise and pointwise convolution in one: half a separable convolution.

``z = W2 * (W1 *_depthwise relu(x))``: what every convolution among DARTS's candidates is made of
(Liu et al. 2019, appendix A.1). Fused, neither ReLU(x) nor the depthwise result exists in memory,
and backward keeps x only.
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
from da2s_fast.ops._triton import register_triton, triton_reason

_FORWARD = define_operator(
    "separable_conv(Tensor x, Tensor spatial, Tensor channel, int stride, int padding, "
    "int dilation) -> Tensor"
)
# A gradient that is not asked for is empty.
_BACKWARD = define_operator(
    "separable_conv_backward(Tensor grad, Tensor x, Tensor spatial, Tensor channel, int stride, "
    "int padding, int dilation, bool[] mask) -> (Tensor x, Tensor spatial, Tensor channel)"
)
_HAS_CPU_KERNEL = has_kernel(_FORWARD, "cpu")
for _operator in ("separable_conv", "separable_conv_backward"):
    register_triton(_operator, "da2s_fast.ops.separable_conv_triton")
_KERNELS = (3, 5, 7)
# (size, dilation) of kernels that the cell's CPU engine has inner loops for, at strides 1 and 2.
_CPU_KERNELS = ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2))
_CPU_STRIDES = (1, 2)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def separable_conv(
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Apply ReLU, a depthwise and a pointwise convolution, both without bias.

    The padding is dilation * (k - 1) / 2, which keeps the size at stride 1.

    Args:
        x: (N, C, H, W), any strides.
        spatial: (C, 1, k, k), k odd.
        channel: (C_out, C, 1, 1).
        stride: of the depthwise convolution.
        dilation: of the depthwise convolution.
        backend: "cpu" (compiled; float32 and float64, k of 3, 5 or 7, of 3 or 5 with dilation 2,
            stride 1 or 2), "triton" (CUDA tensors; bfloat16 and float16 too, computed in float32,
            k of 3, 5 or 7), "reference" (plain PyTorch) or None for the best that can run.

    Returns:
        (N, C_out, ceil(H / stride), ceil(W / stride)), channels_last where x is. Under autocast it
        has autocast's type; the Triton kernels then take x in that type and weights as they are.

    Raises:
        UserError: shapes that do not fit, a backend that is unknown or cannot run.
    """
    _check(x, spatial, channel)
    reasons = {
        "cpu": _cpu_reason(x, spatial, channel, stride, dilation),
        "triton": _triton_reason(x, spatial, channel),
    }
    if choose_backend("separable_conv", backend, reasons) == REFERENCE:
        return separable_conv_reference(x, spatial, channel, stride=stride, dilation=dilation)
    if _lowers(x):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    padding = _padding(spatial, dilation)
    return torch.ops.da2s_fast.separable_conv(x, spatial, channel, stride, padding, dilation)


def separable_conv_reference(
    x: Tensor, spatial: Tensor, channel: Tensor, *, stride: int, dilation: int
) -> Tensor:
    """Compute `separable_conv` in plain PyTorch, one step after the other."""
    padding = _padding(spatial, dilation)
    middle = F.conv2d(x.relu(), spatial, None, stride, padding, dilation, x.shape[1])
    return F.conv2d(middle, channel)


def _padding(spatial: Tensor, dilation: int) -> int:
    return dilation * (spatial.shape[-1] - 1) // 2


def _check(x: Tensor, spatial: Tensor, channel: Tensor) -> None:
    channels = x.shape[1] if x.dim() == 4 else 0
    k = spatial.shape[-1]
    if spatial.shape != (channels, 1, k, k) or k % 2 == 0:
        raise UserError(
            f"separable_conv got an input of shape {tuple(x.shape)} and a depthwise weight of "
            f"shape {tuple(spatial.shape)}; give it (N, C, H, W) and (C, 1, k, k) with k odd"
        )
    if channel.shape[1:] != (channels, 1, 1):
        raise UserError(
            f"separable_conv got a pointwise weight of shape {tuple(channel.shape)} for "
            f"{channels} channels; give it (C_out, {channels}, 1, 1)"
        )


def _cpu_reason(
    x: Tensor, spatial: Tensor, channel: Tensor, stride: int, dilation: int
) -> str | None:
    """Say why the compiled CPU operator cannot run; None where it can."""
    if not _HAS_CPU_KERNEL:
        return NO_CPU_LIBRARY
    if torch.is_autocast_enabled("cpu"):
        return "autocast computes convolutions in a type it does not take"
    for tensor in (x, spatial, channel):
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != x.dtype:
            return f"tensors are {x.dtype} and {tensor.dtype}"
    if (spatial.shape[-1], dilation) not in _CPU_KERNELS or stride not in _CPU_STRIDES:
        return f"the kernel has {spatial.shape[-1]} rows, dilation {dilation} and stride {stride}"
    return _empty_reason(x, channel)


def _triton_reason(x: Tensor, spatial: Tensor, channel: Tensor) -> str | None:
    """Say why the Triton kernels cannot run; None where they can."""
    for tensor in (x, spatial, channel):
        if tensor.dtype not in _DTYPES:
            return f"a tensor is {tensor.dtype}"
        if tensor.dtype != x.dtype and not (_lowers(x) and _lowers(tensor)):
            return f"tensors are {x.dtype} and {tensor.dtype}"
    reason = triton_reason(x, spatial, channel)
    if reason is None and spatial.shape[-1] not in _KERNELS:
        reason = f"the kernel has {spatial.shape[-1]} rows"
    return reason or _empty_reason(x, channel)


def _empty_reason(x: Tensor, channel: Tensor) -> str | None:
    if x.numel() == 0 or channel.numel() == 0:
        return "a tensor is empty"
    return None


def _lowers(tensor: Tensor) -> bool:
    """Whether autocast computes convolutions of a tensor in its own type."""
    return torch.is_autocast_enabled(tensor.device.type) and tensor.dtype != torch.float64


@torch.library.register_fake(_FORWARD, lib=LIBRARY)
def _fake_forward(  # noqa: PLR0917 - the schema's arguments
    x: Tensor, spatial: Tensor, channel: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    out = x.new_empty((x.shape[0], channel.shape[0], *strided_size(x, stride)))
    return out.to(memory_format=memory_format_of(x))


@torch.library.register_fake(_BACKWARD, lib=LIBRARY)
def _fake_backward(  # noqa: PLR0917 - the schema's arguments
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    layouts = (memory_format_of(x), torch.contiguous_format, torch.contiguous_format)
    found = [
        torch.empty_like(tensor, memory_format=layout) if wanted else x.new_empty((0,))
        for tensor, layout, wanted in zip((x, spatial, channel), layouts, mask, strict=True)
    ]
    return found[0], found[1], found[2]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, spatial, channel, *ctx.geometry = inputs
    ctx.save_for_backward(x, spatial, channel)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:3])
    grads = torch.ops.da2s_fast.separable_conv_backward(
        grad, *ctx.saved_tensors, *ctx.geometry, mask
    )
    wanted = (g if needed else None for g, needed in zip(grads, mask, strict=True))
    return *wanted, None, None, None


def _double_backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
    refuse_double_backward("separable_conv")


@register_flop_formula(torch.ops.da2s_fast.separable_conv)
def _forward_flops(  # noqa: PLR0917 - the schema's arguments, as shapes
    x: list[int],
    spatial: list[int],
    channel: list[int],
    stride: int,
    padding: int,
    dilation: int,
    *,
    out_shape: list[int],
    **_: Any,
) -> int:
    """Two per multiply-add, as torch counts its own convolutions."""
    out_channels, in_channels = channel[:2]
    images, _channels, *size = out_shape
    per_pixel = in_channels * (math.prod(spatial[2:]) + out_channels)
    return 2 * images * math.prod(size) * per_pixel


@register_flop_formula(torch.ops.da2s_fast.separable_conv_backward)
def _backward_flops(  # noqa: PLR0917 - the schema's arguments, as shapes
    grad: list[int],
    x: list[int],
    spatial: list[int],
    channel: list[int],
    stride: int,
    padding: int,
    dilation: int,
    mask: list[bool],
    **_: Any,
) -> int:
    """A convolution's worth for each gradient asked for; what is recomputed does not count."""
    pixels = grad[0] * math.prod(grad[2:])
    out_channels, in_channels = channel[:2]
    depthwise = pixels * in_channels * math.prod(spatial[2:])
    pointwise = pixels * in_channels * out_channels
    to_x, to_spatial, to_channel = mask
    return 2 * (
        to_x * depthwise
        + to_spatial * depthwise
        + (to_x or to_spatial) * pointwise
        + to_channel * pointwise
    )


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd(_BACKWARD, _double_backward, lib=LIBRARY)
