"""The compiled cell against its reference: accuracy, layouts, special values, bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from da2s_fast.ops.cell.operations import KNOWN
from da2s_fast.ops.cell.plan import CellPlan
from tests.conditions import run_with_instruction_set, with_threads
from tests.ops.cell_cases import (
    BOTH,
    PLANS,
    assert_same_bits,
    check,
    compiled,
    evaluate,
    make_case,
)
from tests.ops.compare import Mismatch, assert_as_accurate

pytestmark = compiled
LAYOUTS = [torch.contiguous_format, torch.channels_last]
named = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@pytest.mark.parametrize("frozen", ["none", "some", "all"])
@named
def test_is_as_accurate_as_the_reference(plan, frozen):
    check(make_case(plan, frozen=frozen))


@named
def test_without_edge_weights(plan):
    check(make_case(plan, weighs_edges=False), dtypes=(torch.float64,))


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 1, 1), (1, 2, 1), (5, 8, 9), (33, 3, 2)], ids=str)
@pytest.mark.parametrize("name", ["normal", "partial reduction", "dense", "mixed op, stride 2"])
def test_sizes(name, size):
    plan = PLANS[name]
    halved = plan.reduction and size[0] * ((size[1] + 1) // 2) * ((size[2] + 1) // 2) < 2
    check(make_case(plan, size, frozen="all" if halved else "none"), dtypes=(torch.float64,))


def test_images_as_large_as_in_a_search():
    check(make_case(CellPlan(16, KNOWN[1:9], 2, False, BOTH), (4, 32, 32)))


@pytest.mark.parametrize("parameters", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["normal", "partial reduction", "dense", "mixed op"])
def test_half_precision_is_computed_in_single_precision(name, dtype, parameters):
    case = make_case(PLANS[name], frozen="some").to(dtype, parameters)
    exact = evaluate(case.to(torch.float64), backend="reference")
    eager = evaluate(case, backend="reference")
    found = evaluate(case, backend="cpu")
    assert_as_accurate(found, eager, exact)
    assert found["output"].dtype == found["input 0"].dtype == dtype
    assert found["p"].dtype == found["weights"].dtype == (parameters or dtype)


plans = st.builds(
    lambda k, c, operations, nodes, reduction, kinds, outputs, pool_norm: CellPlan(
        k * c, tuple(operations), nodes, reduction, kinds, k, min(outputs, nodes), pool_norm
    ),
    k=st.integers(1, 4),
    c=st.integers(2, 9),
    operations=st.lists(st.sampled_from(KNOWN), min_size=1, max_size=4, unique=True),
    nodes=st.integers(1, 3),
    reduction=st.booleans(),
    kinds=st.sampled_from([("identity",), ("conv",), BOTH, ("reduce", "conv"), ("identity",) * 2]),
    outputs=st.integers(1, 3),
    pool_norm=st.booleans(),
)


@settings(deadline=None, max_examples=40)
@given(
    plan=plans,
    size=st.tuples(st.integers(2, 5), st.integers(3, 9), st.integers(3, 9)),
    frozen=st.sampled_from(["none", "some", "all"]),
    data=st.data(),
)
def test_random_plans_and_shapes(plan, size, frozen, data):
    if data.draw(st.booleans()):
        columns = st.lists(st.sampled_from(range(len(plan.operations))), unique=True)
        active = tuple(tuple(sorted(data.draw(columns))) for _ in plan.edges)
        plan = CellPlan(*(getattr(plan, name) for name in FIELDS), active)
    check(make_case(plan, size, frozen=frozen), dtypes=(torch.float64,))


FIELDS = (
    *("channels", "operations", "nodes", "reduction", "preprocess", "partial_channels"),
    *("output_nodes", "pool_norm"),
)


@pytest.mark.parametrize("name", ["normal", "partial reduction", "dense"])
def test_weights_of_exactly_zero(name):
    case = make_case(PLANS[name])
    case.p[:, 1] = 0
    case.p[1] = 0
    case.g[0] = 0
    check(case)


@pytest.mark.parametrize("layouts", [(1, 1), (1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("name", ["normal", "reduction", "after a reduction", "partial", "dense"])
def test_layouts_follow_the_inputs(name, layouts):
    case = make_case(PLANS[name], (3, 6, 4))
    case.inputs = [
        x.contiguous(memory_format=LAYOUTS[layout])
        for x, layout in zip(case.inputs, layouts, strict=False)
    ]
    check(case)
    found = evaluate(case, backend="cpu")
    assert found["output"].is_contiguous(memory_format=LAYOUTS[layouts[0]])
    for position, layout in enumerate(layouts[: len(case.inputs)]):
        assert found[f"input {position}"].is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("name", ["normal", "mixed op, stride 2"])
def test_inputs_of_any_strides(name):
    case = make_case(PLANS[name], (4, 6, 6))
    plain = evaluate(case, backend="cpu")
    for arrange in (
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], 1)[:, 0],
        lambda x: torch.stack([x, x], -1)[..., 1],
        lambda x: x.flip(1).permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3).flip(1),
    ):
        case.inputs = [arrange(x.detach()) for x in case.inputs]
        assert_same_bits(evaluate(case, backend="cpu"), plain)
    case.inputs = [x.detach()[:1, :, :1].expand_as(x) for x in case.inputs]
    check(case, dtypes=(torch.float64,))


def test_incoming_gradients_of_any_layout():
    case = make_case(PLANS["reduction"], (3, 6, 6)).require()
    output, _ = case(backend="cpu")
    for incoming in (
        torch.randn(3, 3, 3, 6).permute(0, 3, 1, 2),
        torch.ones(()).expand(3, 6, 3, 3),
        torch.randn(3, 6, 3, 6)[..., ::2],
        torch.randn(6, 3, 3, 3).transpose(0, 1),
    ):
        found = torch.autograd.grad(output, case.leaves, incoming, retain_graph=True)
        dense = torch.autograd.grad(output, case.leaves, incoming.contiguous(), retain_graph=True)
        assert all(map(torch.equal, found, dense))


@pytest.mark.parametrize("frozen", ["none", "all"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["normal", "partial reduction", "mixed op", "dense"])
def test_nan_and_infinities_are_where_eager_has_them(name, value, frozen):
    case = make_case(PLANS[name], (2, 9, 9), frozen=frozen)
    case.inputs[-1][1, 2, 4, 4] = value
    exact = evaluate(case.to(torch.float64), backend="reference")
    eager, found = (evaluate(case, backend=backend) for backend in ("reference", "cpu"))
    # The mean of a channel with an infinity is infinite for BatchNorm, NaN for torch.var_mean.
    statistics = [results.pop("statistics").isfinite() for results in (exact, eager, found)]
    assert torch.equal(statistics[2], statistics[1])
    assert_as_accurate(found, eager, exact)


@pytest.mark.parametrize("name", ["normal", "mixed op", "reduction"])
def test_zeros_and_ties(name):
    """No gradient through ReLU at 0, to the first of equal maxima."""
    case = make_case(PLANS[name], (2, 6, 6))
    case.inputs = [(4 * x).round() / 4 for x in case.inputs]
    check(case, dtypes=(torch.float64,))


@named
def test_recomputing_gives_the_same_bits_as_saving(plan):
    case = make_case(plan, frozen="some")
    saved = evaluate(case, backend="cpu", memory="save")
    assert_same_bits(evaluate(case, backend="cpu", memory="recompute"), saved)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("name", ["normal", "partial reduction", "dense", "mixed op"])
def test_same_bits_for_any_number_of_threads_and_from_run_to_run(name, memory):
    case = make_case(PLANS[name], (37, 8, 8))
    results = with_threads(lambda: evaluate(case, backend="cpu", memory=memory))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_instruction_sets(isa):
    code = (
        "from tests.ops.cell_cases import PLANS, check, make_case\n"
        "for name in ('after a reduction, odd', 'partial', 'dense', 'cut'):\n"
        "    check(make_case(PLANS[name]))"
    )
    run_with_instruction_set(isa, code)


@pytest.mark.parametrize(
    "result", ["output", "statistics", "input 0", "input 1", "p", "g", "weights"]
)
def test_a_planted_error_is_found(result):
    case = make_case(PLANS["normal"])
    exact = evaluate(case.to(torch.float64), backend="reference")
    eager = evaluate(case, backend="reference")
    found = evaluate(case, backend="cpu")
    found[result].view(-1)[-1] += 1e-3 * found[result].abs().max()
    with pytest.raises(Mismatch, match=result):
        assert_as_accurate(found, eager, exact)
