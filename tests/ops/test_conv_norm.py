"""conv_norm against eager PyTorch, plain formulas and as an operator; see test_convolutions too."""

import functools
import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from da2s_fast.errors import UserError
from da2s_fast.ops import conv_norm
from tests.conditions import counted
from tests.ops import convolution_cases
from tests.ops.compare import assert_as_accurate
from tests.ops.convolution_cases import LAYOUTS, ConvolutionCase, evaluate

fused = functools.partial(conv_norm, backend="cpu")
reference = functools.partial(conv_norm, backend="reference")
check = functools.partial(convolution_cases.check, fused, reference)
NAMES = ("output", "statistics", "x", "weight", "scale", "shift")


class _Fields(NamedTuple):
    x: Tensor
    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None
    stride: int = 1
    relu: bool = False
    eps: float = 1e-5


class Case(_Fields, ConvolutionCase):
    """A call of conv_norm."""


def make_case(  # noqa: PLR0917 - the shape, then the operation
    shape: tuple[int, ...],
    out: int,
    k: int = 3,
    stride: int = 1,
    relu: bool = False,
    affine: bool = True,
    seed: int = 0,
) -> Case:
    torch.manual_seed(seed)
    weight = torch.randn(out, shape[1], k, k) / (k * shape[1] ** 0.5)
    scale, shift = (torch.randn(out) for _ in range(2)) if affine else (None, None)
    return Case(torch.randn(shape), weight, scale, shift, stride, relu)


