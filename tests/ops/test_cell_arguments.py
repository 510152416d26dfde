"""What the cell takes, what it leaves to the reference, what it refuses."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from da2s_fast.errors import UserError
from da2s_fast.nn import use_backend
from da2s_fast.ops.cell.plan import CellPlan
from tests.ops.cell_cases import FEW, PLANS, compiled, evaluate, make_case

WRONG = [
    (lambda c: c.inputs.pop(), "inputs of shapes"),
    (lambda c: setattr(c, "inputs", [x[0] for x in c.inputs]), "inputs of shapes"),
    (lambda c: setattr(c, "inputs", [c.inputs[0][:2], c.inputs[1]]), "a conv input"),
    (lambda c: setattr(c, "inputs", [c.inputs[0][:, :, 1:], c.inputs[1]]), "a conv input"),
    (lambda c: setattr(c, "inputs", [c.inputs[0].double(), c.inputs[1]]), "float64"),
    (lambda c: setattr(c, "p", c.p[1:]), r"p of shape \(4, 8\) instead of \(5, 8\)"),
    (lambda c: setattr(c, "g", c.p), r"g of shape \(5, 8\) instead of \(5,\)"),
    (lambda c: c.weights.pop(), "weights of shapes"),
    (lambda c: c.weights.reverse(), "weights of shapes"),
    (lambda c: c.running.pop(), "running statistics"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_wrong_arguments(backend, change, message):
    case = make_case(PLANS["normal"], frozen="some")
    change(case)
    with pytest.raises(UserError, match=message):
        case(backend=backend)


LEFT = [
    (lambda c: c.to(torch.float32, torch.float64), "p, g or a weight is torch.float64"),
    (lambda c: replace(c, weights=[w.bfloat16() for w in c.weights]), "bfloat16"),
    (
        lambda c: replace(
            c.to(torch.bfloat16), weights=[c.weights[0], *c.to(torch.bfloat16).weights[1:]]
        ),
        "several types",
    ),
    (lambda c: replace(c, inputs=[x[:, :, :, :0] for x in c.inputs]), "empty"),
    (lambda c: replace(c, inputs=[x[:1, :, :1, :1] for x in c.inputs]), "a single value"),
    (lambda c: replace(c, p=c.p.to("meta")), "tensors are on cpu and meta"),
]


@compiled
@pytest.mark.parametrize(("change", "reason"), LEFT)
def test_what_the_compiled_operator_leaves_to_the_reference(change, reason):
    with pytest.raises(UserError, match=f"'cpu' of cell cannot run: .*{reason}"):
        change(make_case(PLANS["normal"]))(backend="cpu")


@compiled
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_changes_nothing(backend):
    case = make_case(PLANS["normal"], frozen="some")
    expected = evaluate(case, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(case, backend=backend)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_backends(monkeypatch):
    case = make_case(PLANS["normal"])
    with pytest.raises(UserError, match="no backend 'gpu'; choose one of: cpu, triton, reference"):
        case(backend="gpu")
    with use_backend("gpu"), pytest.raises(UserError, match="no backend 'gpu'"):
        case()
    with use_backend("reference"):
        inside = case()
    assert all(map(torch.equal, inside, case(backend="reference")))
    monkeypatch.setattr(import_module("da2s_fast.ops.cell.checks"), "HAS_CPU_KERNEL", False)
    with pytest.raises(UserError, match="compiled CPU library is not there"):
        case(backend="cpu")
    with use_backend("cpu"), pytest.raises(UserError, match="compiled CPU library is not there"):
        case()
    assert torch.equal(case()[0], inside[0])


@compiled
def test_the_operator_itself_checks_what_it_reads():
    plan = CellPlan(4, FEW, 1, False, ("identity",))
    x, p, g = torch.randn(2, 4, 5, 5), torch.rand(1, 4), torch.rand(1)
    weights = [torch.randn(shape) for shape in plan.weight_shapes([4])]
    good = [[x], p, g, weights, [], [], list(plan.code), 1e-5, False]
    torch.ops.da2s_fast.cell(*good)
    for position, value in [
        (0, []),
        (0, [x, x]),
        (0, [x[:0]]),
        (0, [x[:, :2]]),
        (0, [x[0]]),
        (0, [x.long()]),
        (1, p[:, :2]),
        (2, torch.rand(3)),
        (3, weights[1:]),
        (3, [*weights[:-1], weights[0]]),
        (3, [weight.long() for weight in weights]),
        (5, [0]),
        (5, [7]),
        (6, list(plan.code)[:-1]),
        (6, [*plan.code, 0]),
        (6, [4, 3, *plan.code[2:]]),
    ]:
        wrong = list(good)
        wrong[position] = value
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            torch.ops.da2s_fast.cell(*wrong)
