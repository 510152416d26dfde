"""separable_conv against eager PyTorch and as an operator of torch's."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from da2s_fast.backends import build_info
from da2s_fast.errors import UserError
from da2s_fast.ops import separable_conv
from tests.conditions import counted, run_with_instruction_set, with_threads
from tests.ops.compare import Mismatch, assert_as_accurate

fused = functools.partial(separable_conv, backend="cpu")
reference = functools.partial(separable_conv, backend="reference")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
NAMES = ("output", "x", "spatial", "channel")


class Case(NamedTuple):
    x: Tensor
    spatial: Tensor
    channel: Tensor
    stride: int = 1
    dilation: int = 1

    def to(self, dtype: torch.dtype) -> "Case":
        x, spatial, channel = (tensor.to(dtype) for tensor in self[:3])
        return Case(x, spatial, channel, self.stride, self.dilation)


def make_case(  # noqa: PLR0917 - the shape, then the operation
    shape: tuple[int, ...], out: int, k: int, stride: int = 1, dilation: int = 1, seed: int = 0
) -> Case:
    torch.manual_seed(seed)
    c = shape[1]
    spatial, channel = torch.randn(c, 1, k, k) / k, torch.randn(out, c, 1, 1) / c**0.5
    return Case(torch.randn(shape), spatial, channel, stride, dilation)


def evaluate(function: Callable[..., Tensor], case: Case) -> dict[str, Tensor]:
    """Output and all gradients; the incoming gradient is the same for every function."""
    leaves = [tensor.detach().requires_grad_() for tensor in case[:3]]
    output = function(*leaves, stride=case.stride, dilation=case.dilation)
    torch.manual_seed(1)
    incoming = torch.randn(output.shape).to(output)
    gradients = torch.autograd.grad(output, leaves, incoming)
    return dict(zip(NAMES, [output.detach(), *gradients], strict=True))


def check(case: Case, function: Callable[..., Tensor] = fused) -> None:
    exact = evaluate(reference, case.to(torch.float64))
    assert_as_accurate(evaluate(function, case), evaluate(reference, case), exact)
    double = case.to(torch.float64)
    assert_as_accurate(evaluate(function, double), exact, exact)


KERNELS = [(3, 1), (5, 1), (7, 1), (3, 2), (5, 2)]  # sizes and dilations
SHAPES = [(3, 5, 7, 6), (2, 16, 9, 9), (1, 1, 1, 1), (1, 3, 2, 1), (33, 8, 4, 4), (2, 2, 15, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("k", "dilation"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_eager(shape, k, stride, dilation, layout):
    case = make_case(shape, shape[1], k, stride, dilation)
    check(case._replace(x=case.x.contiguous(memory_format=layout)))


@pytest.mark.parametrize("out", [1, 3, 24])
def test_other_output_channels(out):
    check(make_case((2, 8, 5, 5), out, 3))


@settings(deadline=None, max_examples=30)
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


def test_strided_and_expanded_inputs():
    case = make_case((4, 6, 8, 8), 6, 3)
    for x in (
        case.x[:, :, ::2, 1:],
        case.x[:, ::2].expand(4, 3, 8, 8)[:, [0, 1, 2, 0, 1, 2]],
        case.x.transpose(2, 3),
        case.x[:1].expand(4, 6, 8, 8),
        case.x[:, :1].expand(4, 6, 8, 8),
    ):
        check(case._replace(x=x))


def test_incoming_gradient_of_any_layout():
    case = make_case((2, 4, 6, 6), 4, 3)
    leaves = [tensor.requires_grad_() for tensor in case[:3]]
    output = fused(*leaves)
    for incoming in (
        torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2),
        torch.ones(()).expand(2, 4, 6, 6),
        torch.randn(2, 4, 6, 12)[..., ::2],
    ):
        found = torch.autograd.grad(output, leaves, incoming, retain_graph=True)
        expected = torch.autograd.grad(reference(*leaves), leaves, incoming)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_the_output_follows_the_input(layout):
    case = make_case((2, 4, 6, 6), 5, 3)
    leaves = [case.x.contiguous(memory_format=layout).requires_grad_(), *case[1:3]]
    output = fused(*leaves)
    assert output.is_contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(output.sum(), leaves[:1])
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinities(value):
    case = make_case((2, 4, 9, 9), 4, 3)
    case.x[1, 2, 4, 4] = value
    check(case)


def test_gradient_at_zero_and_at_nan():
    # ReLU: none at 0, as it came at NaN.
    case = make_case((1, 2, 5, 5), 2, 3)
    case.x[0, 0, 2, 2], case.x[0, 1, 2, 2], case.x[0, 0, 0, 0] = 0.0, -0.0, torch.nan
    check(case)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_the_gradients_asked_for(wanted):
    case = make_case((2, 3, 5, 5), 4, 3)
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


def test_same_bits_for_any_number_of_threads_and_from_run_to_run():
    case = make_case((37, 12, 16, 16), 12, 5)
    results = with_threads(lambda: evaluate(fused, case))
    for result in results[1:]:
        for name in NAMES:
            assert torch.equal(result[name], results[0][name]), name


def test_instruction_sets_agree():
    code = (
        "from tests.ops.test_separable_conv import check, make_case\n"
        "check(make_case((3, 5, 7, 6), 9, 5, 2))"
    )
    for isa in build_info()["usable_instruction_sets"]:
        run_with_instruction_set(isa, code)


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


def test_compiles_without_a_graph_break():
    case = make_case((2, 4, 6, 6), 4, 3)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    expected, found = evaluate(fused, case), evaluate(compiled, case)
    for name in NAMES:
        assert torch.equal(found[name], expected[name])


def test_double_backward_names_the_reference():
    case = make_case((2, 3, 4, 4), 3, 3).to(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in case[:3]]
    (grad,) = torch.autograd.grad(fused(*leaves).square().sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        grad.sum().backward()
    assert torch.autograd.gradgradcheck(reference, leaves)


def test_autocast_computes_as_eager_does():
    case = make_case((2, 4, 6, 6), 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = separable_conv(*case[:3]), reference(*case[:3])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_error_is_found(name):
    case = make_case((3, 4, 6, 6), 4, 3)
    exact, eager = evaluate(reference, case.to(torch.float64)), evaluate(reference, case)
    found = evaluate(fused, case)
    found[name].view(-1)[-1] += 1e-3 * found[name].abs().max()
    with pytest.raises(Mismatch, match=name):
        assert_as_accurate(found, eager, exact)
