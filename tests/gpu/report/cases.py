"""What the report meters: every GPU driver, forward and backward, on shapes of the super-network.

A case allocates its tensors where it is told: on CPU where launches are executed, on "meta" where
they are only compiled, because what a launch is compiled for depends on shapes alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from da2s_fast.kernels.launch import CudaKernel, Launch, launched_by
from da2s_fast.ops import discretization_loss_triton, mixed_sum_triton, separable_conv_triton
from da2s_fast.ops.cell.cost import Size, stages
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.reference import Memory
from da2s_fast.ops.cell.triton import backward, compiled, forward
from da2s_fast.ops.mixed_sum import BATCH
from da2s_fast.spaces.space import DA2S, DARTS

BATCH_SIZE = 64
"""Images for which kernels are compiled: the benchmark's."""
EPS = 1e-5
_BOTH = ("conv", "conv")
Least = dict[tuple[str, ...], int]
"""The least bytes by the kernels that move them."""


def _tensor(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.randn(shape).to(dtype)


@dataclass(frozen=True)
class CellCase:
    """A cell, forward and backward with all gradients.

    Attributes:
        sizes: (channels, height, width) of its inputs.
        cuda: kernels of csrc/cuda take what they can; only they are metered then, the others are
            those of the same case without.
    """

    plan: CellPlan
    sizes: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype = torch.float32
    memory: Memory = "save"
    cuda: bool = False

    def run(self, images: int, device: str) -> None:
        plan, type_ = self.plan, {"device": device, "dtype": self.dtype}
        inputs = [_tensor(images, *size, **type_) for size in self.sizes]
        p = _tensor(len(plan.edges), len(plan.operations), device=device)
        g = _tensor(len(plan.edges), device=device)
        shapes = plan.weight_shapes([size[0] for size in self.sizes])
        weights = [_tensor(*shape, device=device) for shape in shapes]
        settings = [], list(plan.code), EPS, self.memory == "save"
        with cuda_kernels() if self.cuda else nullcontext():
            output, statistics, saved = forward.cell(inputs, p, g, weights, [], *settings)
            backward.cell_backward(
                torch.ones_like(output), inputs, p, g, weights, statistics, saved, *settings,
                [True] * (len(inputs) + 3),
            )  # fmt: skip

    def least(self) -> Least:
        """For one image, by the rule of da2s_fast/ops/cell/cost.py; no weights."""
        found: Counter[tuple[str, ...]] = Counter()
        sizes = [Size(*size) for size in self.sizes]
        for stage in stages(self.plan, 1, sizes, memory=self.memory, element=self.dtype.itemsize):
            found[self._kernels_of(stage.name)] += stage.bytes
        return dict(found)

    def _kernels_of(self, stage: str) -> tuple[str, ...]:
        if "backward" in stage:
            return _BACKWARD
        if stage.startswith("bundle"):
            return ("cell_nodes",) if self.cuda else ("convolve",)
        if stage.startswith("node"):
            return ("cell_nodes",) if self.cuda else ("mix",)
        return ("prepare", "settle")


_BACKWARD = ("begin", "candidate_sums", "reach_inner", "reach_states", "leave", "finish")
COUNTING = ("settle", "begin")
"""Triton's kernels that set the counters of those of csrc/cuda to 0."""


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Inside, drivers choose kernels of csrc/cuda for tensors of any device."""
    with patch.object(compiled, "_library_reason", lambda device: None):
        yield


def is_metered(case: Case, launch: Launch) -> bool:
    """Whether a launch belongs into the rows of a case."""
    return isinstance(launch.kernel, CudaKernel) or not getattr(case, "cuda", False)


@dataclass(frozen=True)
class MixedSumCase:
    """A sum of seven normalized tensors, forward and backward with all gradients."""

    size: tuple[int, int, int]
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def run(self, images: int, device: str) -> None:
        count, type_ = len(DA2S.primitives), {"device": device, "dtype": self.dtype}
        inputs = [
            _tensor(images, *self.size, **type_).contiguous(memory_format=self.layout)
            for _ in range(count)
        ]
        weights = _tensor(count, device=device)
        modes, eps = [BATCH] * count, [EPS] * count
        output, mean, variance = mixed_sum_triton.mixed_sum(inputs, weights, [], [], modes, eps)
        mixed_sum_triton.mixed_sum_backward(
            torch.ones_like(output), inputs, weights, mean, variance, modes, eps,
            [True] * count, True,
        )  # fmt: skip

    def least(self) -> Least:
        """For one image: everything is read once on either side of a barrier."""
        count, one = len(DA2S.primitives), prod(self.size) * self.dtype.itemsize
        return {
            ("moments", "statistics"): count * one,
            ("forward",): (count + 1) * one,
            ("dots", "coefficients"): (count + 1) * one,
            ("gradients",): (2 * count + 1) * one,
        }


@dataclass(frozen=True)
class SeparableConvCase:
    """Half a separable convolution, forward and backward with all gradients."""

    size: tuple[int, int, int]
    kernel: int
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def run(self, images: int, device: str) -> None:
        channels, type_ = self.size[0], {"device": device, "dtype": self.dtype}
        x = _tensor(images, *self.size, **type_).contiguous(memory_format=self.layout)
        spatial = _tensor(channels, 1, self.kernel, self.kernel, **type_)
        channel = _tensor(channels, channels, 1, 1, **type_)
        arguments = x, spatial, channel, 1, self.kernel // 2, 1
        output = separable_conv_triton.separable_conv(*arguments)
        grad = torch.ones_like(output)
        separable_conv_triton.separable_conv_backward(grad, *arguments, [True] * 3)

    def least(self) -> Least:
        """For one image: x and the output; x, the output's gradient and that of x."""
        one = prod(self.size) * self.dtype.itemsize
        return {("forward",): 2 * one, ("pull", "spread", "collect"): 3 * one}


@dataclass(frozen=True)
class LossCase:
    """The discretization loss of DA2S's parameters; gradients come with it."""

    def run(self, images: int, device: str) -> None:
        shape = DA2S.num_edges, len(DA2S.primitives)
        discretization_loss_triton.discretization_loss(
            [_tensor(*shape, device=device) for _ in DA2S.kinds],
            [_tensor(shape[0], device=device) for _ in DA2S.kinds],
            list(DA2S.edges_per_node),
            [2] * (len(DA2S.kinds) * DA2S.nodes),
        )

    def least(self) -> Least:
        """Every parameter is read and its gradient written."""
        numbers = len(DA2S.kinds) * DA2S.num_edges * (len(DA2S.primitives) + 1)
        return {("discretization_loss",): 2 * 4 * numbers}


Case = CellCase | MixedSumCase | SeparableConvCase | LossCase


def _cell(channels: int, side: int, *inputs: int, reduces: bool = False, **more: Any) -> CellCase:
    plan = CellPlan(channels, DA2S.primitives, DA2S.nodes, reduces, _BOTH)
    return CellCase(plan, tuple((count, side, side) for count in inputs), **more)


_PARTIAL = CellPlan(16, DARTS.primitives, DARTS.nodes, False, _BOTH, 4)
_CASES: dict[str, Case] = {
    "discretization_loss": LossCase(),
    "mixed_sum": MixedSumCase((16, 32, 32)),
    "mixed_sum, channels_last": MixedSumCase((16, 32, 32), layout=torch.channels_last),
    "mixed_sum, bfloat16": MixedSumCase((16, 32, 32), torch.bfloat16),
    "separable_conv": SeparableConvCase((16, 32, 32), 5),
    "separable_conv, C=144": SeparableConvCase((144, 8, 8), 3),
    "separable_conv, bfloat16": SeparableConvCase(
        (36, 16, 16), 3, torch.bfloat16, torch.channels_last
    ),
    "cell, C=16": _cell(16, 32, 48, 64),
    "cell, C=16, recompute": _cell(16, 32, 48, 64, memory="recompute"),
    "cell, C=16, bfloat16": _cell(16, 32, 48, 64, dtype=torch.bfloat16),
    "cell, C=16, K=4": CellCase(_PARTIAL, ((48, 32, 32), (64, 32, 32))),
    "cell, C=32, reduction": _cell(32, 32, 64, 64, reduces=True),
    "cell, C=64": _cell(64, 8, 256, 256),
    "cell, C=64, reduction": _cell(64, 16, 128, 128, reduces=True),
}
_CUDA = ", CUDA"


def in_cuda(name: str) -> str:
    """The case's name with kernels of csrc/cuda."""
    return name + _CUDA


def is_cuda(name: str) -> bool:
    """Whether that is a name of `in_cuda`."""
    return name.endswith(_CUDA)


def _both(cases: dict[str, Case]) -> Iterator[tuple[str, Case]]:
    """Cells in single precision once more behind themselves, with kernels of csrc/cuda."""
    for name, case in cases.items():
        yield name, case
        if isinstance(case, CellCase) and case.dtype == torch.float32 and case.memory == "save":
            yield in_cuda(name), replace(case, cuda=True)


CASES: dict[str, Case] = dict(_both(_CASES))
SMALL = "cell, C=16, 8x8"
"""Executed in little time, for the tests."""
EXECUTED: dict[str, Case] = {**CASES, **dict(_both({SMALL: _cell(16, 8, 48, 64)}))}


def launches_of(case: Case) -> list[Launch]:
    """All launches of a batch that are metered, in order; nothing is executed."""
    found: list[Launch] = []
    with launched_by(found.append):
        case.run(BATCH_SIZE, "meta")
    return [launch for launch in found if is_metered(case, launch)]
