"""Whether arguments of the cell fit together, and whether its fused operators can run on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from da2s_fast.ops._backend import NO_CPU_LIBRARY
from da2s_fast.ops._triton import triton_reason
from da2s_fast.ops.cell.operator import HAS_CPU_KERNEL
from da2s_fast.ops.cell.plan import CellPlan

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def values_per_channel(plan: CellPlan, size: Sequence[int]) -> tuple[int, ...]:
    """How many values the norms see: one number per norm of the preprocessing, then the edges'."""
    images, height, width = size
    before, after = images * height * width, images * height * width
    if plan.reduction:
        after = images * ((height + 1) // 2) * ((width + 1) // 2)
    prepared = sum(kind != "identity" for kind in plan.preprocess)
    return (before,) * prepared + (after,)


def mismatch(
    inputs: Sequence[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: Sequence[Tensor],
    plan: CellPlan,
) -> str | None:
    """Say what does not fit together; None where everything does."""
    if len(inputs) != plan.inputs or any(x.dim() != 4 for x in inputs):
        return f"inputs of shapes {[tuple(x.shape) for x in inputs]} for {plan.inputs} inputs"
    images, _, height, width = inputs[-1].shape
    for x, kind in zip(inputs, plan.preprocess, strict=True):
        halve = kind == "reduce"
        size = [(length + 1) // 2 if halve else length for length in x.shape[2:]]
        identity = kind == "identity" and x.shape[1] != plan.channels
        other = x.shape[0] != images or x.dtype != inputs[-1].dtype
        if other or identity or size != [height, width]:
            return (
                f"a {kind} input {tuple(x.shape)} of {x.dtype} beside a last input "
                f"{tuple(inputs[-1].shape)} of {inputs[-1].dtype} for {plan.channels} channels"
            )
    edges, operations = len(plan.edges), len(plan.operations)
    if p.shape != (edges, operations):
        return f"p of shape {tuple(p.shape)} instead of {(edges, operations)}"
    if g is not None and g.shape != (edges,):
        return f"g of shape {tuple(g.shape)} instead of {(edges,)}"
    shapes = plan.weight_shapes([x.shape[1] for x in inputs])
    if [weight.shape for weight in weights] != shapes:
        given = [tuple(weight.shape) for weight in weights]
        return f"weights of shapes {given} instead of {shapes}"
    return None


def unavailable(x: Tensor) -> dict[str, str | None]:
    """Say, by backend, why no call with this input can go to it: the first question."""
    cpu = None if x.is_cpu else f"a tensor is on {x.device}"
    if not HAS_CPU_KERNEL:
        cpu = NO_CPU_LIBRARY
    return {"cpu": cpu, "triton": triton_reason(x)}


def fused_reasons(  # noqa: PLR0917 - as the operator
    inputs: Sequence[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: Sequence[Tensor],
    plan: CellPlan,
    running: Sequence[Tensor],
    frozen: Sequence[int],
) -> dict[str, str | None]:
    """Say, by backend, why it cannot run what fits together; None where it can."""
    reasons = unavailable(inputs[-1])
    if None not in reasons.values():
        return reasons
    reason = _reason(inputs, p, g, weights, plan, running, frozen)
    return {backend: own or reason for backend, own in reasons.items()}


def _reason(  # noqa: PLR0917 - as the operator
    inputs: Sequence[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: Sequence[Tensor],
    plan: CellPlan,
    running: Sequence[Tensor],
    frozen: Sequence[int],
) -> str | None:
    """What all backends leave to the reference; None where there is nothing."""
    x = inputs[-1]
    mixture = [p] if g is None else [p, g]
    tensors = (*inputs, *mixture, *weights, *running)
    if not _on_device_of(x, tensors):
        return f"tensors are on {' and '.join(sorted({str(t.device) for t in tensors}))}"
    if x.dtype not in _DTYPES:
        return f"the inputs are {x.dtype}"
    types = {weight.dtype for weight in weights}
    for dtype in (*[tensor.dtype for tensor in mixture], *types):
        if dtype not in (x.dtype, torch.float32):
            return f"the inputs are {x.dtype}, p, g or a weight is {dtype}"
    if len(types) > 1:
        return "the weights have several types"
    if x.numel() == 0:
        return "the inputs are empty"
    counts = values_per_channel(plan, (x.shape[0], *x.shape[2:]))
    if 1 in counts and len(frozen) < len(plan.norm_channels):
        return "a norm would see a single value per channel"
    return None


def _on_device_of(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether all of them are on the device of x.

    Cells have hundreds of weights: where it will do a shorter question than for devices, which are
    objects that are made for the answer.
    """
    if x.is_cpu:
        return all([t.is_cpu for t in tensors])
    if x.is_cuda and all([t.is_cuda for t in tensors]):
        return {t.get_device() for t in tensors} == {x.get_device()}
    return all([t.device == x.device for t in tensors])
