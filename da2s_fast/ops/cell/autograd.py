"""The derivative of the operator `cell`.

Registered below torch's own `register_autograd`, which walks through all arguments as trees, lists
included: with the hundreds of weights of a cell that takes longer than a small cell's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from da2s_fast.ops._backend import LIBRARY, refuse_double_backward
from da2s_fast.ops._triton import DRIVERS

_PYTHON_DRIVER = torch._C.DispatchKey.CUDA
"""Where the operator is implemented by one of `DRIVERS`."""


class _Call(NamedTuple):
    """What is no tensor to be differentiated by.

    Attributes:
        keys: of the dispatcher, where the call came from.
        inputs: how many there are.
        weights: how many there are.
        running: the operator's argument.
        settings: the operator's arguments behind `running`.
    """

    keys: torch._C.DispatchKeySet
    inputs: int
    weights: int
    running: list[Tensor]
    settings: tuple[Any, ...]


class _Cell(torch.autograd.Function):
    """The operator as a function of its inputs, weights, p and, where there is one, g."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        xs, weights, (p, *g) = _parted(call, tensors)
        arguments = (xs, p, g[0] if g else None, weights, call.running, *call.settings)
        output, statistics, saved = _below_autograd(call.keys, arguments)
        ctx.call = call
        ctx.mark_non_differentiable(statistics, saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, statistics, saved)
        return output, statistics, saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        call = ctx.call
        *tensors, statistics, saved = ctx.saved_tensors
        xs, weights, (p, *g) = _parted(call, tensors)
        for_xs, for_weights, for_mixture = _parted(call, ctx.needs_input_grad[1:])
        if grad is None:
            return (None,) * (1 + len(tensors))
        mask = [*for_xs, for_mixture[0], for_mixture[-1] if g else False, any(for_weights)]
        with nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd():
            # Nobody is going to differentiate this: the rule that refuses it need not be asked.
            found, grad_p, grad_g, flat = torch.ops.da2s_fast.cell_backward(
                grad, xs, p, g[0] if g else None, weights, statistics, saved, *call.settings, mask
            )
        grads = [*found]
        grads += _views(flat, weights) if mask[-1] else weights
        grads += [grad_p, grad_g] if g else [grad_p]
        wanted = ctx.needs_input_grad[1:]
        return None, *(grad if own else None for grad, own in zip(grads, wanted, strict=True))


def _parted(call: _Call, items: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Items of `_Cell`'s tensors as those of the inputs, of the weights, and of p and g."""
    last = call.inputs + call.weights
    return list(items[: call.inputs]), list(items[call.inputs : last]), list(items[last:])


def _views(flat: Tensor, weights: list[Tensor]) -> Sequence[Tensor]:
    """The flat tensor in parts of the weights' shapes, one after the other."""
    if type(flat) is Tensor:
        # There are hundreds of them: all in one call.
        return _unflatten_dense_tensors(flat, weights)
    # What compilers trace may have sizes without a number.
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def _below_autograd(
    keys: torch._C.DispatchKeySet, arguments: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        keys &= torch._C._after_autograd_keyset
        if keys.highestPriorityTypeId() == _PYTHON_DRIVER:
            # Straight to it: lists of hundreds of tensors would be taken apart twice on the way.
            return DRIVERS["cell"](*arguments)
        return torch.ops.da2s_fast.cell.default.redispatch(keys, *arguments)


def _cell(  # noqa: PLR0917 - the schema's arguments
    keys: torch._C.DispatchKeySet,
    inputs: list[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: list[Tensor],
    running: list[Tensor],
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    learned = (*inputs, *weights, p, *(() if g is None else (g,)))
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*learned):
        return _Cell.apply(_Call(keys, len(inputs), len(weights), running, settings), *learned)
    return _below_autograd(keys, (inputs, p, g, weights, running, *settings))


def _double_backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
    refuse_double_backward("cell")


def register() -> None:
    """Let torch differentiate `cell`, once its schemas are defined."""
    LIBRARY.impl("cell", _cell, "Autograd", with_keyset=True)
    torch.library.register_autograd("da2s_fast::cell_backward", _double_backward, lib=LIBRARY)
