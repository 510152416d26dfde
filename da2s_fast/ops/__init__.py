"""Fused operations: each with a plain PyTorch reference and compiled backends beside it."""

from da2s_fast.ops.discretization_loss import (
    DiscretizationLoss,
    discretization_loss,
    edge_strength,
    operation_strength,
)
from da2s_fast.ops.mixed_sum import mixed_sum
from da2s_fast.ops.separable_conv import separable_conv

__all__ = [
    "DiscretizationLoss",
    "discretization_loss",
    "edge_strength",
    "mixed_sum",
    "operation_strength",
    "separable_conv",
]
