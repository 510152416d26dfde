"""The convolutions and pools of a cell with their gradients, as single steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from da2s_fast.ops.cell.operations import Conv


def depthwise(x: Tensor, weight: Tensor, conv: Conv, stride: int) -> Tensor:
    """(N, C, H, W) with (C, 1, k, k)."""
    return F.conv2d(x, weight, None, stride, conv.padding, conv.dilation, x.shape[1])


def depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, conv: Conv, stride: int
) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dweight."""
    geometry = Geometry(stride, conv.padding, conv.dilation, x.shape[1])
    return _backward(gradient, x, weight, geometry)


def pointwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """(N, C_in, H, W) with (C_out, C_in, 1, 1)."""
    return F.conv2d(x, weight, None, stride)


def pointwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dweight."""
    return _backward(gradient, x, weight, Geometry(stride, 0, 1, 1))


class Geometry(NamedTuple):
    """How a convolution moves over its input, the same in both directions."""

    stride: int
    padding: int
    dilation: int
    groups: int


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation, groups = geometry
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [stride] * 2,
        [padding] * 2,
        [dilation] * 2,
        False,
        [0, 0],
        groups,
        [True, True, False],
    )
    return grad_x, grad_weight


def shifted(x: Tensor) -> Tensor:
    """X moved by one pixel up and left, zeros at the far edge of odd sizes (FactorizedReduce)."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]


def shifted_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """dL/dx of `shifted`."""
    height, width = x.shape[-2:]
    return F.pad(gradient, (1, 0, 1, 0))[:, :, :height, :width]


def factorized_reduce(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Both stride-2 pointwise convolutions, (N, C, ceil(H / 2), ceil(W / 2))."""
    return torch.cat([pointwise(x, first, 2), pointwise(shifted(x), second, 2)], 1)


def factorized_reduce_backward(
    gradient: Tensor, x: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, dL/dfirst, dL/dsecond."""
    split = first.shape[0]
    moved = shifted(x)
    grad_x, grad_first = pointwise_backward(gradient[:, :split], x, first, 2)
    grad_moved, grad_second = pointwise_backward(gradient[:, split:], moved, second, 2)
    return grad_x + shifted_backward(grad_moved, x), grad_first, grad_second


def dense(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """(N, C_in, H, W) with (C_out, C_in, k, k), k odd; keeps the size at stride 1."""
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)


def dense_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dweight."""
    return _backward(gradient, x, weight, Geometry(stride, weight.shape[-1] // 2, 1, 1))


def relu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """dL/dx: nothing where x <= 0; NaN lets gradients through, as in torch."""
    return torch.ops.aten.threshold_backward(gradient, x, 0)


def pool(x: Tensor, operation: str, stride: int) -> tuple[Tensor, Tensor | None]:
    """The pooled tensor and, for max pools, where each maximum came from."""
    if operation.startswith("max"):
        return F.max_pool2d(x, 3, stride, 1, return_indices=True)
    return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), None


def pool_backward(gradient: Tensor, x: Tensor, indices: Tensor | None, stride: int) -> Tensor:
    """dL/dx of a pool."""
    if indices is not None:
        return torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, x, [3, 3], [stride] * 2, [1, 1], [1, 1], False, indices
        )
    return torch.ops.aten.avg_pool2d_backward(
        gradient, x, [3, 3], [stride] * 2, [1, 1], False, False, None
    )


def bypass(x: Tensor, stride: int) -> tuple[Tensor, Tensor | None]:
    """The channels that no candidate sees: as they are, or max-pooled 2x2 at stride 2."""
    if stride == 1:
        return x, None
    return F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)


def bypass_backward(gradient: Tensor, x: Tensor, indices: Tensor | None) -> Tensor:
    """dL/dx of `bypass`."""
    if indices is None:
        return gradient
    return torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, x, [2, 2], [2, 2], [0, 0], [1, 1], True, indices
    )
