"""The architecture step of the bilevel search: first and second order (DARTS, sec. 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
"""Normalized images, floating point (N, C, H, W), and labels, int64 (N,)."""
Regularizer = Callable[[], Tensor]
"""The discretization loss of the current architecture parameters, a 0-dim tensor."""
Scale = Callable[[Tensor], Tensor]
"""Multiplies the loss for float16 gradients (GradScaler.scale); the identity otherwise."""

FINITE_DIFFERENCE = 0.01
"""eps of the Hessian-vector product is this over the norm of the vector (DARTS, footnote 2)."""


@contextmanager
def only_gradients_of(wanted: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Inside, `wanted` require gradients and `others` do not.

    Fused operators see through requires_grad only: a step that asks for half of the gradients
    would otherwise compute all of them and throw half away.
    """
    # Flags that are as they should be already are not set: most are, most of the time.
    switched_on = [tensor for tensor in wanted if not tensor.requires_grad]
    switched_off = [tensor for tensor in others if tensor.requires_grad]
    try:
        for tensor in switched_on:
            tensor.requires_grad_(True)
        for tensor in switched_off:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor in switched_on:
            tensor.requires_grad_(False)
        for tensor in switched_off:
            tensor.requires_grad_(True)


def classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, 0-dim, in float32 where the scores (N, classes) have lower precision.

    Labels are int64 (N,).
    """
    return F.cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels)


class Architect:
    """Computes the gradient of the validation loss with respect to alpha and beta.

    Args:
        network: super-network with `weights()` and `arch_parameters()`.
        autocast: context manager factory for mixed precision.

    Attributes:
        weights: the network's, found once: they are as fixed as those of an optimizer.
    """

    def __init__(self, network: nn.Module, autocast: Callable) -> None:
        self.network = network
        self.autocast = autocast
        self.weights: list[Tensor] = network.weights()  # type: ignore[operator]

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch, a 0-dim tensor."""
        images, labels = batch
        with self.autocast():
            scores = self.network(images)
        return classification_loss(scores, labels)

    def first_order(self, valid: Batch, regularizer: Regularizer, scale: Scale) -> Tensor:
        """Set the gradients of alpha and beta at the current weights (DARTS, sec. 2.3, xi = 0).

        Returns:
            The loss with the regularizer, 0-dim and detached.
        """
        arch = self.network.arch_parameters()  # type: ignore[operator]
        with only_gradients_of(arch, self.weights):
            loss = self.loss(valid) + regularizer()
            gradients = torch.autograd.grad(scale(loss), arch, allow_unused=True)
        _assign(arch, gradients)
        return loss.detach()

    def second_order(
        self,
        train: Batch,
        valid: Batch,
        regularizer: Regularizer,
        optimizer: torch.optim.SGD,
    ) -> Tensor:
        """Set the gradients of alpha and beta after one unrolled weight step (DARTS, eq. 7).

        The unrolled step is the optimizer's own: momentum and weight decay included. The
        Hessian-vector product is taken by central differences (DARTS, eq. 8).

        Returns:
            The loss after the unrolled step, with the regularizer, 0-dim and detached.
        """
        weights = self.weights
        arch = self.network.arch_parameters()  # type: ignore[operator]
        group = optimizer.param_groups[0]
        rate = group["lr"]
        start = [weight.detach().clone() for weight in weights]
        with only_gradients_of(weights, arch):
            train_gradients: Sequence[Tensor | None] = torch.autograd.grad(
                self.loss(train), weights, allow_unused=True
            )
        buffers = {name: value.clone() for name, value in self.network.named_buffers()}
        with torch.no_grad():
            for weight, gradient in zip(weights, train_gradients, strict=True):
                if gradient is None:  # a weight that no image reaches stays, as in the optimizer
                    continue
                step = gradient + group["weight_decay"] * weight
                momentum = optimizer.state.get(weight, {}).get("momentum_buffer")
                if momentum is not None:
                    step = step + group["momentum"] * momentum
                weight.sub_(rate * step)
        with only_gradients_of([*arch, *weights], []):
            loss = self.loss(valid) + regularizer()
            gradients = torch.autograd.grad(loss, [*arch, *weights], allow_unused=True)
        # DARTS unrolls on a copy of the network, whose BatchNorm statistics are thrown away.
        with torch.no_grad():
            for name, value in self.network.named_buffers():
                value.copy_(buffers[name])
        arch_gradients, vector = gradients[: len(arch)], gradients[len(arch) :]
        implicit = self._hessian_vector_product(train, start, vector)
        _assign(
            arch,
            [
                None if g is None else g - rate * h
                for g, h in zip(arch_gradients, implicit, strict=True)
            ],
        )
        return loss.detach()

    def _hessian_vector_product(
        self, train: Batch, start: list[Tensor], vector: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """d2 L_train / d arch d weights times `vector`; leaves the weights at `start`.

        The discretization loss is left out: it does not depend on the weights.
        """
        weights = self.weights
        arch = self.network.arch_parameters()  # type: ignore[operator]
        direction = [
            torch.zeros_like(w) if v is None else v for w, v in zip(weights, vector, strict=True)
        ]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        epsilon = FINITE_DIFFERENCE / norm
        sides = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for weight, origin, v in zip(weights, start, direction, strict=True):
                    weight.copy_(origin + sign * epsilon * v)
            with only_gradients_of(arch, weights):
                found = torch.autograd.grad(self.loss(train), arch, allow_unused=True)
            sides.append(
                [torch.zeros_like(a) if g is None else g for a, g in zip(arch, found, strict=True)]
            )
        with torch.no_grad():
            for weight, origin in zip(weights, start, strict=True):
                weight.copy_(origin)
        return [(plus - minus) / (2 * epsilon) for plus, minus in zip(*sides, strict=True)]


def _assign(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
