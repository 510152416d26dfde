"""separable_conv in Triton's interpreter: what is asked of the compiled CPU operator."""

import functools
import itertools

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.separable_conv import pixels_of
from da2s_fast.ops import separable_conv_triton
from tests.gpu.test_separable_conv import check, fused, make_several_tiles
from tests.ops.test_separable_conv import LAYOUTS, NAMES, SHAPES, evaluate, make_case, reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch):
    """Let few programs do all: it is programs that take the interpreter's time."""
    for name in ("_TUNING", "_DOUBLE"):
        tuning = getattr(separable_conv_triton, name)[80]._replace(pixels=256, chunk_pixels=256)
        monkeypatch.setattr(separable_conv_triton, name, {80: tuning})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize(("shape", "k"), list(zip(SHAPES, [3, 5, 3, 7, 3, 5], strict=True)))
def test_equals_eager(device, shape, k, stride, dilation, layout):  # noqa: PLR0917
    case = make_case(shape, shape[1], k, stride, dilation)
    check(device, case._replace(x=case.x.contiguous(memory_format=layout)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stride", [1, 2])
def test_other_types(device, stride, dtype):
    check(device, make_case((3, 5, 7, 6), 9, 5, stride).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 2), (3, 1), (4, 3)])
def test_several_tiles_blocks_and_chunks(device, monkeypatch, stride, dilation, dtype):
    case = make_several_tiles(monkeypatch)._replace(stride=stride, dilation=dilation)
    check(device, case.to(dtype))


@triton.jit
def _write_pixels(to, tile, height, width, PIXELS: tl.constexpr):
    at = tl.arange(0, PIXELS)
    n, y, x = pixels_of(tile, height, width, PIXELS)
    tl.store(to + at, n)
    tl.store(to + PIXELS + at, y)
    tl.store(to + 2 * PIXELS + at, x)


def test_more_pixels_than_32_bits_count():
    found, tile, height, width = torch.empty(3, 64, dtype=torch.int64), 2**27 + 5, 1000, 37
    launch(_write_pixels, (1,), to=found, tile=tile, height=height, width=width, PIXELS=64)
    pixel = 64 * tile + torch.arange(64)
    rows = pixel // width
    assert torch.equal(found, torch.stack([rows // height, rows % height, pixel % width]))


def test_strided_and_expanded_inputs(device):
    case = make_case((4, 6, 8, 8), 6, 3)
    for x in (
        case.x[:, :, ::2, 1:],
        case.x.transpose(2, 3),
        case.x[:1].expand(4, 6, 8, 8),
        case.x[:, :1].expand(4, 6, 8, 8),
    ):
        check(device, case._replace(x=x))


def test_incoming_gradient_of_any_layout(device):
    case = make_case((2, 4, 6, 6), 4, 3)
    leaves = [tensor.requires_grad_() for tensor in case[:3]]
    output, expected = fused(*leaves), reference(*leaves)
    for incoming in (
        torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2),
        torch.ones(()).expand(2, 4, 6, 6),
        torch.randn(2, 4, 6, 12)[..., ::2],
    ):
        found, right = (
            torch.autograd.grad(o, leaves, incoming, retain_graph=True) for o in (output, expected)
        )
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_follow_the_input(device, layout):
    case = make_case((2, 4, 6, 6), 5, 3)
    leaves = [case.x.contiguous(memory_format=layout).requires_grad_(), *case[1:3]]
    output = fused(*leaves)
    assert output.is_contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(output.sum(), leaves[:1])
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinities(device, value):
    case = make_case((2, 4, 9, 9), 4, 3)
    case.x[1, 2, 4, 4] = value
    check(device, case)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_the_gradients_asked_for(device, monkeypatch, wanted):
    """With weights they are the same bits; alone, x's programs have smaller chunks."""
    case = make_several_tiles(monkeypatch)
    everything = evaluate(fused, case)
    leaves = [
        tensor.detach().requires_grad_(needed)
        for tensor, needed in zip(case[:3], wanted, strict=True)
    ]
    output = fused(*leaves)
    if not any(wanted):
        assert not output.requires_grad
        return
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape))
    for name, leaf, needed in zip(NAMES[1:], leaves, wanted, strict=True):
        assert (leaf.grad is not None) is needed
        if needed:
            assert torch.equal(leaf.grad, everything[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_gradcheck(device, layout):
    case = make_case((1, 2, 3, 4), 2, 3, 2).to(torch.float64)
    leaves = [
        case.x.contiguous(memory_format=layout).requires_grad_(),
        case.spatial.requires_grad_(),
        case.channel.requires_grad_(),
    ]
    torch.library.opcheck(torch.ops.da2s_fast.separable_conv, (*leaves, 2, 1, 1))
    assert torch.autograd.gradcheck(functools.partial(fused, stride=2), leaves)
    grad = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    plain = [leaf.detach() for leaf in leaves]
    for mask in ([True] * 3, [False, True, False]):
        torch.library.opcheck(
            torch.ops.da2s_fast.separable_conv_backward, (grad, *plain, 2, 1, 1, mask)
        )


def test_autocast_is_as_close_to_the_truth_as_eager(device):
    """X in autocast's type, weights as they are."""
    case = make_case((2, 4, 6, 6), 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found, eager = (evaluate(function, case) for function in (fused, reference))
    assert found["output"].dtype == torch.bfloat16
    exact = evaluate(reference, case.to(torch.float64))
    for name in NAMES:
        errors = [(r[name].double() - exact[name]).abs().max() for r in (found, eager)]
        assert errors[0] <= 2 * errors[1], name


@given(
    shape=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    out=st.integers(1, 20),
    k=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
)
@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_shapes(device, shape, out, k, stride, dilation):  # noqa: PLR0917
    check(device, make_case(shape, out, k, stride, dilation))
