"""discretization_loss in Triton's interpreter: what is asked of the compiled CPU operator."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gpu.test_discretization_loss import check, fused
from tests.ops.test_discretization_loss import DARTS_EDGES, evaluate, make_parameters, reference

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("edges", "operations"), [([2, 3, 4, 5], 7), ([1, 2, 3], 5), ([3], 1), ([17], 33)]
)
def test_as_accurate_as_eager(device, dtype, edges, operations):
    alphas, betas = make_parameters(sum(edges), operations, dtype=dtype)
    results = check(
        device, alphas, betas, edges=edges, keep=[edges, [max(1, e - 1) for e in edges]]
    )
    assert results["grad_alphas[0]"].dtype == dtype


def test_edges_that_do_not_take_part_have_no_gradient(device):
    alphas, betas = make_parameters()
    betas[0][:2] = float("nan")
    results = evaluate(fused, alphas, betas, keep=[[2, 2, 2, 2], [1, 2, 2, 2]])
    assert results["total"].isfinite()
    assert not results["grad_betas[0]"][:2].any()
    assert results["grad_betas[0]"][2:].any()
    assert results["grad_betas[1]"][:2].any()


def test_extreme_parameters_stay_finite(device):
    alphas, betas = make_parameters()
    alphas[0][:, 0], alphas[0][:, 1], alphas[1][3] = -100.0, 100.0, -100.0
    betas[0][3], betas[1][5] = -100.0, 100.0
    results = check(device, alphas, betas)
    for name, value in results.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [0, 1])
def test_not_finite_parameters(device, kind, value):
    parameters = make_parameters()
    parameters[kind][1].flatten()[7] = value
    check(device, *parameters)


def test_kinks(device):
    alphas, betas = make_parameters()
    alphas[0][0, :3] = torch.tensor([-0.5, -0.5, 0.0]) + torch.tensor([0.0, -1e-6, 0.0])
    betas[0][2:5] = torch.tensor([1.0, 0.0, 0.0])
    betas[1][5:9] = torch.tensor([1.0 + 2**-23, 1.0 - 2**-24, -0.0, 1e-30])
    results = check(device, alphas, betas)
    assert results["grad_betas[0]"][2] == 0
    assert results["grad_betas[1]"][5] == 0
    assert results["grad_betas[1]"][6] != 0


def test_without_betas(device):
    alphas, _ = make_parameters()
    a = [alpha.requires_grad_() for alpha in alphas]
    arguments = {"edges_per_node": DARTS_EDGES, "keep": [], "operation_weight": 2.0}
    loss = fused(a, [], edge_weight=4.0, **arguments)
    assert loss.edge_loss == 0
    torch.testing.assert_close(loss.total, 2 * loss.operation_entropy)
    loss.total.backward()
    assert all(alpha.grad.any() for alpha in a)


def test_strided_parameters(device):
    alphas, betas = make_parameters()
    alphas = [a.t().contiguous().t() for a in alphas]
    check(device, alphas, [b.repeat(2).view(2, -1).t()[:, 0] for b in betas])


def test_kinds_of_different_operations(device):
    (first, _), betas = make_parameters()
    (other, _), _ = make_parameters(operations=3)
    check(device, [first, other], betas)


@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_cases(device, seed, edges, data):
    keep = [[data.draw(st.integers(1, e)) for e in edges] for _ in range(2)]
    operations = data.draw(st.integers(1, 9))
    alphas, betas = make_parameters(sum(edges), operations, dtype=torch.float64, seed=seed)
    results = evaluate(fused, alphas, betas, edges=edges, keep=keep)
    eager = evaluate(reference, alphas, betas, edges=edges, keep=keep)
    torch.testing.assert_close(results, eager, rtol=1e-9, atol=1e-11)
