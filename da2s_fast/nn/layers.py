"""Running a chain of layers, with ReLU-depthwise-pointwise triples as one fused operation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from da2s_fast.nn.hooks import has_hooks
from da2s_fast.ops import separable_conv


def run_layers(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply the layers one after the other; the same numbers as calling each."""
    position = 0
    while position < len(layers):
        triple = layers[position : position + 3]
        if is_separable(triple):
            _, depthwise, pointwise = triple
            x = separable_conv(
                x,
                depthwise.weight,  # type: ignore[arg-type]
                pointwise.weight,  # type: ignore[arg-type]
                stride=depthwise.stride[0],  # type: ignore[index, arg-type]
                dilation=depthwise.dilation[0],  # type: ignore[index, arg-type]
            )
            position += 3
        else:
            x = layers[position](x)
            position += 1
    return x


def is_separable(layers: Sequence[nn.Module]) -> bool:
    """Whether these are exactly ReLU, a depthwise and a pointwise convolution, nobody listening.

    Subclasses do not count (parametrized or quantized convolutions are such): they may compute
    something else.
    """
    if [type(layer) for layer in layers] != [nn.ReLU, nn.Conv2d, nn.Conv2d]:
        return False
    relu, depthwise, pointwise = layers
    assert isinstance(relu, nn.ReLU)
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(pointwise, nn.Conv2d)
    kernel, channels = depthwise.kernel_size[0], depthwise.in_channels
    dilation = depthwise.dilation[0]
    return (
        not relu.inplace
        and depthwise.groups == channels == depthwise.out_channels
        and depthwise.kernel_size == (kernel, kernel)
        and kernel % 2 == 1
        and depthwise.dilation == (dilation, dilation)
        and depthwise.stride[0] == depthwise.stride[1]
        and depthwise.padding == (dilation * (kernel - 1) // 2,) * 2
        and depthwise.padding_mode == "zeros"
        and pointwise.kernel_size == pointwise.stride == (1, 1)
        and pointwise.padding == (0, 0)
        and pointwise.groups == 1
        and depthwise.bias is None
        and pointwise.bias is None
        and not any(map(has_hooks, layers))
    )
