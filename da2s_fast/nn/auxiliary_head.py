"""The second classifier that speeds up the training of deep derived networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.errors import UserError


class _QuarterPool(nn.Module):
    """Averages over four overlapping windows, one in each corner: (N, C, H, W) to (N, C, 2, 2).

    A window covers 5/8 of each side, rounded up, which is the 5x5 window of DARTS both at 8x8
    (its CIFAR head, stride 3) and at 7x7 (its ImageNet head, stride 2).
    """

    def forward(self, x: Tensor) -> Tensor:
        sizes = x.shape[-2:]
        if min(sizes) < 2:
            raise UserError(
                f"the auxiliary head gets features of {sizes[0]}x{sizes[1]} pixels but needs 2x2; "
                "use larger images, the stem 'cifar', or no auxiliary head"
            )
        windows = [min(-(-5 * size // 8), size - 1) for size in sizes]
        strides = [size - window for size, window in zip(sizes, windows, strict=True)]
        return F.avg_pool2d(x, windows, strides)


class AuxiliaryHead(nn.Module):
    """Classifier on the features after the second reduction cell, for any size from 2x2.

    Computes what DARTS's ``AuxiliaryHeadCIFAR`` does at 8x8 and ``AuxiliaryHeadImageNet`` at 7x7,
    under the same parameter names (Liu et al. 2019, appendix A; the authors' code).

    Args:
        channels: channels of the features.
        num_classes: outputs.
        last_norm: BatchNorm after the last convolution, which DARTS's ImageNet head leaves out.
    """

    def __init__(self, channels: int, num_classes: int, last_norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            # Not in place as in DARTS: when the last cell is the one tapped, its output must
            # reach the main classifier unchanged.
            nn.ReLU(),
            _QuarterPool(),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            *([nn.BatchNorm2d(768)] if last_norm else []),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, (N, num_classes), of features (N, channels, H, W)."""
        return self.classifier(self.features(x).flatten(1))
