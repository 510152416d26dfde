"""In which order of memory the fused operations return what they compute."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Tell whether x lies in memory as channels_last, and not as contiguous too."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Layout of the output for an input x, and of the gradient of x."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
