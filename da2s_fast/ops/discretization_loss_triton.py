"""Driver of the Triton kernel of discretization_loss."""

import triton
from torch import Tensor

from da2s_fast.kernels import discretization_loss as kernels
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
    operations = [alpha.shape[1] for alpha in alphas]
    launch(
        kernels.discretization_loss,
        (1,),
        **launched_as("discretization_loss", alphas[0].device),
        alphas=tuple(alphas),
        betas=tuple(betas),
        alpha_strides=tuple(stride for alpha in alphas for stride in alpha.stride()),
        beta_strides=tuple(beta.stride(0) for beta in betas),
        grad_alphas=tuple(grad_alphas),
        grad_betas=tuple(grad_betas),
        operation_entropy=operation_entropy,
        edge_loss=edge_loss,
        OPERATIONS=tuple(operations),
        EDGES_PER_NODE=tuple(edges_per_node),
        KEEP=tuple(keep),
        COUNT_WEIGHT=COUNT_WEIGHT,
        ALL_EDGES=sum(edges_per_node),
        EDGES=_EDGES,
        WIDTHS=tuple(triton.next_power_of_2(count) for count in operations),
        NODES=triton.next_power_of_2(max(1, len(edges_per_node))),
        NODE_WIDTH=triton.next_power_of_2(max(edges_per_node, default=1)),
    )
    return operation_entropy, edge_loss, grad_alphas, grad_betas
