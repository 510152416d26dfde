"""Chains in which a convolution and the BatchNorm behind it run as one fused operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from da2s_fast.nn.hooks import has_hooks
from da2s_fast.ops import conv_norm
from da2s_fast.ops._backend import chosen_backend, exporting
from da2s_fast.ops._layout import strided_size
from da2s_fast.ops.conv_norm import cpu_reason


class ConvNormSequential(nn.Sequential):
    """Modules one after the other; [ReLU,] convolution and BatchNorm as one where that is the same.

    It is in training mode, on CPUs, without autocast. Otherwise, and where somebody registered
    hooks or exchanged layers for other ones, modules run one by one; nothing is raised where the
    operator cannot run.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Output of every module."""
        # Exported programs must run where this package's operators are not installed.
        if exporting() or chosen_backend() not in (None, "cpu"):
            return super().forward(x)
        if not torch.compiler.is_compiling() and _has_any_global_hook():
            return super().forward(x)
        layers = list(self)
        fresh = False  # whether x was made here: then nobody sees that it was not changed in place
        while layers:
            relu = _is_relu(layers[0]) and (fresh or not layers[0].inplace)
            fused = _run_fused(layers[relu : relu + 2], x, relu=relu)
            fresh = fused is not None
            x = layers[0](x) if fused is None else fused
            del layers[: 1 if fused is None else relu + 2]
        return x


def _is_relu(layer: nn.Module) -> bool:
    return type(layer) is nn.ReLU and not has_hooks(layer)


def is_conv_norm(layers: Sequence[nn.Module]) -> bool:
    """Whether these are a convolution and a training BatchNorm as the operator computes them.

    Subclasses do not count (parametrized or quantized layers are such): they may compute something
    else.
    """
    if [type(layer) for layer in layers] != [nn.Conv2d, nn.BatchNorm2d]:
        return False
    conv, norm = layers
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    k, stride = conv.kernel_size[0], conv.stride[0]
    return (
        k % 2 == 1
        and conv.weight.shape == (norm.num_features, conv.in_channels, k, k)
        and conv.kernel_size == (k, k)
        and conv.stride == (stride, stride)
        and conv.padding == (k // 2, k // 2)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.bias is None
        and norm.training
        and norm.track_running_stats
        and not any(map(has_hooks, layers))
    )


def _run_fused(layers: Sequence[nn.Module], x: Tensor, *, relu: bool) -> Tensor | None:
    """Both layers by the operator, running statistics moved on; None where it cannot run."""
    if not is_conv_norm(layers):
        return None
    conv, norm = layers
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    stride = conv.stride[0]
    parameters = (conv.weight, norm.weight, norm.bias)
    buffers = (norm.running_mean, norm.running_var)
    if (
        x.dim() != 4
        or x.shape[1] != conv.in_channels
        or cpu_reason(x, *parameters, stride) is not None
        or norm.num_batches_tracked is None
        or any(buffer is None or buffer.dtype != x.dtype for buffer in buffers)
    ):
        return None
    height, width = strided_size(x, stride)
    values = x.shape[0] * height * width
    if values == 1:  # BatchNorm's error to raise
        return None
    output, statistics = conv_norm(x, *parameters, stride=stride, relu=relu, eps=norm.eps)
    _update_running(norm, statistics, values)
    return output


def _update_running(norm: nn.BatchNorm2d, statistics: Tensor, values: int) -> None:
    """Move running statistics towards those of a batch, as the norm itself does.

    Args:
        norm: in training mode, with running statistics.
        statistics: means and biased variances, (2 C,).
        values: of a channel in the batch.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        mean, variance = statistics.chunk(2)
        share: Any = norm.momentum
        if share is None:  # the plain average over all batches, without waiting for a number
            share = norm.num_batches_tracked.to(mean.dtype).reciprocal()
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance * (values / (values - 1)), share)
