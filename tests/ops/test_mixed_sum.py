import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from da2s_fast.backends import build_info
from da2s_fast.ops import mixed_sum
from tests.conditions import run_with_instruction_set, with_threads
from tests.ops.compare import Mismatch, assert_as_accurate
from tests.ops.mixed_sum_cases import (
    BATCH,
    CUMULATIVE,
    NONE,
    RUNNING,
    STATELESS,
    by_formula,
    evaluate,
    make_case,
)

fused = functools.partial(mixed_sum, backend="cpu")
reference = functools.partial(mixed_sum, backend="reference")

KINDS = [BATCH, NONE, RUNNING, STATELESS, CUMULATIVE, BATCH]
SHAPES = [
    (4, 16, 8, 8),
    (3, 1, 7, 5),
    (2, 3, 1, 1),
    (1, 5, 7, 7),
    (2, 2, 65, 64),  # a channel of an image is more than one block
    (300, 3, 5, 3),
    (9, 6),
    (5, 4, 11),
    (2, 3, 4, 3, 5),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def check(case, **masks):
    results = evaluate(fused, case, **masks)
    eager = evaluate(reference, case, **masks)
    assert_as_accurate(results, eager, evaluate(reference, case.to(torch.float64), **masks))
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_eager(shape, dtype):
    case = make_case(shape, KINDS, dtype)
    results = check(case)
    formula = evaluate(by_formula, case.to(torch.float64))
    for name, value in results.items():
        tolerance = 1e-9 if dtype == torch.float64 else 40 * torch.finfo(dtype).eps
        scale = max(1.0, formula[name].double().abs().max().item())
        torch.testing.assert_close(
            value.double(), formula[name].double(), rtol=0, atol=tolerance * scale, msg=name
        )


@pytest.mark.parametrize("shape", [(), (7,), (0,), (3, 0, 2), (10000,)])
def test_without_norms_any_shape(shape):
    case = make_case(shape, [NONE] * 3)
    results = evaluate(mixed_sum, case)
    eager = evaluate(reference, case)
    assert_as_accurate(results, eager, evaluate(reference, case.to(torch.float64)))


@pytest.mark.parametrize("mean", [1e3, 1e5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_large_mean_keeps_its_digits(mean, channels_last):
    case = make_case((8, 4, 9, 9), [BATCH, BATCH], mean=mean)
    if channels_last:
        case = case._replace(inputs=[to_channels_last(y) for y in case.inputs])
    check(case)


def to_channels_last(y):
    return y.contiguous(memory_format=torch.channels_last)


LAYOUTS = {
    "channels_last": to_channels_last,
    "transposed": lambda y: y.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda y: torch.stack([y, y + 1], -1)[..., 0],
    "batch expanded": lambda y: y[:1].expand_as(y),
    "channels expanded": lambda y: y[:, :1].expand_as(y),
    "offset": lambda y: torch.cat([y.new_zeros(3), y.flatten()])[3:].view_as(y),
}


@pytest.mark.parametrize("others", [*LAYOUTS, "contiguous"])
@pytest.mark.parametrize("first", LAYOUTS)
def test_layouts(first, others):
    case = make_case((4, 6, 5, 7), [BATCH, NONE, RUNNING])
    change = LAYOUTS.get(others, torch.Tensor.contiguous)
    inputs = [LAYOUTS[first](case.inputs[0]), *map(change, case.inputs[1:])]
    results = check(case._replace(inputs=inputs, grad=change(case.grad)))
    channels_last = first == "channels_last"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert results["output"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels", [1, 7, 8, 300, 5000])
def test_channels_last_channels(channels):
    case = make_case((2, channels, 3, 2), KINDS)
    check(case._replace(inputs=[to_channels_last(y) for y in case.inputs]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [NONE, BATCH, RUNNING])
def test_not_finite_inputs(kind, value):
    case = make_case((2, 3, 4, 4), [kind, NONE, BATCH])
    case.inputs[0][1, 2, 0, 3] = value
    check(case)
    case.weights[0] = 0  # 0 times NaN or infinity is NaN
    results = check(case)
    assert results["output"][1, 2, 0, 3].isnan()


def test_not_finite_gradient_and_weights():
    case = make_case((2, 3, 4, 4), [BATCH, NONE, RUNNING])
    case.grad[0, 1, 2, 3] = float("inf")
    check(case)
    case.weights[1] = float("nan")
    check(case)


@pytest.mark.parametrize("weights_mask", [True, False])
@pytest.mark.parametrize("input_mask", [[True, False, False], [False, True, True], [False] * 3])
def test_only_gradients_asked_for(input_mask, weights_mask):
    case = make_case((3, 4, 5, 5), [BATCH, NONE, RUNNING])
    check(case, input_mask=input_mask, weights_mask=weights_mask)


def test_statistics_of_one_norm_used_twice():
    case = make_case((3, 4, 5, 5), [BATCH, BATCH])
    case = case._replace(norms=[case.norms[0]] * 2)
    results = check(case)
    assert results["norms[0].num_batches_tracked"] == 5


def test_mixed_dtypes_promote_as_in_eager():
    case = make_case((3, 4, 5, 5), [BATCH, NONE, BATCH])
    case = case._replace(inputs=[case.inputs[0].bfloat16(), case.inputs[1], case.inputs[2].half()])
    results, eager = evaluate(fused, case), evaluate(reference, case)
    assert_as_accurate(results, eager, evaluate(reference, case.to(torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_independent_of_threads_and_of_the_run(dtype):
    for shape in [(16, 8, 16, 16), (2, 2, 65, 64), (64, 1, 3, 3)]:
        case = make_case(shape, KINDS, dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs = [y.contiguous(memory_format=layout) for y in case.inputs]
            laid_out = case._replace(inputs=inputs)
            results = with_threads(functools.partial(evaluate, fused, laid_out))
            for other in results[1:]:
                for name, value in results[0].items():
                    assert torch.equal(value, other[name]), name


def run_everywhere():
    for dtype in DTYPES:
        case = make_case((4, 7, 9, 5), KINDS, dtype)
        check(case)
        check(case._replace(inputs=[to_channels_last(y) for y in case.inputs]))


@pytest.mark.parametrize("isa", build_info().get("usable_instruction_sets", []))
def test_instruction_sets(isa):
    code = "from tests.ops.test_mixed_sum import run_everywhere; run_everywhere()"
    run_with_instruction_set(isa, code)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4),
    kinds=st.lists(st.sampled_from([BATCH, NONE, RUNNING, STATELESS, CUMULATIVE]), min_size=1),
    channels_last=st.booleans(),
    weights_mask=st.booleans(),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_random_cases(shape, kinds, channels_last, weights_mask, data):
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])
    mask = data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    case = make_case(shape, kinds, torch.float64)
    if channels_last:
        case = case._replace(inputs=[to_channels_last(y) for y in case.inputs])
    results = evaluate(fused, case, mask, weights_mask)
    eager = evaluate(reference, case, mask, weights_mask)
    # Absolute, because the gradient through the statistics of very few values cancels to nothing.
    torch.testing.assert_close(results, eager, rtol=1e-9, atol=1e-11)


def without_unbiased_variance(inputs, weights, norms):
    output = reference(inputs, weights, norms)
    count = inputs[0].numel() // inputs[0].shape[1]
    norms[0].running_var = norms[0].running_var * (count - 1) / count
    return output


def without_statistics_gradient(inputs, weights, norms):
    shape, dims = [1, -1, 1, 1], [0, 2, 3]
    terms = [by_formula([y], w[None], [n]) for y, w, n in zip(inputs, weights, norms, strict=True)]
    constant = weights[0] * (
        inputs[0].detach().mean(dims).view(shape) - inputs[0].mean(dims).view(shape)
    )
    return sum(terms) + constant


def biased(inputs, weights, norms):
    return reference(inputs, weights, norms) * (1 + 1e-6)


@pytest.mark.parametrize("mutant", [without_unbiased_variance, without_statistics_gradient, biased])
def test_planted_bugs_are_noticed(mutant):
    case = make_case((3, 4, 5, 5), [BATCH, NONE])
    eager, exact = evaluate(reference, case), evaluate(reference, case.to(torch.float64))
    with pytest.raises(Mismatch):
        assert_as_accurate(evaluate(mutant, case), eager, exact)


def test_memory_of_the_compiled_operator_is_poisoned():
    case = make_case((3, 4, 5, 5), [BATCH, NONE])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        fused(case.inputs, case.weights, case.norms)
    (operator,) = [e for e in profiler.events() if e.name == "da2s_fast::mixed_sum"]
    allocations = [e for e in operator.cpu_children if e.name == "aten::empty"]
    assert len(allocations) == 3  # the output, means, variances
    for allocation in allocations:
        assert "aten::fill_" in [e.name for e in allocation.cpu_children]
