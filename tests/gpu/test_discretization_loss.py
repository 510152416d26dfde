"""The code compiled of discretization_loss's kernel; `interpreted/` has the many cases."""

import functools
from importlib import import_module

import pytest
import torch

from da2s_fast.ops import discretization_loss
from tests.gpu.ptx.errors import KernelFault
from tests.ops.compare import Mismatch, assert_as_accurate
from tests.ops.test_discretization_loss import evaluate, make_parameters, reference

fused = functools.partial(discretization_loss, backend="triton")


def check(device, alphas, betas, **arguments):
    alphas, betas = ([p.to(device) for p in ps] for ps in (alphas, betas))
    results = evaluate(fused, alphas, betas, **arguments)
    eager = evaluate(reference, alphas, betas, **arguments)
    doubles = [[p.double() for p in ps] for ps in (alphas, betas)]
    assert_as_accurate(results, eager, evaluate(reference, *doubles, **arguments))
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_accurate_as_eager(device, dtype):
    check(device, *make_parameters(dtype=dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 100.0, -100.0])
def test_extreme_parameters(device, value):
    for kind in (0, 1):
        parameters = make_parameters()
        parameters[kind][1].flatten()[7] = value
        check(device, *parameters)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tl.where(x < -1, 6 * x * x, 2)", "tl.where(x <= -1, 6 * x * x, 2)"),
        ("edge * OPERATIONS[kind] + operation", "edge * WIDTHS[kind] + operation"),
        ("operation * alpha_strides[2 * kind + 1]", "operation"),
        ("(edge < ALL_EDGES) & ", ""),
        ("edge_loss, tl.sum(loss)", "edge_loss, tl.sum(loss), mask=node.numel < 0"),
    ],
)
def test_planted_bugs_are_noticed(device, plant, old, new):
    plant(import_module("da2s_fast.ops.discretization_loss_triton"), old, new)
    alphas, betas = make_parameters(edges=15)
    alphas[0][0, 0] = -0.5
    alphas[1] = alphas[1].t().contiguous().t()
    with pytest.raises((Mismatch, KernelFault)):
        check(device, alphas, betas, edges=[3, 3, 4, 5])
