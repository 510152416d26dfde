"""Modules that one operator can stand in for, with inputs, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.nn import DARTS_PRIMITIVES, Cell, DenseCell, MixedOp, Mixture
from da2s_fast.ops._backend import has_kernel
from tests.nn import reference
from tests.nn.test_mixed_op import randomize_statistics

compiled = pytest.mark.skipif(
    not has_kernel("da2s_fast::cell", "cpu"), reason="the compiled CPU library is not there"
)
FEW = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Example(NamedTuple):
    """A module, the same in plain PyTorch, and the shapes of its inputs and its mixture."""

    ours: nn.Module
    theirs: nn.Module
    inputs: Sequence[tuple[int, int, int]]
    edges: int
    operations: int

    def tensors(self, images: int = 3, seed: int = 1) -> list[Tensor]:
        """Inputs, p and g."""
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(images, *shape, generator=generator) for shape in self.inputs]
        p = torch.rand(self.edges, self.operations, generator=generator).softmax(1)
        return [*inputs, p, torch.rand(self.edges, generator=generator)]


def mixed_op(stride: int, K: int) -> Example:
    ours = MixedOp(8, stride, partial_channels=K)
    theirs = reference.MixedOp(8, stride, DARTS_PRIMITIVES, K)
    return Example(ours, theirs, [(8, 7, 6)], 1, 8)


def cell(reduction: bool, previous: bool, K: int, primitives: Sequence[str] = FEW) -> Example:
    ours = Cell(2, 2, 6, 5, 4, reduction, previous, primitives=primitives, partial_channels=K)
    theirs = reference.Cell(
        (6, 5),
        4,
        reduction=reduction,
        reduction_prev=previous,
        primitives=primitives,
        nodes=2,
        K=K,
    )
    first = (13, 12) if previous else (7, 6)
    return Example(ours, theirs, [(6, *first), (5, 7, 6)], 5, len(primitives))


def dense_cell(K: int) -> Example:
    ours = DenseCell(4, 3, primitives=NAS_BENCH_201, partial_channels=K)
    return Example(ours, reference.DenseCell(4, NAS_BENCH_201, 3, K), [(4, 7, 6)], 6, 5)


BUILDERS = {
    "mixed op": lambda: mixed_op(1, 1),
    "mixed op, stride 2, K=2": lambda: mixed_op(2, 2),
    "cell": lambda: cell(False, False, 1),
    "cell of DARTS": lambda: cell(False, False, 1, DARTS_PRIMITIVES),
    "reduction cell after another, K=2": lambda: cell(True, True, 2),
    "dense cell": lambda: dense_cell(1),
    "dense cell, K=2": lambda: dense_cell(2),
}


def build(name: str) -> Example:
    torch.manual_seed(0)
    example = BUILDERS[name]()
    randomize_statistics(example.ours)
    return example


def call(module: nn.Module, *tensors: Tensor) -> Tensor:
    """Works for ours and theirs; MixedOp takes no g, it scales the output."""
    *inputs, p, g = tensors
    if len(p) == 1:
        return g[0] * module(*inputs, p[0])
    if isinstance(getattr(module, "_orig_mod", module), DenseCell):
        return module(*inputs, Mixture(p, g))
    return module(*inputs, p, g)
