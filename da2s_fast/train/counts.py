"""Size and cost of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and no gradients are recorded."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def count_parameters(model: nn.Module) -> int:
    """Number of weights, without the auxiliary head, which only training needs (as in DARTS)."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith("auxiliary_head.")
    )


def count_multiply_adds(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all convolutions and linear layers for one image, in evaluation mode.

    The field's "FLOPs" or "+x": normalizations, activations, pools and biases are not counted.

    Args:
        model: any module that maps (N, C, H, W) to class scores.
        input_shape: (C, H, W) of an image.
    """
    weight = next(model.parameters())
    image = torch.zeros(1, *input_shape, dtype=weight.dtype, device=weight.device)
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(image)
    # torch counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2
