"""Candidate operations of the search spaces and the registry that names them.

Modules and parameter names follow the DARTS family's code (Liu et al. 2019, appendix A), so that
its state dicts load here. Every operation maps (N, C, H, W) to (N, C, ceil(H / stride),
ceil(W / stride)) and keeps the dtype.

An operation that ends in a normalization may offer `features(x)` (its output before that
normalization) and `norm` (the normalization). `MixedOp` then folds an affine-free BatchNorm into
the weighted sum and no normalized tensor is ever written.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.errors import UserError
from da2s_fast.nn.layers import run_layers
from da2s_fast.ops._backend import exporting

OperationFactory = Callable[[int, int, bool], nn.Module]


class NormalizedSequential(nn.Sequential):
    """A chain of modules whose last one is a normalization."""

    @property
    def norm(self) -> nn.Module:
        """The last normalization."""
        return self[len(self) - 1]

    def features(self, x: Tensor) -> Tensor:
        """Output of every module but the last, (N, C_out, H', W')."""
        *layers, _ = self
        return run_layers(layers, x)

    def forward(self, x: Tensor) -> Tensor:
        """Output of every module, (N, C_out, H', W')."""
        if exporting():
            # Exported programs must run where this package's operators are not installed.
            return super().forward(x)
        return self.norm(self.features(x))


class _Wrapped(nn.Module):
    """An operation held in `op`, the attribute name that DARTS's state dict keys contain."""

    op: NormalizedSequential

    @property
    def norm(self) -> nn.Module:
        """The last normalization."""
        return self.op.norm

    def features(self, x: Tensor) -> Tensor:
        """Output before the normalization, (N, C_out, H', W')."""
        return self.op.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the output's size."""
        return self.op(x)


class Zero(nn.Module):
    """`none`: zeros of the output's size, by multiplication, so that NaN stays visible."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the output's size."""
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class Identity(nn.Module):
    """`skip_connect` at stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the output's size."""
        return x


class ReLUConvBN(_Wrapped):
    """ReLU, dense convolution, BatchNorm."""

    def __init__(  # noqa: PLR0917 - the order of DARTS-family code
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = NormalizedSequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(C_in, C_out, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


def _separable(  # noqa: PLR0917 - the order of DARTS-family code
    C_in: int, C_out: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[nn.Module, ...]:
    """ReLU, depthwise and pointwise convolution: the building block of the two below."""
    return (
        nn.ReLU(inplace=False),
        nn.Conv2d(
            C_in,
            C_in,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=C_in,
            bias=False,
        ),
        nn.Conv2d(C_in, C_out, 1, bias=False),
    )


class DilConv(_Wrapped):
    """ReLU, depthwise k x k with dilation, pointwise, BatchNorm."""

    def __init__(  # noqa: PLR0917 - the order of DARTS-family code
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = NormalizedSequential(
            *_separable(C_in, C_out, kernel_size, stride, padding, dilation),
            nn.BatchNorm2d(C_out, affine=affine),
        )


class SepConv(_Wrapped):
    """(ReLU, depthwise k x k, pointwise, BatchNorm) twice, the stride on the first."""

    def __init__(  # noqa: PLR0917 - the order of DARTS-family code
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.op = NormalizedSequential(
            *_separable(C_in, C_in, kernel_size, stride, padding, 1),
            nn.BatchNorm2d(C_in, affine=affine),
            *_separable(C_in, C_out, kernel_size, 1, padding, 1),
            nn.BatchNorm2d(C_out, affine=affine),
        )


class ConvPair(NormalizedSequential):
    """ReLU, 1 x 7 and 7 x 1 convolution, BatchNorm (NASNet's factorized convolution)."""

    def __init__(self, channels: int, stride: int, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(inplace=False),
            nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )


class FactorizedReduce(nn.Module):
    """ReLU, two stride-2 pointwise convolutions (the second shifted by a pixel), BatchNorm.

    Odd heights and widths, on which the public code crashes, are padded by one row or column of
    zeros for the shifted half; even sizes are unchanged by that.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        if C_out < 2:
            raise UserError(
                f"skip_connect at stride 2 shares its {C_out} channel(s) among two convolutions; "
                "choose at least 2 channels per operation"
            )
        # Channels split as evenly as they go: DARTS demands an even number.
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out - C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    @property
    def norm(self) -> nn.Module:
        """The last normalization."""
        return self.bn

    def features(self, x: Tensor) -> Tensor:
        """Output before the normalization, (N, C_out, ceil(H / 2), ceil(W / 2))."""
        x = self.relu(x)
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
        return torch.cat([self.conv_1(x), self.conv_2(padded[:, :, 1:, 1:])], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the output's size."""
        return self.bn(self.features(x))


def _skip_connect(channels: int, stride: int, affine: bool) -> nn.Module:
    return Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


OPERATIONS: dict[str, OperationFactory] = {
    "none": lambda C, stride, affine: Zero(stride),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(
        3, stride=stride, padding=1, count_include_pad=False
    ),
    "skip_connect": _skip_connect,
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine),
    "conv_7x1_1x7": ConvPair,
    "nor_conv_1x1": lambda C, stride, affine: ReLUConvBN(C, C, 1, stride, 0, affine),
    "nor_conv_3x3": lambda C, stride, affine: ReLUConvBN(C, C, 3, stride, 1, affine),
}
"""Name -> factory(channels, stride, affine)."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def register_operation(name: str, factory: OperationFactory) -> None:
    """Add a candidate operation of your own under `name`.

    `factory(channels, stride, affine)` returns a module that maps (N, C, H, W) to (N, C,
    ceil(H / stride), ceil(W / stride)); `affine` says whether its BatchNorms learn scale and shift
    (False during search, True when the found network is trained). The name then works wherever an
    operation is named: spaces, genotypes, the command line's `operations`. As in DARTS, an
    operation with "pool" in its name gets a BatchNorm behind it during the search.

    Raises:
        UserError: the name is taken or is no identifier.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"operation name {name!r} cannot stand in a genotype; use letters, digits and "
            "underscores, not starting with a digit"
        )
    if name in OPERATIONS:
        raise UserError(f"operation {name!r} is registered already; choose another name")
    OPERATIONS[name] = factory


def create_operation(name: str, channels: int, stride: int, affine: bool) -> nn.Module:
    """Build the operation `name`; the other arguments are those of `register_operation`'s factory.

    Raises:
        UserError: no operation has that name, or it needs more channels.
    """
    try:
        factory = OPERATIONS[name]
    except KeyError:
        known = ", ".join(OPERATIONS)
        raise UserError(f"unknown operation {name!r}; known operations: {known}") from None
    return factory(channels, stride, affine)
