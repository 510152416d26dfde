"""Driver of the Triton kernel of discretization_loss."""

from collections.abc import Mapping
from typing import Any

import triton
from torch import Tensor

from da2s_fast.kernels import discretization_loss as kernels
from da2s_fast.kernels import schedule
from da2s_fast.kernels.launch import launch
from da2s_fast.ops._triton import launched_as
from da2s_fast.ops.discretization_loss import COUNT_WEIGHT

# Rows of an alpha at a time; DARTS's cells have 14 edges.
_EDGES = 16


def discretization_loss(
    alphas: list[Tensor], betas: list[Tensor], edges_per_node: list[int], keep: list[int]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Run the operator of that name: one launch, whatever the strides."""
    operation_entropy, edge_loss = (alphas[0].new_empty(()) for _ in range(2))
    grad_alphas, grad_betas = ([p.new_empty(p.shape) for p in ps] for ps in (alphas, betas))
    tensors = {
        "alphas": alphas,
        "betas": betas,
        "grad_alphas": grad_alphas,
        "grad_betas": grad_betas,
        "operation_entropy": operation_entropy,
        "edge_loss": edge_loss,
    }
    sizes = {
        "alpha_strides": tuple([stride for alpha in alphas for stride in alpha.stride()]),
        "beta_strides": tuple([beta.stride(0) for beta in betas]),
        "OPERATIONS": tuple([alpha.shape[1] for alpha in alphas]),
        "EDGES_PER_NODE": tuple(edges_per_node),
        "KEEP": tuple(keep),
    }
    schedule.start(_start, tensors, *sizes.items())
    return operation_entropy, edge_loss, grad_alphas, grad_betas


def _start(slots: Mapping[str, Any], *sizes: tuple[str, tuple[int, ...]]) -> None:
    """One launch; sizes are the kernel's parameters of these names."""
    own = dict(sizes)
    edges_per_node = own["EDGES_PER_NODE"]
    launch(
        kernels.discretization_loss,
        (1,),
        **launched_as("discretization_loss", slots["edge_loss"].device),
        **slots,
        **own,
        COUNT_WEIGHT=COUNT_WEIGHT,
        ALL_EDGES=sum(edges_per_node),
        EDGES=_EDGES,
        WIDTHS=tuple(triton.next_power_of_2(count) for count in own["OPERATIONS"]),
        NODES=triton.next_power_of_2(max(1, len(edges_per_node))),
        NODE_WIDTH=triton.next_power_of_2(max(edges_per_node, default=1)),
    )
