"""Fused operations: each with a plain PyTorch reference and compiled backends beside it."""

from da2s_fast.ops._backend import use_backend
from da2s_fast.ops.cell.function import cell
from da2s_fast.ops.conv_norm import conv_norm
from da2s_fast.ops.discretization_loss import (
    DiscretizationLoss,
    discretization_loss,
    edge_strength,
    operation_strength,
)
from da2s_fast.ops.mixed_sum import mixed_sum
from da2s_fast.ops.separable_conv import separable_conv
from da2s_fast.ops.workspace import release_workspaces, workspace_bytes

__all__ = [
    "DiscretizationLoss",
    "cell",
    "conv_norm",
    "discretization_loss",
    "edge_strength",
    "mixed_sum",
    "operation_strength",
    "release_workspaces",
    "separable_conv",
    "use_backend",
    "workspace_bytes",
]