# Of the gradient of a norm over two or three values nothing but rounding errors is left: channels
# have more.
FEW = 8
SHAPES = [(3, 5, 7, 6), (2, 16, 9, 9), (1, 3, 29, 1), (33, 8, 4, 4), (2, 2, 15, 4), (5, 1, 3, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("stride", "relu"), list(itertools.product((1, 2), (False, True))))
@pytest.mark.parametrize(("k", "out"), [(1, 5), (3, 16), (3, 3)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_eager(shape, k, out, stride, relu, layout):  # noqa: PLR0917 - pytest's
    check(make_case(shape, out, k, stride, relu).laid_out(layout))


@pytest.mark.parametrize("out", [1, 2, 7, 24, 33, 48])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_channels(out, layout):
    check(make_case((3, 3, 6, 5), out).laid_out(layout))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_norms_without_parameters(scale, shift):
    case = make_case((4, 3, 6, 6), 8)
    check(case._replace(scale=case.scale if scale else None, shift=case.shift if shift else None))


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(2, 9), *(st.integers(1, 9) for _ in range(3))),
    out=st.integers(1, 20),
    k=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    relu=st.booleans(),
    affine=st.booleans(),
)
def test_random_shapes(shape, out, k, stride, relu, affine):  # noqa: PLR0917 - hypothesis's
    images, _, *size = shape
    assume(images * math.prod((length - 1) // stride + 1 for length in size) >= FEW)
    # Norms make the scale of weights irrelevant but for eps: of the gradient of a single weight not
    # much but rounding errors is left.
    assume(shape[1] * k > 1)
    check(make_case(shape, out, k, stride, relu, affine)._replace(eps=0.5))


def test_long_sums_round_as_little_as_eager():
    """Sums of 576 products, added one by one, have twice eager PyTorch's typical error.

    The usual rule, of the largest error, lets that pass; in a cell it adds to the errors of others.
    """
    case = make_case((8, 64, 8, 8), 64)
    exact = evaluate(reference, case.to(torch.float64))
    ours, eager = evaluate(fused, case), evaluate(reference, case)
    for name in ("output", "x"):
        error, allowed = (
            (found[name].double() - exact[name]).pow(2).mean().sqrt() for found in (ours, eager)
        )
        assert error <= allowed, name


def test_the_stem_of_a_search():
    check(make_case((8, 3, 32, 32), 48).laid_out(torch.channels_last))


def test_equals_the_definition():
    """Equations of Ioffe and Szegedy, algorithm 1, and of their backward pass, from z."""
    case = make_case((3, 4, 5, 6), 7).to(torch.float64)
    z = F.conv2d(case.x, case.weight, padding=1)
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    rstd = (variance + case.eps).rsqrt()

    def per_channel(values: Tensor) -> Tensor:
        return values[:, None, None]

    normalized = per_channel(rstd) * (z - per_channel(mean))
    found = evaluate(fused, case)
    torch.manual_seed(1)
    g = torch.randn(z.shape).double()
    sums = {"shift": g.sum((0, 2, 3)), "scale": (g * normalized).sum((0, 2, 3))}
    values = z.numel() // 7
    dz = per_channel(case.scale * rstd) * (
        g - per_channel(sums["shift"]) / values - normalized * per_channel(sums["scale"]) / values
    )
    expected = {
        "output": per_channel(case.scale) * normalized + per_channel(case.shift),
        "statistics": torch.cat((mean, variance)),
        "x": torch.nn.grad.conv2d_input(case.x.shape, case.weight, dz, padding=1),
        "weight": torch.nn.grad.conv2d_weight(case.x, case.weight.shape, dz, padding=1),
        **sums,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("offset", [1e2, -1e4])
def test_means_far_from_zero(offset):
    case = make_case((5, 3, 9, 9), 8, 1)
    case = case._replace(x=case.x + offset)
    # What the rounding of a mean leaves in the sum of dz comes back times the offset: nothing that
    # is small in all float64 results.
    exact = evaluate(reference, case.to(torch.float64))
    assert_as_accurate(evaluate(fused, case), evaluate(reference, case), exact)


def test_two_values():
    case = make_case((2, 3, 1, 1), 4).to(torch.float64)
    expected, found = evaluate(reference, case), evaluate(fused, case)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_nan_in_one_channel_stays_there():
    case = make_case((2, 4, 9, 9), 16)
    case.weight[3] = torch.nan
    output, statistics = fused(*case[:4])
    expected, _ = reference(*case[:4])
    assert torch.equal(output.isnan(), expected.isnan())
    assert statistics.isnan().nonzero().flatten().tolist() == [3, 19]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", [False, True])
def test_opcheck_and_gradcheck(affine, layout):
    case = make_case((2, 3, 4, 5), 4, 3, 2, True, affine).to(torch.float64)
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in case[:4]]
    leaves[0] = case.x.detach().contiguous(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.da2s_fast.conv_norm, (*leaves, *case[4:]))

    def output(*given: Tensor) -> Tensor:
        return fused(*given, **case.options())[0]

    assert torch.autograd.gradcheck(output, leaves)
    grad = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    plain = [None if leaf is None else leaf.detach() for leaf in leaves]
    _, statistics = fused(*plain, **case.options())
    for mask in ([True] * 4, [False, True, False, True]):
        torch.library.opcheck(
            torch.ops.da2s_fast.conv_norm_backward, (grad, *plain, statistics, *case[4:], mask)
        )


def test_what_it_cannot_run_goes_to_the_reference():
    case = make_case((2, 4, 6, 6), 4, 5)
    assert torch.equal(conv_norm(*case[:4])[0], reference(*case[:4])[0])
    with pytest.raises(UserError, match="5 rows"):
        fused(*case[:4])
    with pytest.raises(UserError, match="Triton"):
        conv_norm(*make_case((2, 4, 6, 6), 4)[:4], backend="triton")
    with pytest.raises(UserError, match=r"torch\.float64"):
        fused(case.x, case.weight.double())


def test_wrong_shapes():
    x, weight, scale, shift, *_ = make_case((2, 4, 6, 6), 5)
    with pytest.raises(UserError, match=r"\(5, 3, 3, 3\)"):
        conv_norm(x, weight[:, :3], scale, shift)
    with pytest.raises(UserError, match=r"\(2, 4, 6\)"):
        conv_norm(x[..., 0], weight, scale, shift)
    with pytest.raises(UserError, match="odd"):
        conv_norm(x, weight[..., :2, :2], scale, shift)
    with pytest.raises(UserError, match=r"shift of shape \(4,\)"):
        conv_norm(x, weight, scale, shift[:4])
    with pytest.raises(UserError, match="single value"):
        conv_norm(x[:1, :, :2, :2], weight, scale, shift, stride=2)


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_are_counted_as_those_of_eager(stride):
    case = make_case((2, 6, 9, 7), 5, 3, stride)
    forward = counted(lambda: reference(*case[:4], stride=stride))
    assert counted(lambda: fused(*case[:4], stride=stride)) == forward > 0
    assert counted(lambda: evaluate(fused, case)) == 3 * forward
    assert counted(lambda: evaluate(reference, case)) == 3 * forward
