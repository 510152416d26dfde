"""The loss that drives architecture parameters towards a discrete choice (DA2S).

Tian et al., "Discretization-aware Architecture Search", arXiv 2007.03154: the entropy of the
operation weights of every edge, and for every node the entropy of its edge weights and the distance
of their strengths from the number of edges it is to keep.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from da2s_fast.errors import UserError
from da2s_fast.ops._backend import (
    LIBRARY,
    NO_CPU_LIBRARY,
    REFERENCE,
    choose_backend,
    define_operator,
    has_kernel,
    refuse_double_backward,
)
from da2s_fast.ops._triton import register_triton, triton_reason

# The weight of (sum of strengths - edges to keep)^2 beside the entropy of a node's edges.
COUNT_WEIGHT = 0.2

# keep is flat, kinds in order. The operator returns its gradients too: a few hundred numbers.
_OPERATOR = define_operator(
    "discretization_loss(Tensor[] alphas, Tensor[] betas, int[] edges_per_node, int[] keep) -> "
    "(Tensor operation_entropy, Tensor edge_loss, Tensor[] grad_alphas, Tensor[] grad_betas)"
)
_HAS_CPU_KERNEL = has_kernel(_OPERATOR, "cpu")
register_triton("discretization_loss", "da2s_fast.ops.discretization_loss_triton")


class DiscretizationLoss(NamedTuple):
    """The loss and, detached, what it is made of; tensors without dimensions."""

    total: Tensor
    operation_entropy: Tensor
    edge_loss: Tensor


def operation_strength(alpha: Tensor) -> Tensor:
    """Return s(alpha): with x = 2 alpha, x^3 where x < -1 and x elsewhere (any shape).

    Its gradient is 6 x^2 where x < -1 and 2 elsewhere, x = -1 included.
    """
    x = 2 * alpha
    # The cube sees nothing above -1, where it could overflow and turn the gradient to NaN.
    return torch.where(x < -1, x.clamp(max=-1) ** 3, x)


def edge_strength(beta: Tensor) -> Tensor:
    """Return s2(beta) = min(beta, 1) (any shape); its gradient is 0 at 1 and above."""
    return torch.where(beta >= 1, torch.ones_like(beta), beta)


def discretization_loss(
    alphas: Sequence[Tensor],
    betas: Sequence[Tensor],
    *,
    edges_per_node: Sequence[int],
    keep: Sequence[Sequence[int]],
    operation_weight: float | Tensor,
    edge_weight: float | Tensor,
    backend: str | None = None,
) -> DiscretizationLoss:
    """Compute the discretization loss of all cell kinds and, with it, all gradients.

    ``total = operation_weight * L_ops + edge_weight * L_edges``. L_ops sums the entropy of
    softmax(operation_strength(alpha)) over kinds and edges. L_edges sums
    ``0.2 * (sum_{beta > 0} edge_strength(beta) - keep)^2`` and the entropy of
    softmax(edge_strength(beta)) over kinds and nodes; the first node takes part only where it
    keeps fewer than its edges, otherwise its betas are ignored.

    Args:
        alphas: for every cell kind (E, O), edges by operations.
        betas: for every cell kind (E,); empty for no edge term.
        edges_per_node: how many of the E edges each node has, in order.
        keep: for every cell kind, how many edges each node keeps.
        operation_weight: factor of L_ops; a tensor may require gradients.
        edge_weight: factor of L_edges; a tensor may require gradients.
        backend: "cpu" (compiled), "triton" (CUDA tensors), "reference" (plain PyTorch) or None for
            the best that can run.

    Returns:
        The loss and its parts; in float64 if a parameter is, otherwise in float32.

    Raises:
        UserError: shapes and counts that do not fit, a backend that is unknown or cannot run.
    """
    parameters = [*alphas, *betas]
    _check(alphas, betas, edges_per_node, keep)
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    alphas, betas = [a.to(dtype) for a in alphas], [b.to(dtype) for b in betas]
    reasons = {"cpu": _cpu_reason(parameters), "triton": triton_reason(*parameters)}
    if choose_backend("discretization_loss", backend, reasons) == REFERENCE:
        operation_entropy = sum_operation_entropies(alphas)
        edge_loss = sum_edge_losses(betas, edges_per_node, keep, alphas[0])
    else:
        operation_entropy, edge_loss, *_ = torch.ops.da2s_fast.discretization_loss(
            alphas, betas, list(edges_per_node), list(chain(*keep))
        )
    total = operation_weight * operation_entropy + edge_weight * edge_loss
    return DiscretizationLoss(total, operation_entropy.detach(), edge_loss.detach())


def sum_operation_entropies(alphas: Sequence[Tensor]) -> Tensor:
    """Compute L_ops in plain PyTorch."""
    return torch.stack([_entropy(operation_strength(alpha)) for alpha in alphas]).sum()


def sum_edge_losses(
    betas: Sequence[Tensor],
    edges_per_node: Sequence[int],
    keep: Sequence[Sequence[int]],
    like: Tensor,
) -> Tensor:
    """Compute L_edges in plain PyTorch; a zero like ``like`` where there are no betas."""
    loss = like.new_zeros(())
    for beta, targets in zip(betas, keep, strict=False):
        loss = loss + beta[:0].sum()  # so that betas which are all ignored have a gradient, 0
        for node, (betas_of_node, target) in enumerate(
            zip(beta.split(list(edges_per_node)), targets, strict=True)
        ):
            if node == 0 and target == len(betas_of_node):
                continue
            strengths = edge_strength(betas_of_node)
            count = torch.where(betas_of_node > 0, strengths, 0).sum()
            loss = loss + COUNT_WEIGHT * (count - target) ** 2 + _entropy(strengths)
    return loss


def _entropy(logits: Tensor) -> Tensor:
    """Sum the entropies of the rows' softmax; finite where probabilities round to 0."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum()


