"""The staged cell against the modules it stands for."""

import pytest
import torch
from torch import nn

from da2s_fast.nn import DARTS_PRIMITIVES, Cell
from da2s_fast.ops.cell.cost import Size, stages
from da2s_fast.ops.cell.norm import Statistics
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.reference import Parameters, backward, forward
from tests.conditions import counted

NODES = 3


class Case:
    """A cell in float64 with random running statistics, and inputs of odd and even sizes."""

    def __init__(self, reduction: bool, reduction_prev: bool, k: int, training: bool) -> None:
        torch.manual_seed(0)
        self.module = Cell(
            NODES,
            NODES,
            6,
            5,
            4,
            reduction,
            reduction_prev,
            primitives=DARTS_PRIMITIVES,
            partial_channels=k,
        ).double()
        self.norms = [m for m in self.module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self.module.train(training)
        first = (13, 14) if reduction_prev else (7, 7)
        edges = len(self.plan(reduction, reduction_prev, k).edges)
        self.inputs = tuple(
            torch.randn(3, c, *size, dtype=torch.double).requires_grad_()
            for c, size in ((6, first), (5, (7, 7)))
        )
        self.p = torch.rand(edges, len(DARTS_PRIMITIVES), dtype=torch.double, requires_grad=True)
        self.g = torch.rand(edges, dtype=torch.double, requires_grad=True)
        self.weights = list(self.module.parameters())
        self.parameters = Parameters(self.weights, self.p, self.g)

    @staticmethod
    def plan(reduction: bool, reduction_prev: bool, k: int) -> CellPlan:
        kinds = ("reduce" if reduction_prev else "conv", "conv")
        return CellPlan(4, DARTS_PRIMITIVES, NODES, reduction, kinds, k)

    def running(self) -> list[Statistics]:
        return [
            Statistics(n.running_mean.clone(), n.running_var.clone(), False) for n in self.norms
        ]


def names(case: Case) -> list[str]:
    return ["s0", "s1", "p", "g", *(name for name, _ in case.module.named_parameters())]


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("reduction_prev", [False, True])
@pytest.mark.parametrize("reduction", [False, True])
def test_stages_equal_the_modules(reduction, reduction_prev, k, training, memory):
    case = Case(reduction, reduction_prev, k, training)
    plan = case.plan(reduction, reduction_prev, k)
    running = None if training else case.running()
    expected = case.module(*case.inputs, case.p, case.g)
    gradient = torch.randn_like(expected)
    wanted = [*case.inputs, case.p, case.g, *case.weights]
    gradients = torch.autograd.grad(expected, wanted, gradient)
    with torch.no_grad():
        output, _, saved = forward(
            plan, case.inputs, case.parameters, running=running, memory=memory
        )
        inputs, found = backward(plan, gradient, case.parameters, saved)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    got = [*inputs, found.p, found.g, *found.weights]
    for name, result, exact in zip(names(case), got, gradients, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(
            result, exact, rtol=1e-9, atol=1e-10 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_statistics_are_those_of_the_modules_in_their_order():
    case = Case(True, True, 1, True)
    before = case.running()
    case.module(*case.inputs, case.p, case.g)
    with torch.no_grad():
        _, statistics, _ = forward(case.plan(True, True, 1), case.inputs, case.parameters)
    for norm, old, new in zip(case.norms, before, statistics, strict=True):
        updated = old.mean + norm.momentum * (new.mean - old.mean)
        torch.testing.assert_close(norm.running_mean, updated)


def test_recompute_keeps_nodes_and_statistics_only():
    case = Case(False, False, 1, True)
    with torch.no_grad():
        output, _, saved = forward(
            case.plan(False, False, 1),
            case.inputs,
            case.parameters,
            memory="recompute",
        )
    assert saved.bundles is None
    assert saved.preprocessed is None
    assert len(saved.nodes) == NODES
    assert torch.equal(torch.cat(saved.nodes, 1), output)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(("reduction", "previous"), [(False, False), (True, False), (False, True)])
def test_operations_are_those_that_torch_counts(reduction, previous, k):
    module = Cell(
        4, 4, 24, 32, 16, reduction, previous, primitives=DARTS_PRIMITIVES, partial_channels=k
    )
    size = 30 if previous else 15
    inputs = torch.randn(2, 24, size, size), torch.randn(2, 32, 15, 15)
    kinds = ("reduce" if previous else "conv", "conv")
    plan = CellPlan(16, DARTS_PRIMITIVES, 4, reduction, kinds, k)
    sizes = Size(24, size, size), Size(32, 15, 15)
    forward_cost = sum(s.operations for s in stages(plan, 2, sizes) if "backward" not in s.name)
    assert forward_cost == counted(lambda: module(*inputs, torch.rand(14, len(DARTS_PRIMITIVES))))
    # Each convolution's backward is two convolutions of the same cost.
    assert sum(s.operations for s in stages(plan, 2, sizes)) == 3 * forward_cost


def test_recompute_costs_preprocessing_and_bundles_once_more():
    plan = CellPlan(16, DARTS_PRIMITIVES, 4, False, ("conv", "conv"))
    sizes = Size(48, 32, 32), Size(48, 32, 32)
    save, recompute = (
        sum(s.operations for s in stages(plan, 1, sizes, memory=memory))
        for memory in ("save", "recompute")
    )
    again = sum(
        s.operations
        for s in stages(plan, 1, sizes)
        if s.name == "preprocess" or (s.name.startswith("bundle") and "forward" in s.name)
    )
    assert recompute == save + again
