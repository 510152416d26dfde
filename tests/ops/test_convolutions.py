"""What holds for conv_norm and separable_conv: layouts, values, gradients, torch's machinery."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from da2s_fast.backends import build_info
from tests.conditions import compiled_whole, run_with_instruction_set, with_threads
from tests.ops import convolution_cases, test_conv_norm, test_separable_conv
from tests.ops.compare import Mismatch, assert_as_accurate
from tests.ops.convolution_cases import LAYOUTS, ConvolutionCase, evaluate, output_of


class Convolution(NamedTuple):
    fused: Callable[..., Any]
    reference: Callable[..., Any]
    make_case: Callable[..., ConvolutionCase]  # of a shape, output channels, k and a stride
    names: tuple[str, ...]
    kernels: tuple[int, ...]

    @property
    def leaves(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in ("output", "statistics"))

    def check(self, case: ConvolutionCase, incoming: Tensor | None = None) -> None:
        convolution_cases.check(self.fused, self.reference, case, incoming)


def of(module: Any, kernels: tuple[int, ...], **options: Any) -> Convolution:
    make_case = functools.partial(module.make_case, **options)
    return Convolution(module.fused, module.reference, make_case, module.NAMES, kernels)


CONVOLUTIONS = {
    "conv_norm": of(test_conv_norm, (1, 3)),
    "conv_norm with ReLU": of(test_conv_norm, (1, 3), relu=True),
    "separable_conv": of(test_separable_conv, (3, 5, 7)),
}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    return CONVOLUTIONS[request.param]


def test_strided_and_expanded_inputs(convolution):
    case = convolution.make_case((4, 6, 8, 8), 6, 3)
    for x in (
        case.x[:, :, ::2, 1:],
        case.x[:, ::2].expand(4, 3, 8, 8)[:, [0, 1, 2, 0, 1, 2]],
        case.x.transpose(2, 3),
        case.x[:1].expand(4, 6, 8, 8),
        case.x[:, :1].expand(4, 6, 8, 8),
    ):
        convolution.check(case._replace(x=x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", [4, 16])
def test_incoming_gradient_of_any_layout(convolution, out, layout):
    case = convolution.make_case((2, 4, 6, 6), out, 3).laid_out(layout)
    for incoming in (
        torch.randn(2, 6, 6, out).permute(0, 3, 1, 2),
        torch.ones(()).expand(2, out, 6, 6) * torch.randn(6),
        torch.randn(1, out, 1, 6).expand(2, out, 6, 6),
        torch.randn(2, out, 6, 12)[..., ::2],
    ):
        convolution.check(case, incoming)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (64, 16, 32, 32)], ids=["small", "pooled"])
def test_layout_of_the_output_follows_the_input(convolution, shape, layout):
    found = evaluate(convolution.fused, convolution.make_case(shape, 5, 3).laid_out(layout))
    assert found["output"].is_contiguous(memory_format=layout)
    assert found["x"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinities(convolution, value):
    case = convolution.make_case((2, 4, 9, 9), 4, 3)
    case.x[1, 2, 4, 4] = value
    convolution.check(case)


def test_gradient_at_zero_and_at_nan(convolution):
    # ReLU: none at 0, as it came at NaN.
    case = convolution.make_case((1, 2, 5, 5), 2, 3)
    case.x[0, 0, 2, 2], case.x[0, 1, 2, 2] = 0.0, -0.0
    convolution.check(case)
    case.x[0, 0, 0, 0] = torch.nan
    convolution.check(case)


@pytest.mark.parametrize(
    ("convolution", "wanted"),
    [
        (name, wanted)
        for name, convolution in CONVOLUTIONS.items()
        for wanted in itertools.product([False, True], repeat=len(convolution.leaves))
    ],
    ids=str,
    indirect=["convolution"],
)
def test_only_the_gradients_asked_for(convolution, wanted):
    case = convolution.make_case((2, 3, 5, 5), 4, 3)
    everything = evaluate(convolution.fused, case)
    leaves = [
        tensor.detach().requires_grad_(needed)
        for tensor, needed in zip(case.tensors().values(), wanted, strict=True)
    ]
    output = output_of(convolution.fused(*leaves, **case.options()))
    if not any(wanted):
        assert not output.requires_grad
        return
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape))
    for name, leaf, needed in zip(convolution.leaves, leaves, wanted, strict=True):
        assert (leaf.grad is not None) is needed
        if needed:
            assert torch.equal(leaf.grad, everything[name])


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_number_of_threads_and_from_run_to_run(convolution, layout):
    k = convolution.kernels[1]
    case = convolution.make_case((37, 12, 16, 16), 16, k).laid_out(layout)
    results = with_threads(lambda: evaluate(convolution.fused, case))
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_layouts_give_the_same_bits(convolution):
    case = convolution.make_case((5, 3, 6, 7), 16, 3)
    contiguous, last = (evaluate(convolution.fused, case.laid_out(layout)) for layout in LAYOUTS)
    assert_same_bits(last, contiguous)


def check_all_kernels() -> None:
    for convolution in CONVOLUTIONS.values():
        for k in convolution.kernels:
            convolution.check(convolution.make_case((3, 5, 7, 6), 9, k, 2))


def test_instruction_sets_agree():
    code = "from tests.ops.test_convolutions import check_all_kernels; check_all_kernels()"
    for isa in build_info()["usable_instruction_sets"]:
        run_with_instruction_set(isa, code)


def test_compiles_without_a_graph_break(convolution):
    case = convolution.make_case((2, 4, 6, 6), 4, 3)
    compiled = compiled_whole(convolution.fused)
    assert_same_bits(evaluate(compiled, case), evaluate(convolution.fused, case))


def test_double_backward_names_the_reference(convolution):
    case = convolution.make_case((2, 3, 4, 4), 3, 3).to(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in case.tensors().values()]

    def output(function: Callable[..., Any], *given: Tensor) -> Tensor:
        return output_of(function(*given, **case.options()))

    loss = output(convolution.fused, *leaves).square().sum()
    (grad,) = torch.autograd.grad(loss, leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        grad.sum().backward()
    reference = functools.partial(output, convolution.reference)
    assert torch.autograd.gradgradcheck(reference, leaves)


def test_autocast_computes_as_eager_does(convolution):
    case = convolution.make_case((2, 4, 6, 6), 4, 3)
    chosen = functools.partial(convolution.fused, backend=None)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = (
            output_of(function(*case.tensors().values(), **case.options()))
            for function in (chosen, convolution.reference)
        )
    assert output.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(output, expected)


@pytest.mark.parametrize(
    ("convolution", "name"),
    [(key, name) for key, value in CONVOLUTIONS.items() for name in value.names],
    indirect=["convolution"],
)
def test_a_planted_error_is_found(convolution, name):
    case = convolution.make_case((3, 4, 6, 6), 4, 3)
    exact = evaluate(convolution.reference, case.to(torch.float64))
    eager, found = evaluate(convolution.reference, case), evaluate(convolution.fused, case)
    found[name].view(-1)[-1] += 1e-3 * found[name].abs().max()
    with pytest.raises(Mismatch, match=name):
        assert_as_accurate(found, eager, exact)
