"""The floating-point operations of every case: one half of the limit.

They are those that eager PyTorch's convolutions and matrix products execute, 2 per multiply-add:
forward, and as many again for each of the two gradients, where it is asked for. The save mode of
the fused cell executes just as many.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.cases import Case, Row
from benchmarks.subject import Wanted


@cache
def operations(case: Case, wanted: Wanted) -> int:
    """Floating-point operations of a step by eager PyTorch, per image."""
    subject = case.subject(Row("", "eager", wanted=wanted))
    with _OperationCounter() as counter:
        subject.step(1)
    return counter.total


class _OperationCounter(TorchDispatchMode):
    """Adds up what convolutions and matrix products execute."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is torch.ops.aten.convolution_backward:
            # torch's own formula forgets that a depthwise convolution is a sparse one.
            gradient, _, weight, *_, mask = args
            self.total += 2 * gradient.numel() * weight[0].numel() * (mask[0] + mask[1])
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out
