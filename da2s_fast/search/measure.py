"""Accuracy of a super-network as it is and after the cut, without retraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from da2s_fast.data import evaluation_batches
from da2s_fast.nn import Mixture

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def accuracy(
    network: nn.Module, batches: Batches, mixtures: Mapping[str, Mixture] | None = None
) -> float:
    """Share of images classified correctly, 0 to 1, in evaluation mode.

    Args:
        network: a super-network; its mode is restored.
        batches: returns an iterator over (images, labels).
        mixtures: replaces the current mixtures, see `SuperNetwork.forward`.
    """
    training = network.training
    correct: Tensor | int = 0
    total = 0
    try:
        network.eval()
        with torch.no_grad():
            for images, labels in batches():
                correct = correct + (network(images, mixtures).argmax(dim=1) == labels).sum()
                total += len(labels)
    finally:
        network.train(training)
    return int(correct) / total


@contextmanager
def reestimated_norms(
    network: nn.Module, batches: Batches, mixtures: Mapping[str, Mixture] | None = None
) -> Iterator[None]:
    """Inside, BatchNorm statistics are averages over `batches` as seen through `mixtures`.

    A cut network sends other activations into its norms than the super-network whose running
    statistics it inherits; this measures what is left of the gap when they are put right.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [
        ({name: buffer.clone() for name, buffer in norm.named_buffers()}, norm.momentum)
        for norm in norms
    ]
    training = network.training
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
        network.train()
        with torch.no_grad():
            for images, _ in batches():
                network(images, mixtures)
        network.train(training)
        yield
    finally:
        network.train(training)
        for norm, (buffers, momentum) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


REESTIMATION_BATCHES = 8


class GapMeter:
    """Measures super-network and cut network on one set of images.

    Args:
        images, labels: uint8 (N, C, H, W) and int64 (N,), where the accuracy is taken.
        train_images, train_labels: what BatchNorm statistics are re-estimated on; the first
            batches of them are used.
        batch_size, mean, std, device: as for `evaluation_batches`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        train_images: Tensor,
        train_labels: Tensor,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str,
    ) -> None:
        def batches(x: Tensor, y: Tensor) -> Batches:
            return lambda: evaluation_batches(x, y, batch_size, mean=mean, std=std, device=device)

        count = REESTIMATION_BATCHES * batch_size
        self._batches = batches(images, labels)
        self._norm_batches = batches(train_images[:count], train_labels[:count])

    def measure(self, network: nn.Module, cut: Mapping[str, Mixture]) -> dict[str, float]:
        """Accuracies, 0 to 1: "super", "cut" and, with re-estimated norms, "super_bn", "cut_bn"."""
        result = {}
        for name, mixtures in (("super", None), ("cut", cut)):
            result[name] = accuracy(network, self._batches, mixtures)
            with reestimated_norms(network, self._norm_batches, mixtures):
                result[f"{name}_bn"] = accuracy(network, self._batches, mixtures)
        return result
