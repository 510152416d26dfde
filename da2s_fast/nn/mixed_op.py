"""The mixed operation: every candidate of an edge, weighted and summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.errors import UserError
from da2s_fast.nn.engine import CellModule
from da2s_fast.nn.hooks import has_hooks
from da2s_fast.nn.operations import NormalizedSequential, create_operation
from da2s_fast.nn.recognize import Recognized, recognize
from da2s_fast.ops import mixed_sum

DARTS_PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The eight candidates of DARTS, in its order."""


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave channel groups: out[:, c * groups + j] = x[:, j * (C / groups) + c].

    x: (N, C, H, W), C divisible by `groups` (PC-DARTS; Zhang et al. 2018).
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def split_norm(operation: nn.Module, x: Tensor) -> tuple[Tensor, nn.BatchNorm2d | None]:
    """Output of `operation` before its last BatchNorm, and that norm, where it can be folded.

    Only a plain BatchNorm2d without affine can be folded into the sum, and only where nobody
    hooked into the operation; every other operation is run whole and joins as (output, None).
    """
    if _offers_features(type(operation)):
        norm = operation.norm
        if (
            type(norm) is nn.BatchNorm2d
            and not norm.affine
            # Of the modules inside, these are the ones that `features` does not call.
            and not any(map(has_hooks, (operation, norm, *operation.children())))
        ):
            return operation.features(x), norm  # type: ignore[operator]
    return operation(x), None


def _offers_features(operation: type) -> bool:
    """Whether the class that decides `forward` also defines `features`, see `operations`.

    Attributes that happen to have these names, and subclasses that only replace `forward`, do
    not count: their forward may be anything.
    """
    for base in operation.__mro__:
        if "features" in vars(base):
            return True
        if "forward" in vars(base):
            return False
    return False


class MixedOp(CellModule):
    """y = sum_o p_o op_o(x) over the candidates of one edge (DARTS, eq. 2).

    A drop-in for the class of that name in DARTS-family code: the same constructor, the same
    state dict keys (`_ops.4.op.1.weight`, ...) and the same numbers.

    With `partial_channels` K > 1 (PC-DARTS) only the first C/K channels are mixed; the others
    bypass the candidates (through a 2x2 max pool at stride 2), and the channels are shuffled.

    Args:
        C: channels of the input and of the output.
        stride: 1 or 2.
        primitives: names of the candidate operations, see `da2s_fast.nn.OPERATIONS`.
        partial_channels: K; C must be divisible by it.
        pool_norm: put an affine-free BatchNorm behind pools, as DARTS does (NAS-Bench-201
            does not).

    Raises:
        UserError: K does not divide C, or an operation is unknown.
    """

    __constants__ = ("channels", "stride", "partial_channels")

    def __init__(
        self,
        C: int,
        stride: int,
        *,
        primitives: Sequence[str] = DARTS_PRIMITIVES,
        partial_channels: int = 1,
        pool_norm: bool = True,
    ) -> None:
        super().__init__()
        if partial_channels < 1 or C % partial_channels:
            raise UserError(
                f"partial_channels={partial_channels} does not divide {C} channels; choose a "
                "divisor of the channel count"
            )
        self.channels = C
        self.stride = stride
        self.partial_channels = partial_channels
        self._ops = nn.ModuleList()
        mixed_channels = C // partial_channels
        for primitive in primitives:
            operation = create_operation(primitive, mixed_channels, stride, affine=False)
            if pool_norm and "pool" in primitive:
                norm = nn.BatchNorm2d(mixed_channels, affine=False)
                operation = NormalizedSequential(operation, norm)
            self._ops.append(operation)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Mix the candidates.

        Args:
            x: (N, C, H, W).
            weights: (number of candidates,), p of this edge, in x's dtype.

        Returns:
            (N, C, ceil(H / stride), ceil(W / stride)) in x's dtype; under autocast in the type that
            the candidates have there.

        Raises:
            UserError: inside `use_backend` with a fused backend, where that cannot run.
            ValueError: a single value per channel in training mode, as BatchNorm raises.
        """
        fused = self.fused([x], weights.unsqueeze(0), None)
        if fused is not None:
            return fused
        outputs, norms = self.candidates(x)
        mixed = mixed_sum(outputs, weights, norms)
        if self.partial_channels == 1:
            return mixed
        return channel_shuffle(torch.cat([mixed, self.bypass(x)], dim=1), self.partial_channels)

    def recognize(self) -> Recognized | str:
        """See `CellModule`."""
        if self.stride not in (1, 2):
            return f"the stride is {self.stride}"
        return recognize(
            (), (self,), edge_type=MixedOp, reduction=self.stride == 2, nodes=1, outputs=1
        )

    def candidates(
        self, x: Tensor, active: Sequence[int] | None = None
    ) -> tuple[list[Tensor], list[nn.BatchNorm2d | None]]:
        """Outputs of the candidates, each with the BatchNorm still to be applied to it.

        Args:
            x: (N, C, H, W); only the first C / partial_channels channels are read.
            active: indices of the candidates to run; all by default.
        """
        x = x[:, : x.shape[1] // self.partial_channels]
        indices = range(len(self._ops)) if active is None else active
        pairs = [split_norm(self._ops[index], x) for index in indices]
        return [output for output, _ in pairs], [norm for _, norm in pairs]

    def bypass(self, x: Tensor) -> Tensor:
        """The channels that no candidate sees, (N, C - C/K, H', W')."""
        rest = x[:, x.shape[1] // self.partial_channels :]
        # ceil_mode only matters for odd sizes, on which the public code crashes.
        return rest if self.stride == 1 else F.max_pool2d(rest, 2, 2, ceil_mode=True)
