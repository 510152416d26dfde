import functools
import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from da2s_fast.errors import UserError
from da2s_fast.ops import discretization_loss, edge_strength, operation_strength
from tests.conditions import compiled_whole, run_with_instruction_set
from tests.ops.compare import Mismatch, assert_as_accurate

fused = functools.partial(discretization_loss, backend="cpu")
reference = functools.partial(discretization_loss, backend="reference")

DARTS_EDGES = [2, 3, 4, 5]
IMBALANCED = [[1, 2, 3, 3], [2, 3, 4, 5]]


def make_parameters(edges=14, operations=7, kinds=2, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    alphas = [torch.randn(edges, operations) for _ in range(kinds)]
    betas = [torch.randn(edges) * 0.7 + 0.5 for _ in range(kinds)]
    return [a.to(dtype) for a in alphas], [b.to(dtype) for b in betas]


def evaluate(function, alphas, betas, *, weights=(0.7, 4.0), edges=DARTS_EDGES, keep=IMBALANCED):
    """Return the loss, its parts and all gradients, those of the two factors too."""
    alphas, betas = [[p.detach().requires_grad_() for p in ps] for ps in (alphas, betas)]
    factors = [torch.tensor(w, dtype=alphas[0].dtype, requires_grad=True) for w in weights]
    loss = function(
        alphas,
        betas,
        edges_per_node=edges,
        keep=keep,
        operation_weight=factors[0],
        edge_weight=factors[1],
    )
    loss.total.backward()
    assert not loss.operation_entropy.requires_grad
    assert not loss.edge_loss.requires_grad
    leaves = {f"alphas[{i}]": a for i, a in enumerate(alphas)}
    leaves |= {f"betas[{i}]": b for i, b in enumerate(betas)}
    leaves |= {f"factors[{i}]": f for i, f in enumerate(factors)}
    gradients = {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}
    return {name: part.detach() for name, part in loss._asdict().items()} | gradients


def check(alphas, betas, **arguments):
    results = evaluate(fused, alphas, betas, **arguments)
    eager = evaluate(reference, alphas, betas, **arguments)
    doubles = [[p.double() for p in ps] for ps in (alphas, betas)]
    assert_as_accurate(results, eager, evaluate(reference, *doubles, **arguments))
    return results


def by_definition(alphas, betas, edges, keep, weights):
    """Compute the loss number by number from the paper's formulas."""

    def entropy(strengths):
        total = sum(math.exp(s) for s in strengths)
        return -sum(math.exp(s) / total * math.log(math.exp(s) / total) for s in strengths)

    def operation(a):
        return (2 * a) ** 3 if 2 * a < -1 else 2 * a

    operations = sum(entropy([operation(a) for a in row]) for alpha in alphas for row in alpha)
    edge_loss = 0.0
    for beta, targets in zip(betas, keep, strict=True):
        remaining = list(beta)
        for node, (count, target) in enumerate(zip(edges, targets, strict=True)):
            values, remaining = remaining[:count], remaining[count:]
            if node == 0 and target == count:
                continue
            strengths = [min(b, 1.0) for b in values]
            distance = sum(s for s in strengths if s > 0) - target
            edge_loss += 0.2 * distance**2 + entropy(strengths)
    return weights[0] * operations + weights[1] * edge_loss


@pytest.mark.parametrize("function", [fused, reference])
@pytest.mark.parametrize("keep", [IMBALANCED, [[2, 2, 2, 2]] * 2, [[1, 1, 1, 1], [2, 2, 3, 3]]])
def test_value_is_that_of_the_definition(function, keep):
    alphas, betas = make_parameters(dtype=torch.float64)
    results = evaluate(function, alphas, betas, keep=keep)
    numbers = [[p.tolist() for p in ps] for ps in (alphas, betas)]
    expected = by_definition(*numbers, DARTS_EDGES, keep, (0.7, 4.0))
    assert results["total"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("edges", "operations"), [([2, 3, 4, 5], 7), ([1, 2, 3], 5), ([3], 1)])
def test_as_accurate_as_eager(dtype, edges, operations):
    alphas, betas = make_parameters(sum(edges), operations, dtype=dtype)
    check(alphas, betas, edges=edges, keep=[edges, [max(1, e - 1) for e in edges]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters(dtype):
    alphas, betas = make_parameters(dtype=dtype)
    results = check(alphas, betas)
    assert results["total"].dtype == torch.float32
    assert results["grad_alphas[0]"].dtype == dtype


@pytest.mark.parametrize("function", [fused, reference])
def test_edges_that_do_not_take_part_have_no_gradient(function):
    alphas, betas = make_parameters()
    results = evaluate(function, alphas, betas, keep=[[2, 2, 2, 2], [1, 2, 2, 2]])
    assert not results["grad_betas[0]"][:2].any()
    assert results["grad_betas[0]"][2:].any()
    assert results["grad_betas[1]"][:2].any()
    other = [betas[0].clone(), betas[1]]
    other[0][:2] = float("nan")
    assert evaluate(function, alphas, other, keep=[[2, 2, 2, 2], [1, 2, 2, 2]])["total"].isfinite()


@pytest.mark.parametrize("function", [fused, reference])
def test_extreme_parameters_stay_finite(function):
    alphas, betas = make_parameters()
    alphas[0][:, 0], alphas[0][:, 1], alphas[1][3] = -100.0, 100.0, -100.0
    betas[0][3], betas[1][5] = -100.0, 100.0
    results = evaluate(function, alphas, betas)
    for name, value in results.items():
        assert value.isfinite().all(), name
    check(alphas, betas)


def test_kinks():
    """Gradients at and on both sides of x = -1 (alpha = -0.5), beta = 0 and beta = 1."""
    alphas, betas = make_parameters()
    alphas[0][0, :3] = torch.tensor([-0.5, -0.5, 0.0]) + torch.tensor([0.0, -1e-6, 0.0])
    betas[0][2:5] = torch.tensor([1.0, 0.0, 0.0])
    betas[1][5:9] = torch.tensor([1.0 + 2**-23, 1.0 - 2**-24, -0.0, 1e-30])
    results = check(alphas, betas)
    assert results["grad_betas[0]"][2] == 0
    assert results["grad_betas[1]"][5] == 0
    assert results["grad_betas[1]"][6] != 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_parameters(value):
    for kind in (0, 1):
        parameters = make_parameters()
        parameters[kind][1].flatten()[7] = value
        check(*parameters)


def test_strengths():
    x = torch.tensor([-1e15, -50.0, -0.6, -0.5, -0.4, 0.0, 3.0, 1e25], requires_grad=True)
    s = operation_strength(x)
    expected = [-math.inf, -1e6, -1.728, -1.0, -0.8, 0.0, 6.0, 2e25]
    torch.testing.assert_close(s, torch.tensor(expected))
    s.sum().backward()
    slopes = [6 * (2e15) ** 2, 6e4, 8.64, 2.0, 2.0, 2.0, 2.0, 2.0]
    torch.testing.assert_close(x.grad, torch.tensor(slopes))

    beta = torch.tensor([-2.0, 0.0, 0.5, 1.0, 7.0, math.inf, math.nan], requires_grad=True)
    s = edge_strength(beta)
    torch.testing.assert_close(
        s, torch.tensor([-2.0, 0.0, 0.5, 1.0, 1.0, 1.0, math.nan]), equal_nan=True
    )
    s.sum().backward()
    assert beta.grad.tolist()[:6] == [1, 1, 1, 0, 0, 0]
    assert operation_strength(torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize("function", [fused, reference])
def test_without_betas(function):
    alphas, _ = make_parameters()
    a = [alpha.requires_grad_() for alpha in alphas]
    arguments = {"edges_per_node": DARTS_EDGES, "keep": [], "operation_weight": 2.0}
    loss = function(a, [], edge_weight=4.0, **arguments)
    assert loss.edge_loss == 0
    torch.testing.assert_close(loss.total, 2 * loss.operation_entropy)
    loss.total.backward()
    assert all(alpha.grad.any() for alpha in a)


def test_strided_parameters():
    alphas, betas = make_parameters()
    check(
        [a.t().contiguous().t() for a in alphas], [b.repeat(2).view(2, -1).t()[:, 0] for b in betas]
    )


def test_only_alphas_or_only_betas():
    for kind in (0, 1):
        parameters = make_parameters()
        expected = evaluate(fused, *parameters)
        parameters[kind][0].requires_grad_()
        loss = fused(
            *parameters,
            edges_per_node=DARTS_EDGES,
            keep=IMBALANCED,
            operation_weight=0.7,
            edge_weight=4.0,
        )
        loss.total.backward()
        name = ("grad_alphas[0]", "grad_betas[0]")[kind]
        torch.testing.assert_close(parameters[kind][0].grad, expected[name])


def call(function, operation_weight, edge_weight, *parameters):
    return function(
        parameters[:2],
        parameters[2:],
        edges_per_node=DARTS_EDGES,
        keep=IMBALANCED,
        operation_weight=operation_weight,
        edge_weight=edge_weight,
    ).total


def test_gradcheck_and_double_backward():
    alphas, betas = make_parameters(dtype=torch.float64)
    betas = [b.clamp(max=0.9) - 2e-3 for b in betas]  # away from the kinks at 0 and 1
    factors = torch.tensor([0.7, 4.0], dtype=torch.float64)
    inputs = [p.requires_grad_() for p in (*factors.unbind(), *alphas, *betas)]
    assert torch.autograd.gradcheck(functools.partial(call, fused), inputs)
    assert torch.autograd.gradgradcheck(functools.partial(call, reference), inputs)
    (grad,) = torch.autograd.grad(call(fused, *inputs), [inputs[2]], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        grad.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    alphas, betas = make_parameters(dtype=dtype)
    flat = [k for targets in IMBALANCED for k in targets]
    operator = torch.ops.da2s_fast.discretization_loss
    torch.library.opcheck(operator, (alphas, betas, DARTS_EDGES, flat))
    parameters = [[p.requires_grad_() for p in ps] for ps in (alphas, betas)]
    # The fourth test differentiates all outputs, and the gradients among them refuse that.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, (*parameters, DARTS_EDGES, flat), test_utils=tests)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(compiler):
    parameters = make_parameters()
    compiled = compiled_whole(fused, compiler)
    results, eager = evaluate(compiled, *parameters), evaluate(fused, *parameters)
    for name, value in eager.items():
        torch.testing.assert_close(results[name], value, msg=name)


def test_autocast_changes_nothing():
    parameters = make_parameters()
    expected = evaluate(fused, *parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = evaluate(fused, *parameters)
    for name, value in expected.items():
        assert torch.equal(results[name], value), name


@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
@settings(max_examples=50, deadline=None)
def test_random_cases(seed, edges, data):
    keep = [[data.draw(st.integers(1, e)) for e in edges] for _ in range(2)]
    operations = data.draw(st.integers(1, 9))
    alphas, betas = make_parameters(sum(edges), operations, dtype=torch.float64, seed=seed)
    results = evaluate(fused, alphas, betas, edges=edges, keep=keep)
    eager = evaluate(reference, alphas, betas, edges=edges, keep=keep)
    torch.testing.assert_close(results, eager, rtol=1e-9, atol=1e-11)


def run_everywhere():
    for dtype in (torch.float32, torch.float64):
        check(*make_parameters(dtype=dtype))


def test_portable():
    code = "from tests.ops.test_discretization_loss import run_everywhere; run_everywhere()"
    run_with_instruction_set("portable", code)


def swapped_keep(alphas, betas, *, keep, **arguments):
    return reference(alphas, betas, keep=keep[::-1], **arguments)


def counts_negative_betas(alphas, betas, **arguments):
    return reference(alphas, [b.clamp(min=1e-9) for b in betas], **arguments)


@pytest.mark.parametrize("mutant", [swapped_keep, counts_negative_betas])
def test_planted_bugs_are_noticed(mutant):
    parameters = make_parameters()
    eager = evaluate(reference, *parameters)
    exact = evaluate(reference, *[[p.double() for p in ps] for ps in parameters])
    with pytest.raises(Mismatch):
        assert_as_accurate(evaluate(mutant, *parameters), eager, exact)


ALPHA, BETA = torch.zeros(14, 7), torch.zeros(14)


@pytest.mark.parametrize(
    ("alphas", "betas", "keep", "message"),
    [
        ([], [], [], "no alphas"),
        ([ALPHA[:13]], [BETA], [[2, 2, 2, 2]], r"alpha of shape \(13, 7\).*\(14, "),
        ([ALPHA[0]], [BETA], [[2, 2, 2, 2]], r"alpha of shape \(7,\)"),
        ([ALPHA[:, :0]], [BETA], [[2, 2, 2, 2]], r"alpha of shape \(14, 0\)"),
        ([ALPHA], [BETA[:3]], [[2, 2, 2, 2]], r"beta of shape \(3,\)"),
        ([ALPHA.long()], [BETA], [[2, 2, 2, 2]], "int64"),
        ([ALPHA], [BETA] * 2, [[2, 2, 2, 2]], "1 alphas, 2 betas and 1 lists"),
        ([ALPHA], [BETA], [], "1 alphas, 1 betas and 0 lists"),
        ([ALPHA], [BETA], [[2, 2, 2]], r"\[2, 2, 2\] edges"),
        ([ALPHA], [BETA], [[3, 2, 2, 2]], r"\[3, 2, 2, 2\] edges"),
        ([ALPHA], [BETA], [[2, 0, 2, 2]], r"\[2, 0, 2, 2\] edges"),
    ],
)
def test_wrong_arguments(alphas, betas, keep, message):
    for function in (discretization_loss, reference):
        with pytest.raises(UserError, match=message):
            function(
                alphas,
                betas,
                edges_per_node=DARTS_EDGES,
                keep=keep,
                operation_weight=1.0,
                edge_weight=1.0,
            )


def test_backends(monkeypatch):
    meta = [ALPHA.to("meta")], [BETA.to("meta")]
    arguments = {
        "edges_per_node": DARTS_EDGES,
        "keep": [[2, 2, 2, 2]],
        "operation_weight": 1.0,
        "edge_weight": 1.0,
    }
    with pytest.raises(UserError, match=r"'cpu'.* cannot run: a parameter is on meta"):
        fused(*meta, **arguments)
    assert discretization_loss(*meta, **arguments).total.device.type == "meta"
    monkeypatch.setattr(
        import_module("da2s_fast.ops.discretization_loss"), "_HAS_CPU_KERNEL", False
    )
    with pytest.raises(UserError, match="compiled CPU library is not there"):
        fused([ALPHA], [BETA], **arguments)
    assert discretization_loss([ALPHA], [BETA], **arguments).total > 0


def test_the_operator_itself_checks_what_it_reads():
    operator = torch.ops.da2s_fast.discretization_loss
    for arguments in [
        ([], [], [2], []),
        ([ALPHA], [], [2], []),
        ([ALPHA], [BETA[:2]], DARTS_EDGES, [2, 2, 2, 2]),
        ([ALPHA], [BETA], DARTS_EDGES, [2]),
        ([ALPHA], [BETA.double()], DARTS_EDGES, [2, 2, 2, 2]),
        ([ALPHA], [BETA], [14, 0], [2, 2]),
        ([ALPHA.half()], [BETA], DARTS_EDGES, [2, 2, 2, 2]),
    ]:
        with pytest.raises(RuntimeError, match="discretization_loss"):
            operator(*arguments)
