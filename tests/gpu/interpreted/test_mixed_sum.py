"""mixed_sum in Triton's interpreter: what is asked of the compiled CPU operator."""

from importlib import import_module

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2s_fast.ops.mixed_sum_tiles import Tuning
from tests.gpu.test_mixed_sum import check, fused, lay_out, make_several_tiles, reference
from tests.ops.mixed_sum_cases import (
    BATCH,
    CUMULATIVE,
    NONE,
    RUNNING,
    STATELESS,
    evaluate,
    make_case,
)
from tests.ops.test_mixed_sum import DTYPES, KINDS, SHAPES
from tests.ops.test_mixed_sum import LAYOUTS as CHANGES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch):
    """Let few programs do all: it is programs that take the interpreter's time."""
    driver = import_module("da2s_fast.ops.mixed_sum_triton")
    tuning = Tuning(largest=16384, smallest=16384, programs=64, parts=3)
    monkeypatch.setattr(driver, "_TUNING", {80: tuning})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_eager(device, shape, dtype):
    check(device, make_case(shape, KINDS, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_tiles_and_parts(device, monkeypatch, layout):
    _, case = make_several_tiles(monkeypatch, layout=layout)
    check(device, case)


@pytest.mark.parametrize("shape", [(), (7,), (10000,)])
def test_without_norms_any_shape(device, shape):
    check(device, make_case(shape, [NONE] * 3))


@pytest.mark.parametrize("mean", [1e3, 1e5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_mean_keeps_its_digits(device, mean, layout):
    check(device, lay_out(make_case((8, 4, 9, 9), [BATCH, BATCH], mean=mean), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_other_means_keep_their_digits(device, monkeypatch, layout):
    _, case = make_several_tiles(monkeypatch, layout=layout)
    case.inputs[0][0] = 0
    case.inputs[0][-1] += 1e4
    check(device, case)


def test_equal_values(device):
    case = make_case((4, 6, 5, 7), [BATCH, NONE])
    case.inputs[0][:] = 0.3
    check(device, case)


@pytest.mark.parametrize("others", [*CHANGES, "contiguous"])
@pytest.mark.parametrize("first", ["channels_last", "transposed", "offset"])
def test_layouts(device, first, others):
    case = make_case((4, 6, 5, 7), [BATCH, NONE, RUNNING])
    change = CHANGES.get(others, torch.Tensor.contiguous)
    inputs = [CHANGES[first](case.inputs[0]), *map(change, case.inputs[1:])]
    results = check(device, case._replace(inputs=inputs, grad=change(case.grad)))
    layout = torch.channels_last if first == "channels_last" else torch.contiguous_format
    assert results["output"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels", [1, 7, 8, 300])
def test_channels_last_channels(device, channels):
    case = make_case((2, channels, 3, 2), KINDS)
    check(device, lay_out(case, torch.channels_last))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [NONE, BATCH, RUNNING])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_finite_inputs(device, layout, kind, value):
    case = lay_out(make_case((2, 3, 4, 4), [kind, NONE, BATCH]), layout)
    case.inputs[0][1, 2, 0, 3] = value
    check(device, case)
    case.weights[0] = 0  # 0 times NaN or infinity is NaN
    results = check(device, case)
    assert results["output"][1, 2, 0, 3].isnan()


def test_not_finite_gradient_and_weights(device):
    case = make_case((2, 3, 4, 4), [BATCH, NONE, RUNNING])
    case.grad[0, 1, 2, 3] = float("inf")
    check(device, case)
    case.weights[1] = float("nan")
    check(device, case)


@pytest.mark.parametrize("weights_mask", [True, False])
@pytest.mark.parametrize("input_mask", [[True, False, False], [False, True, True], [False] * 3])
def test_only_gradients_asked_for(device, input_mask, weights_mask):
    case = make_case((3, 4, 5, 5), [BATCH, NONE, RUNNING])
    check(device, case, input_mask=input_mask, weights_mask=weights_mask)


def test_mixed_dtypes_promote_as_in_eager(device):
    case = make_case((3, 4, 5, 5), [BATCH, NONE, BATCH])
    check(
        device,
        case._replace(inputs=[case.inputs[0].bfloat16(), case.inputs[1], case.inputs[2].half()]),
    )


def test_many_inputs(device):
    check(device, make_case((2, 3, 3, 3), [BATCH, NONE, RUNNING, BATCH] * 8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(device, layout):
    case = lay_out(make_case((3, 4, 5, 6), [BATCH, NONE, RUNNING]), layout)
    running, modes, eps = case.norms[2], [1, 0, 2], [1e-5, 0.0, 1e-3]
    inputs = [y.requires_grad_() for y in case.inputs]
    statistics = [running.running_mean], [running.running_var]
    torch.library.opcheck(
        torch.ops.da2s_fast.mixed_sum,
        (inputs, case.weights.requires_grad_(), *statistics, modes, eps),
    )
    for input_mask, weights_mask in (([True] * 3, False), ([False, True, False], True)):
        torch.library.opcheck(
            torch.ops.da2s_fast.mixed_sum_backward,
            (
                *(case.grad, [y.detach() for y in inputs], case.weights.detach()),
                *(torch.randn(2, 4), torch.rand(2, 4), modes, eps, input_mask, weights_mask),
            ),
        )


def test_gradcheck(device):
    case = make_case((2, 2, 2, 1), [BATCH, NONE, RUNNING], torch.float64)
    inputs = [y.requires_grad_() for y in case.inputs]
    assert torch.autograd.gradcheck(
        lambda weights, *inputs: fused(inputs, weights, case.norms),
        (case.weights.requires_grad_(), *inputs),
    )


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4),
    kinds=st.lists(
        st.sampled_from([BATCH, NONE, RUNNING, STATELESS, CUMULATIVE]), min_size=1, max_size=6
    ),
    layout=st.sampled_from(LAYOUTS),
    weights_mask=st.booleans(),
    data=st.data(),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_cases(device, shape, kinds, layout, weights_mask, data):  # noqa: PLR0917
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])
    mask = data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    case = lay_out(make_case(shape, kinds, torch.float64), layout)
    results = evaluate(fused, case, mask, weights_mask)
    eager = evaluate(reference, case, mask, weights_mask)
    # Absolute, because the gradient through the statistics of very few values cancels to nothing.
    torch.testing.assert_close(results, eager, rtol=1e-9, atol=1e-11)
