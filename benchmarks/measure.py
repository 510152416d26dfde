"""What all benchmarks share: devices, rows of one table, and the limit that memory sets."""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Eager PyTorch, then every fused backend of the device.
BACKENDS = {"cpu": ["reference", "cpu"], "cuda": ["reference", "triton"]}
# A row that copies as many bytes as the operation must move at least, counting reads and writes.
COPY = "copy"
_POOL = 1 << 28  # bytes, far more than any cache


def rows(*more: str) -> list[tuple[str, str]]:
    """Return the rows of a table: a device and a backend, or another row of each device."""
    return [(device, row) for device in DEVICES for row in [*BACKENDS[device], *more]]


def synchronized(device: str, function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def copy_of(least_bytes: int, device: str) -> Callable[[], Tensor]:
    """Return a function that copies half as many bytes, others at every call: from memory."""
    size = least_bytes // 2
    source, target = (torch.ones(max(size, _POOL), dtype=torch.uint8, device=device) for _ in "ab")
    pairs = cycle(
        list(zip(source.split(size), target.split(size), strict=True))[: _POOL // size or 1]
    )

    def copy() -> Tensor:
        chunk, destination = next(pairs)
        return destination.copy_(chunk)

    return copy
