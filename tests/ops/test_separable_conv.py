"""separable_conv against eager PyTorch and as an operator; more in test_convolutions."""

import functools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from da2s_fast.errors import UserError
from da2s_fast.ops import separable_conv
from tests.conditions import counted
from tests.ops import convolution_cases
from tests.ops.convolution_cases import LAYOUTS, ConvolutionCase, evaluate

fused = functools.partial(separable_conv, backend="cpu")
reference = functools.partial(separable_conv, backend="reference")
check = functools.partial(convolution_cases.check, fused, reference)
NAMES = ("output", "x", "spatial", "channel")


class _Fields(NamedTuple):
    x: Tensor
    spatial: Tensor
    channel: Tensor
    stride: int = 1
    dilation: int = 1


class Case(_Fields, ConvolutionCase):
    """A call of separable_conv."""


def make_case(  # noqa: PLR0917 - the shape, then the operation
    shape: tuple[int, ...], out: int, k: int, stride: int = 1, dilation: int = 1, seed: int = 0
) -> Case:
    torch.manual_seed(seed)
    c = shape[1]
    spatial, channel = torch.randn(c, 1, k, k) / k, torch.randn(out, c, 1, 1) / c**0.5
    return Case(torch.randn(shape), spatial, channel, stride, dilation)


KERNELS = [(3, 1), (5, 1), (7, 1), (3, 2), (5, 2)]  # sizes and dilations
SHAPES = [(3, 5, 7, 6), (2, 16, 9, 9), (1, 1, 1, 1), (1, 3, 2, 1), (33, 8, 4, 4), (2, 2, 15, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("k", "dilation"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_eager(shape, k, stride, dilation, layout):
    check(make_case(shape, shape[1], k, stride, dilation).laid_out(layout))


@pytest.mark.parametrize("out", [1, 3, 24])
def test_other_output_channels(out):
    check(make_case((2, 8, 5, 5), out, 3))


# The same cases every time: of a result of one or two numbers eager PyTorch's error may be none by
# luck, and then so must be ours.
@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    out=st.integers(1, 20),
    kernel=st.sampled_from(KERNELS),
    stride=st.integers(1, 2),
)
def test_random_shapes(shape, out, kernel, stride):
    k, dilation = kernel
    check(make_case(shape, out, k, stride, dilation))


@pytest.mark.parametrize("batch", [1, 2, 5, 8, 21])
def test_groups_of_images(batch):
    # 36 channels are no whole vectors; the next number of images may fill a group or not.
    check(make_case((batch, 36, 6, 5), 36, 3))
    check(make_case((batch, 4, 6, 5), 12, 3, 2))


def test_images_as_large_as_in_a_search():
    check(make_case((8, 16, 32, 32), 16, 5, 1, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_gradcheck(layout):
    case = make_case((2, 3, 4, 5), 4, 3, 2).to(torch.float64)
    leaves = [
        case.x.contiguous(memory_format=layout).requires_grad_(),
        case.spatial.requires_grad_(),
        case.channel.requires_grad_(),
    ]
    torch.library.opcheck(torch.ops.da2s_fast.separable_conv, (*leaves, 2, 1, 1))
    assert torch.autograd.gradcheck(functools.partial(fused, stride=2), leaves)
    grad = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    plain = [leaf.detach() for leaf in leaves]
    for mask in ([True] * 3, [False, True, False]):
        torch.library.opcheck(
            torch.ops.da2s_fast.separable_conv_backward, (grad, *plain, 2, 1, 1, mask)
        )


def test_what_it_cannot_run_goes_to_the_reference():
    for k, stride, dilation in ((9, 1, 1), (7, 1, 2), (3, 3, 1), (3, 1, 3)):
        case = make_case((2, 4, 6, 6), 4, k, stride, dilation)
        options = {"stride": stride, "dilation": dilation}
        assert torch.equal(separable_conv(*case[:3], **options), reference(*case[:3], **options))
        with pytest.raises(UserError, match=f"{k} rows, dilation {dilation} and stride {stride}"):
            fused(*case[:3], **options)
    assert separable_conv(*make_case((0, 4, 6, 6), 4, 3)[:3]).shape == (0, 4, 6, 6)


def test_wrong_shapes():
    x, spatial, channel, *_ = make_case((2, 4, 6, 6), 4, 3)
    with pytest.raises(UserError, match=r"\(3, 1, 3, 3\)"):
        separable_conv(x, spatial[:3], channel)
    with pytest.raises(UserError, match=r"\(4, 3, 1, 1\)"):
        separable_conv(x, spatial, channel[:, :3])
    with pytest.raises(UserError, match="odd"):
        separable_conv(x, spatial[..., :2, :2], channel)


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_are_counted_as_those_of_eager(stride):
    case = make_case((2, 6, 9, 7), 5, 3, stride)
    forward = counted(lambda: reference(*case[:3], stride=stride))
    assert counted(lambda: fused(*case[:3], stride=stride)) == forward > 0
    # Two convolutions for each one of the forward pass; torch's own formula for the gradient of a
    # grouped convolution's weight counts as if it were not grouped.
    assert counted(lambda: evaluate(fused, case)) == 3 * forward
