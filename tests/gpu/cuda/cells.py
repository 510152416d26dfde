"""Cells that kernels of csrc/cuda compute, and where tests of them run."""

import pytest
import torch

from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import forward
from tests.gpu.cells import on
from tests.ops.cell_cases import Case
from tests.ops.compare import assert_as_accurate

GPU = pytest.param("gpu", marks=pytest.mark.gpu)
ONE_PLACE = pytest.mark.parametrize("device", ["sm_80", GPU], indirect=True)
ONE_ARCHITECTURE = pytest.mark.parametrize("device", ["sm_80"], indirect=True)

ONLY_SEPARABLE = ("sep_conv_3x3", "dil_conv_3x3")
POOLS = ("max_pool_3x3", "avg_pool_3x3")
PLANS = {
    "two layers": CellPlan(8, ONLY_SEPARABLE, 1, False, ("conv",)),
    "pools": CellPlan(4, ("sep_conv_3x3", *POOLS), 1, False, ("conv", "identity")),
    "reduction": CellPlan(
        16, ("skip_connect", "dil_conv_3x3", "dil_conv_5x5", *POOLS), 1, True, ("conv",)
    ),
    "halves": CellPlan(8, ("skip_connect", "max_pool_3x3"), 1, True, ("identity",)),
    "partial": CellPlan(16, ("sep_conv_5x5", "max_pool_3x3"), 1, True, ("identity",), 4),
    "widest": CellPlan(4, ("sep_conv_7x7",), 1, False, ("identity",)),
    "shuffled": CellPlan(16, ("dil_conv_5x5", "max_pool_3x3"), 2, True, ("conv",), 4),
    "all kinds": CellPlan(
        8, ("none", "skip_connect", "sep_conv_3x3", *POOLS), 2, False, ("identity",), 2
    ),
}
SMALL = PLANS["two layers"]
SEVERAL_TILES = CellPlan(16, ONLY_SEPARABLE, 1, False, ("conv",)), (1, 9, 20)
"""A cell with images of more rows than a tile has."""


def forward_of(case: Case) -> dict[str, torch.Tensor]:
    """Output and statistics by the driver, on the CPU."""
    arguments = case.inputs, case.p, case.g, case.weights, case.running if case.frozen else []
    with torch.no_grad():
        output, statistics, _ = forward.cell(*arguments, case.frozen, [*case.plan.code], 1e-3, True)
    return {"output": output.cpu(), "statistics": statistics.cpu()}


def check_forward(case: Case, device: torch.device) -> None:
    """As `check`, without the backward pass, which takes Triton's kernels long."""
    own = case.to(torch.float32)
    exact, eager = (
        dict(zip(("output", "statistics"), one(backend="reference"), strict=True))
        for one in (case.to(torch.float64), own)
    )
    assert_as_accurate(forward_of(on(own, device)), eager, exact)
