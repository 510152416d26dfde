"""How fast this machine can compute and copy at best: what every row is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

_SIDES = {"cpu": 2048, "cuda": 8192}
_COPIED = 1 << 29  # bytes of the source, more than caches hold
_REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second, on all threads that torch uses."""

    operations: float
    """Floating-point operations of a large float32 matrix product, 2 per multiply-add."""
    bytes: float
    """Bytes read and written by a large copy."""

    def seconds(self, operations: float, moved: float) -> float:
        """The least time for so many operations and bytes."""
        return operations / self.operations + moved / self.bytes


class Limits:
    """Measures the rates; lives in a process of its own, as every row.

    Args:
        device: "cpu" or "cuda".
        side: of the matrices.
        copied: bytes of the tensor that is copied.
    """

    def __init__(self, device: str, side: int | None = None, copied: int = _COPIED) -> None:
        self.device = device
        side = side or _SIDES[device]
        self.a, self.b, self.c = (torch.rand(side, side, device=device) for _ in range(3))
        self.source, self.target = (
            torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2)
        )
        self.measure()

    def measure(self) -> Rates:
        """Both rates, now."""
        product = self._seconds(lambda: torch.mm(self.a, self.b, out=self.c))
        copy = self._seconds(lambda: self.target.copy_(self.source))
        return Rates(2 * len(self.a) ** 3 / product, 2 * len(self.source) / copy)

    def _seconds(self, function: Callable[[], Tensor]) -> float:
        found = []
        for _ in range(_REPEATS):
            self._wait()
            start = time.perf_counter()
            function()
            self._wait()
            found.append(time.perf_counter() - start)
        return median(found)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
