"""Every candidate operation against its formula, written with shifted slices in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.errors import UserError
from da2s_fast.nn.operations import (
    OPERATIONS,
    FactorizedReduce,
    ReLUConvBN,
    create_operation,
    register_operation,
)

SIZES = [(1, 1), (2, 2), (7, 7), (15, 15), (8, 8), (4, 7)]
C = 4


def windows(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], *, dilation: int = 1, fill: float
) -> Iterator[tuple[int, int, Tensor]]:
    """For each tap (i, j) of a centred kernel what it sees, (N, C, H', W')."""
    reach = [dilation * (k // 2) for k in kernel]
    N, channels, height, width = x.shape
    padded = x.new_full((N, channels, height + 2 * reach[0], width + 2 * reach[1]), fill)
    padded[:, :, reach[0] : reach[0] + height, reach[1] : reach[1] + width] = x
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation, j * dilation
            rows = slice(top, top + height, stride[0])
            yield i, j, padded[:, :, rows, left : left + width : stride[1]]


def convolve(x: Tensor, weight: Tensor, stride: int | tuple[int, int], dilation: int = 1) -> Tensor:
    """Depthwise where the weight has one input channel, dense otherwise."""
    stride = (stride, stride) if isinstance(stride, int) else stride
    result: Tensor | int = 0
    for i, j, seen in windows(x, tuple(weight.shape[2:]), stride, dilation=dilation, fill=0.0):
        tap = weight[:, :, i, j]
        if weight.shape[1] == 1:
            result = result + tap.view(1, -1, 1, 1) * seen
        else:
            result = result + torch.einsum("oc,nchw->nohw", tap, seen)
    return result


def normalize(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def max_pool(op: nn.Module, x: Tensor, stride: int) -> Tensor:
    seen = [s for _, _, s in windows(x, (3, 3), (stride, stride), fill=-torch.inf)]
    return torch.stack(seen).amax(0)


def avg_pool(op: nn.Module, x: Tensor, stride: int) -> Tensor:
    step = (stride, stride)
    total = sum(s for _, _, s in windows(x, (3, 3), step, fill=0.0))
    return total / sum(s for _, _, s in windows(torch.ones_like(x), (3, 3), step, fill=0.0))


def skip(op: nn.Module, x: Tensor, stride: int) -> Tensor:
    if stride == 1:
        return x
    x = x.clamp(min=0)
    half = [(n + 1) // 2 for n in x.shape[2:]]
    shifted = torch.zeros(*x.shape[:2], 2 * half[0], 2 * half[1], dtype=x.dtype)
    shifted[:, :, : x.shape[2], : x.shape[3]] = x
    parts = [
        torch.einsum("oc,nchw->nohw", op.conv_1.weight[:, :, 0, 0], shifted[:, :, ::2, ::2]),
        torch.einsum("oc,nchw->nohw", op.conv_2.weight[:, :, 0, 0], shifted[:, :, 1::2, 1::2]),
    ]
    return normalize(torch.cat(parts, 1))


def separable(times: int, dilation: int) -> Callable[[nn.Module, Tensor, int], Tensor]:
    def formula(op: nn.Module, x: Tensor, stride: int) -> Tensor:
        layers = op.op
        for turn in range(times):
            depthwise, pointwise = layers[4 * turn + 1].weight, layers[4 * turn + 2].weight
            x = convolve(x.clamp(min=0), depthwise, stride if turn == 0 else 1, dilation)
            x = normalize(convolve(x, pointwise, 1))
        return x

    return formula


def conv_pair(op: nn.Module, x: Tensor, stride: int) -> Tensor:
    x = convolve(x.clamp(min=0), op[1].weight, (1, stride))
    return normalize(convolve(x, op[2].weight, (stride, 1)))


def conv(op: nn.Module, x: Tensor, stride: int) -> Tensor:
    return normalize(convolve(x.clamp(min=0), op.op[1].weight, stride))


FORMULAS: dict[str, Callable[[nn.Module, Tensor, int], Tensor]] = {
    "none": lambda op, x, stride: torch.zeros_like(x[:, :, ::stride, ::stride]),
    "max_pool_3x3": max_pool,
    "avg_pool_3x3": avg_pool,
    "skip_connect": skip,
    "sep_conv_3x3": separable(2, 1),
    "sep_conv_5x5": separable(2, 1),
    "sep_conv_7x7": separable(2, 1),
    "dil_conv_3x3": separable(1, 2),
    "dil_conv_5x5": separable(1, 2),
    "conv_7x1_1x7": conv_pair,
    "nor_conv_1x1": conv,
    "nor_conv_3x3": conv,
}
KERNELS = {
    "sep_conv_3x3": (3, 3),
    "sep_conv_5x5": (5, 5),
    "sep_conv_7x7": (7, 7),
    "dil_conv_3x3": (3, 3),
    "dil_conv_5x5": (5, 5),
    "nor_conv_1x1": (1, 1),
    "nor_conv_3x3": (3, 3),
}


def test_every_operation_has_a_formula() -> None:
    assert FORMULAS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    op = create_operation(name, C, stride, affine=False).double()
    x = torch.randn(3, C, *size, dtype=torch.float64)
    output = op(x)
    assert output.shape == (3, C, -(-size[0] // stride), -(-size[1] // stride))
    torch.testing.assert_close(output, FORMULAS[name](op, x, stride), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_size(name: str) -> None:
    op = create_operation(name, C, 1, affine=False)
    assert next(op.parameters()).shape[2:] == KERNELS[name]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    op = create_operation(name, C, 2, affine=True).to(dtype)
    assert op(torch.randn(2, C, 5, 5, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", FORMULAS)
def test_affine_says_whether_norms_learn(name: str) -> None:
    for affine in (False, True):
        for stride in (1, 2):
            op = create_operation(name, C, stride, affine)
            norms = [m for m in op.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(norm.affine is affine for norm in norms)
            convolutions = [m for m in op.modules() if isinstance(m, nn.Conv2d)]
            assert all(m.bias is None for m in convolutions)
            assert bool(norms) is bool(convolutions)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_features_then_norm_is_the_operation(name: str, stride: int) -> None:
    torch.manual_seed(0)
    op = create_operation(name, C, stride, affine=True).double()
    if not hasattr(op, "norm"):
        assert name in {"none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"}
        return
    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(op.norm(op.features(x)), op(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_none_shows_nan_instead_of_hiding_it(stride: int) -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 2, 2] = torch.nan
    result = create_operation("none", 1, stride, affine=False)(x)
    assert result.isnan().sum() == 1


@pytest.mark.parametrize("name", FORMULAS)
def test_input_stays_as_it_is(name: str) -> None:
    x = torch.randn(2, C, 6, 6)
    before = x.clone()
    create_operation(name, C, 2, affine=False)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("C_out", [2, 5])
def test_factorized_reduce_with_any_number_of_outputs(C_out: int) -> None:
    torch.manual_seed(0)
    op = FactorizedReduce(3, C_out, affine=False).double()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(op(x), skip(op, x, 2), rtol=1e-9, atol=1e-9)


def test_factorized_reduce_of_a_single_output() -> None:
    with pytest.raises(UserError, match=r"shares its 1 channel\(s\) among two convolutions"):
        FactorizedReduce(3, 1)


class TestRegistry:
    def test_own_operation_works_under_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("da2s_fast.nn.operations.OPERATIONS", dict(OPERATIONS))
        register_operation("own_conv", lambda C, s, affine: ReLUConvBN(C, C, 5, s, 2, affine))
        op = create_operation("own_conv", C, 2, affine=True)
        assert op(torch.randn(2, C, 9, 9)).shape == (2, C, 5, 5)
        with pytest.raises(UserError, match="'own_conv' is registered already"):
            register_operation("own_conv", lambda C, s, affine: nn.Identity())

    @pytest.mark.parametrize("name", ["", "3x3", "a b", "a~0", "a|b", "a'", "ä", "a\n"])
    def test_name_that_cannot_stand_in_a_genotype(self, name: str) -> None:
        with pytest.raises(UserError, match="cannot stand in a genotype"):
            register_operation(name, lambda C, s, affine: nn.Identity())
        assert name not in OPERATIONS

    def test_built_in_name_is_taken(self) -> None:
        with pytest.raises(UserError, match="'skip_connect' is registered already"):
            register_operation("skip_connect", lambda C, s, affine: nn.Identity())

    def test_unknown_name(self) -> None:
        with pytest.raises(UserError, match="unknown operation 'conv'; known operations: none,"):
            create_operation("conv", C, 1, affine=False)
