"""Cells with tensors to compute them on, for the tests of the operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from da2s_fast.nn import DARTS_PRIMITIVES
from da2s_fast.ops import cell
from da2s_fast.ops._backend import has_kernel
from da2s_fast.ops.cell.operations import KNOWN
from da2s_fast.ops.cell.plan import CellPlan
from tests.ops.compare import assert_as_accurate

compiled = pytest.mark.skipif(
    not has_kernel("da2s_fast::cell", "cpu"), reason="the compiled CPU library is not there"
)

NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
FEW = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "none")
BOTH = ("conv", "conv")
PLANS = {
    "normal": CellPlan(4, DARTS_PRIMITIVES, 2, False, BOTH),
    "reduction": CellPlan(6, DARTS_PRIMITIVES, 1, True, BOTH),
    "after a reduction": CellPlan(4, DARTS_PRIMITIVES, 1, False, ("reduce", "conv")),
    "after a reduction, odd": CellPlan(5, DARTS_PRIMITIVES, 1, True, ("reduce", "conv")),
    "partial": CellPlan(8, DARTS_PRIMITIVES, 1, False, BOTH, 4),
    "partial reduction": CellPlan(8, DARTS_PRIMITIVES, 2, True, ("reduce", "conv"), 2),
    "many channels": CellPlan(36, DARTS_PRIMITIVES[1:], 1, False, BOTH),
    "mixed op": CellPlan(4, KNOWN, 1, False, ("identity",)),
    "mixed op, stride 2": CellPlan(6, KNOWN, 1, True, ("identity",), 3),
    "dense": CellPlan(4, NAS_BENCH_201, 3, False, ("identity",), 1, 1, False),
    "dense, partial": CellPlan(4, NAS_BENCH_201, 3, False, ("identity",), 2, 1, False),
    "one convolution": CellPlan(3, ("sep_conv_7x7",), 2, False, ("identity",)),
    "no weights": CellPlan(2, ("skip_connect", "avg_pool_3x3"), 2, False, ("identity",)),
    "cut": CellPlan(4, FEW, 2, True, BOTH, 2, active=((2, 3), (), (), (), (0, 1))),
    "few outputs": CellPlan(4, FEW, 3, False, BOTH, 1, 1),
}


@dataclass
class Case:
    """Arguments of `cell`; everything is a leaf that wants gradients."""

    plan: CellPlan
    inputs: list[Tensor]
    p: Tensor
    g: Tensor | None
    weights: list[Tensor]
    running: list[Tensor]
    frozen: list[int]

    def to(self, dtype: torch.dtype, parameters: torch.dtype | None = None) -> Case:
        """Other types; running statistics in the arithmetic's."""
        parameters = parameters or dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return replace(
            self,
            inputs=[x.detach().to(dtype) for x in self.inputs],
            p=self.p.detach().to(parameters),
            g=None if self.g is None else self.g.detach().to(parameters),
            weights=[w.detach().to(parameters) for w in self.weights],
            running=[value.to(wide) for value in self.running],
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.inputs, self.p, *([] if self.g is None else [self.g]), *self.weights]

    def require(self, wanted: bool = True) -> Case:
        for leaf in self.leaves:
            leaf.requires_grad_(wanted)
        return self

    def __call__(self, **options: Any) -> tuple[Tensor, Tensor]:
        return cell(
            self.inputs,
            self.p,
            self.g,
            self.weights,
            self.plan,
            running=self.running,
            frozen=self.frozen,
            eps=1e-3,
            **options,
        )


def make_case(
    plan: CellPlan,
    size: tuple[int, int, int] = (3, 7, 6),
    *,
    frozen: str = "none",
    weighs_edges: bool = True,
    seed: int = 0,
) -> Case:
    """Float32 tensors for (N, H, W) of the last input; "some" or "all" norms frozen."""
    torch.manual_seed(seed)
    images, height, width = size
    inputs = []
    for position, kind in enumerate(plan.preprocess):
        channels = plan.channels if kind == "identity" else (5, 6)[position]
        # The larger of the two sizes that are halved to this one, once odd and once even.
        shape = (2 * height - 1, 2 * width) if kind == "reduce" else (height, width)
        inputs.append(torch.randn(images, channels, *shape))
    shapes = plan.weight_shapes([x.shape[1] for x in inputs])
    weights = [
        torch.randn(shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5 for shape in shapes
    ]
    running = []
    for channels in plan.norm_channels:
        running += [torch.randn(channels), torch.rand(channels) + 0.5]
    slots = range(len(plan.norm_channels))
    chosen = {"none": [], "some": [slot for slot in slots if slot % 3 == 1], "all": [*slots]}
    return Case(
        plan,
        inputs,
        torch.rand(len(plan.edges), len(plan.operations)),
        torch.rand(len(plan.edges)) if weighs_edges else None,
        weights,
        running,
        chosen[frozen],
    )


def evaluate(
    case: Case, function: Callable[..., tuple[Tensor, Tensor]] | None = None, **options: Any
):
    """Output, statistics and all gradients; the same incoming gradient for every function."""
    case.require()
    output, statistics = case(**options) if function is None else function(case)
    torch.manual_seed(1)
    incoming = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    if output.requires_grad:
        gradients = torch.autograd.grad(output, case.leaves, incoming, materialize_grads=True)
    else:  # everything was cut
        gradients = tuple(map(torch.zeros_like, case.leaves))
    return as_results(case, output, statistics, gradients)


def as_results(
    case: Case, output: Tensor, statistics: Tensor, gradients: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """By name; weights count as one tensor: the rounding errors of two numbers are luck."""
    names = [f"input {i}" for i in range(len(case.inputs))] + ["p"] + ["g"] * (case.g is not None)
    results = dict(zip(names, gradients, strict=False))
    weights = [gradient.flatten() for gradient in gradients[len(names) :]]
    results["weights"] = torch.cat([output.detach().new_zeros(0), *weights])
    results["output"] = output.detach()
    # Channel by channel, those of operations that do not run left out.
    parts = statistics.split([2 * channels for channels in case.plan.norm_channels])
    active = [parts[slot] for slot in active_slots(case.plan)]
    results["statistics"] = torch.cat([statistics[:0], *active])
    return results


def active_slots(plan: CellPlan) -> list[int]:
    """Norm slots of what runs."""
    slots = list(plan.preprocess_norms.values())
    for edge in plan.edges:
        for operation in plan.candidates(edge):
            slot = plan.norm_slots[edge.row, operation]
            slots += range(slot.start, slot.stop)
    return slots


def check(case: Case, *, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)) -> None:
    """The compiled operator is as accurate as the reference in the same precision."""
    exact = evaluate(case.to(torch.float64), backend="reference")
    for dtype in dtypes:
        own = case.to(dtype)
        eager = exact if dtype == torch.float64 else evaluate(own, backend="reference")
        assert_as_accurate(evaluate(own, backend="cpu"), eager, exact)


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