def _check(
    alphas: Sequence[Tensor],
    betas: Sequence[Tensor],
    edges_per_node: Sequence[int],
    keep: Sequence[Sequence[int]],
) -> None:
    edges = sum(edges_per_node)
    if not alphas:
        raise UserError("discretization_loss got no alphas; give it one tensor per cell kind")
    for alpha in alphas:
        if alpha.dim() != 2 or alpha.shape[0] != edges or alpha.shape[1] == 0:
            raise UserError(
                f"discretization_loss got an alpha of shape {tuple(alpha.shape)}; give it "
                f"({edges}, number of operations), one row per edge"
            )
    for beta in betas:
        if beta.shape != (edges,):
            raise UserError(
                f"discretization_loss got a beta of shape {tuple(beta.shape)}; give it ({edges},), "
                "one number per edge"
            )
    for parameter in (*alphas, *betas):
        if not parameter.is_floating_point():
            raise UserError(f"discretization_loss needs floating point, not {parameter.dtype}")
    if not betas:
        return
    if not len(alphas) == len(betas) == len(keep):
        raise UserError(
            f"discretization_loss got {len(alphas)} alphas, {len(betas)} betas and {len(keep)} "
            "lists of edges to keep; give it one of each per cell kind"
        )
    for targets in keep:
        fits = len(targets) == len(edges_per_node) and all(
            1 <= target <= count for target, count in zip(targets, edges_per_node, strict=True)
        )
        if not fits:
            raise UserError(
                f"discretization_loss cannot keep {list(targets)} edges of nodes that have "
                f"{list(edges_per_node)}; give one number from 1 to its edges per node"
            )


def _cpu_reason(parameters: Sequence[Tensor]) -> str | None:
    """Say why the compiled CPU operator cannot run; None where it can."""
    if not _HAS_CPU_KERNEL:
        return NO_CPU_LIBRARY
    for parameter in parameters:
        if parameter.device.type != "cpu":
            return f"a parameter is on {parameter.device}"
    return None


@torch.library.register_fake(_OPERATOR, lib=LIBRARY)
def _fake(
    alphas: list[Tensor], betas: list[Tensor], edges_per_node: list[int], keep: list[int]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    scalars = [alphas[0].new_empty(()) for _ in range(2)]
    gradients = [[p.new_empty(p.shape) for p in parameters] for parameters in (alphas, betas)]
    return scalars[0], scalars[1], gradients[0], gradients[1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, _, grad_alphas, grad_betas = output
    ctx.kinds = len(grad_alphas)
    ctx.grad_keep = None if inputs[3] else []  # torch wants an empty list back for an empty list
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*grad_alphas, *grad_betas)


def _backward(
    ctx: Any,
    grad_operations: Tensor | None,
    grad_edges: Tensor | None,
    *grads_of_gradients: list[Tensor | None],
) -> tuple[Any, ...]:
    # Saved outputs stay part of the graph: differentiating twice arrives here once more.
    if any(grad is not None for grad in chain(*grads_of_gradients)):
        refuse_double_backward("discretization_loss")
    gradients = ctx.saved_tensors

    def scaled(grad: Tensor | None, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        return [None if grad is None else grad * gradient for gradient in gradients]

    grad_alphas = scaled(grad_operations, gradients[: ctx.kinds])
    return grad_alphas, scaled(grad_edges, gradients[ctx.kinds :]), None, ctx.grad_keep


torch.library.register_autograd(_OPERATOR, _backward, setup_context=_setup_context, lib=LIBRARY)
