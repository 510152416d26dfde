"""Looking at more than a thousand small tensors as one: each by itself costs more than it holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

_PART = 2**14
"""Numbers that torch adds up on one thread: results are the same bits for any number of threads."""


def clip_gradients(weights: Sequence[Tensor], limit: float) -> None:
    """Scale gradients down to a common norm of `limit`, as `torch.nn.utils.clip_grad_norm_`.

    Args:
        weights: tensors of any shapes, some of which have a gradient.
        limit: 2-norm of all gradients together.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(_flatten_dense_tensors(gradients).split(_PART))
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1))


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether there is neither NaN nor infinity in any of them, a 0-dim bool tensor."""
    return _flatten_dense_tensors([t for t in tensors if t.is_floating_point()]).isfinite().all()
