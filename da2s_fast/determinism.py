"""What PyTorch itself has to be told so that the same steps give the same bits on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Inside, PyTorch computes the same bits on a GPU whenever it computes the same.

    This package's kernels always do. So does what else searches and trainings call, but for
    convolutions: cuDNN has gradients of weights that are added up by atomics, in any order, and
    where it may try algorithms the fastest of the day is taken. Afterwards cuDNN is as it was.
    `torch.use_deterministic_algorithms` would do more than is needed: it fills all new memory, and
    refuses operations that users may have registered.

    Args:
        device: where the steps run. On CPUs nothing is changed.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
