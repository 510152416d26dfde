"""BatchNorm without affine, split where its batch-wide barrier lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5
_OVER = (0, 2, 3)


class Statistics(NamedTuple):
    """Mean and biased variance per channel, (C,) each, and whether they are the batch's own."""

    mean: Tensor
    variance: Tensor
    of_batch: bool
    eps: float = EPS

    @property
    def rstd(self) -> Tensor:
        """1 / sqrt(variance + eps), (C,)."""
        return torch.rsqrt(self.variance + self.eps)


def batch_statistics(z: Tensor, eps: float = EPS) -> Statistics:
    """Statistics of (N, C, H, W): needs all of z, hence a barrier behind the stage that made z."""
    variance, mean = torch.var_mean(z, _OVER, correction=0)
    return Statistics(mean, variance, True, eps)


def normalized(z: Tensor, statistics: Statistics) -> Tensor:
    """(z - mean) * rstd, centred first: the order that does not cancel."""
    return (z - _column(statistics.mean)) * _column(statistics.rstd)


class Sums(NamedTuple):
    """S1 = sum of the gradient, S2 = sum of the gradient times z normalized; (C,) each."""

    gradient: Tensor
    product: Tensor


def gradient_sums(gradient: Tensor, z: Tensor, statistics: Statistics) -> Sums:
    """The two sums of BatchNorm's backward: needs all of both, hence a barrier behind it."""
    return Sums(gradient.sum(_OVER), (gradient * normalized(z, statistics)).sum(_OVER))


def input_gradient(gradient: Tensor, z: Tensor, statistics: Statistics, sums: Sums) -> Tensor:
    """dL/dz from the gradient of the normalized z.

    rstd (g - S1 / M - zhat S2 / M) with the M values of a channel; with running statistics the
    two means are constants and their terms vanish.
    """
    if statistics.of_batch:
        values = z.numel() // z.shape[1]
        zhat = normalized(z, statistics)
        gradient = (
            gradient - _column(sums.gradient) / values - zhat * (_column(sums.product) / values)
        )
    return gradient * _column(statistics.rstd)


def _column(per_channel: Tensor) -> Tensor:
    return per_channel.view(1, -1, 1, 1)
