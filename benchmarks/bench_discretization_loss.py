"""discretization_loss against eager PyTorch, value and gradients, on the DARTS search space."""

import functools

import pytest
import torch

from benchmarks.measure import rows, synchronized
from da2s_fast.ops import discretization_loss
from tests.ops.compare import assert_as_accurate
from tests.ops.test_discretization_loss import DARTS_EDGES, IMBALANCED, evaluate, make_parameters


@pytest.mark.parametrize(("device", "row"), rows())
def bench_discretization_loss(benchmark, device, row):
    benchmark.group = "discretization_loss, two kinds of cells, forward+backward"
    parameters = [[p.to(device) for p in ps] for ps in make_parameters()]
    function = functools.partial(discretization_loss, backend=row)
    reference = functools.partial(discretization_loss, backend="reference")
    exact = evaluate(reference, *[[p.double() for p in ps] for ps in parameters])
    assert_as_accurate(evaluate(function, *parameters), evaluate(reference, *parameters), exact)

    alphas, betas = [[p.requires_grad_() for p in ps] for ps in parameters]

    def step() -> None:
        loss = function(
            alphas,
            betas,
            edges_per_node=DARTS_EDGES,
            keep=IMBALANCED,
            operation_weight=0.7,
            edge_weight=4.0,
        )
        torch.autograd.grad(loss.total, [*alphas, *betas])

    benchmark(synchronized(device, step))
