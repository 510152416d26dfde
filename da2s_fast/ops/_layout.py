"""Size and order in memory of what the fused operations return."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Tell whether x lies in memory as channels_last, and not as contiguous too."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Layout of the output for an input x, and of the gradient of x."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def strided_size(x: Tensor, stride: int) -> list[int]:
    """Size of a convolution of x, (rows, columns), whose padding keeps that of x at stride 1."""
    return [(length - 1) // stride + 1 for length in x.shape[2:]]
