"""First layers of the networks, before any cell."""

from __future__ import annotations

from torch import nn

from da2s_fast.nn.conv_norm import ConvNormSequential


def cifar_stem(in_channels: int, channels: int) -> ConvNormSequential:
    """3x3 convolution and BatchNorm: (N, in_channels, H, W) to (N, channels, H, W)."""
    return ConvNormSequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
    )


def imagenet_stems(
    in_channels: int, channels: int
) -> tuple[ConvNormSequential, ConvNormSequential]:
    """Stems for large images: the first divides height and width by 4, the second by 2 more.

    As `stem0` and `stem1` of DARTS's `NetworkImageNet`; both have `channels` outputs.
    """
    half = channels // 2
    stem0 = ConvNormSequential(
        nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    stem1 = ConvNormSequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return stem0, stem1
