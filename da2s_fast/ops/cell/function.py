"""The cell as a function: checks, choice of the backend, running statistics."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from da2s_fast.errors import UserError
from da2s_fast.ops._backend import REFERENCE, choose_backend
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops.cell import reference
from da2s_fast.ops.cell.checks import fused_reasons, mismatch, values_per_channel
from da2s_fast.ops.cell.memory import MemoryChoice, saves
from da2s_fast.ops.cell.norm import EPS, Statistics
from da2s_fast.ops.cell.operator import accumulation_dtype
from da2s_fast.ops.cell.plan import CellPlan


def cell(
    inputs: Sequence[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: Sequence[Tensor],
    plan: CellPlan,
    *,
    running: Sequence[Tensor] = (),
    frozen: Sequence[int] = (),
    eps: float = EPS,
    memory: MemoryChoice = "auto",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a search cell: preprocessing, every candidate on every edge, node sums.

    ``h_t = sum_{e into t} g_e sum_o p_eo op_eo(h_source(e))`` and the last nodes concatenated: the
    cell of DARTS (Liu et al., arXiv 1806.09055, eq. 1 and 2), with the edge weights g of DA2S (Tian
    et al., arXiv 2007.03154) and, for K > 1, the partial channels of PC-DARTS (Xu et al., arXiv
    1907.05737). The BatchNorms are those of a search, without affine. Hooks of modules do not run
    and running statistics are not touched, see `update_running`. Autocast changes nothing.

    Args:
        inputs: one per input of the plan, (N, C_in, H, W) of one dtype, any strides. An input that
            the plan reduces is twice as high and wide as the last one (odd sizes rounded up), all
            others are as large.
        p: (edges, operations).
        g: (edges,); None where every edge counts 1.
        weights: of the convolutions, in the order of ``Module.parameters()`` of a `Cell`:
            preprocessing of the first input, of the second, edge by edge, operation by operation.
        plan: what to compute.
        running: mean and variance by norm slot (module order), (channels,) each; may be empty when
            nothing is frozen.
        frozen: slots of the norms that normalize with running statistics instead of the batch's.
        eps: of the norms.
        memory: "save", "recompute" or "auto", see `MemoryChoice`.
        backend: "cpu" (compiled) or "triton" (CUDA tensors), both for float32, float64, bfloat16
            and float16, computed in float32 or float64, p, g and weights of the inputs' type or
            float32; "reference" (plain PyTorch, any device, twice differentiable) or None for the
            best that can run.

    Returns:
        The output, (N, output nodes * C, H', W') in the inputs' dtype, channels_last where the
        first input is, and the statistics that normalized: (2 * channels of all norms,), by slot
        mean and biased variance, in the arithmetic's dtype. Those of operations that are not
        active have no meaning. Statistics are not differentiable.

    Raises:
        UserError: shapes or lengths that do not fit, a backend that is unknown or cannot run.
    """
    inputs, weights = list(inputs), list(weights)
    problem = mismatch(inputs, p, g, weights, plan)
    if problem is None and len(running) != 2 * len(plan.norm_channels) and (running or frozen):
        problem = f"{len(running)} running statistics for {len(plan.norm_channels)} norms"
    if problem is not None:
        raise UserError(f"cell got {problem}; see its docstring for the shapes")
    reasons = fused_reasons(inputs, p, g, weights, plan, running, frozen)
    if choose_backend("cell", backend, reasons) == REFERENCE:
        return cell_reference(inputs, p, g, weights, plan, running=running, frozen=frozen, eps=eps)
    return run(inputs, p, g, weights, plan, running, frozen, eps, memory)


def run(  # noqa: PLR0917 - as the operator
    inputs: list[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: list[Tensor],
    plan: CellPlan,
    running: Sequence[Tensor],
    frozen: Sequence[int],
    eps: float,
    memory: MemoryChoice,
) -> tuple[Tensor, Tensor]:
    """`cell` by the fused operator, without checks."""
    x = inputs[-1]
    save = False
    learned = (*inputs, p, *(() if g is None else (g,)), *weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned):
        # Plain numbers: what a compiler only has symbols for becomes numbers by this.
        sizes = tuple(operator.index(n) for y in inputs for n in y.shape[1:])
        save = saves(
            memory,
            x.device,
            tuple(map(operator.index, plan.code)),
            operator.index(x.shape[0]),
            sizes,
            accumulation_dtype(x.dtype).itemsize,
        )
    output, statistics, _ = torch.ops.da2s_fast.cell(
        inputs,
        p,
        g,
        weights,
        list(running) if frozen else [],
        list(frozen),
        list(plan.code),
        eps,
        save,
    )
    return output, statistics


def cell_reference(
    inputs: Sequence[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: Sequence[Tensor],
    plan: CellPlan,
    *,
    running: Sequence[Tensor],
    frozen: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Compute `cell` in plain PyTorch, in the stages of `reference`."""
    dtype = accumulation_dtype(inputs[0].dtype)
    known = {
        slot: Statistics(
            running[2 * slot].to(dtype), running[2 * slot + 1].to(dtype), of_batch=False, eps=eps
        )
        for slot in frozen
    }
    slots = range(len(plan.norm_channels))
    with _without_autocast(inputs[0].device.type):
        found, norms, _ = reference.forward(
            plan,
            [x.to(dtype) for x in inputs],
            reference.Parameters(
                [weight.to(dtype) for weight in weights],
                p.to(dtype),
                p.new_ones(len(p), dtype=dtype) if g is None else g.to(dtype),
            ),
            running=[known.get(slot) for slot in slots],
            eps=eps,
        )
    parts: list[Tensor] = []
    for statistics, channels in zip(norms, plan.norm_channels, strict=True):
        if statistics is None:
            parts.append(found.new_zeros(2 * channels))
        else:
            parts += [statistics.mean, statistics.variance]
    output = found.to(inputs[0].dtype).contiguous(memory_format=memory_format_of(inputs[0]))
    return output, torch.cat([found.new_zeros(0), *parts]).detach()


def _without_autocast(device: str) -> AbstractContextManager:
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def update_running(
    statistics: Tensor,
    running: Sequence[Tensor],
    tracked: Sequence[Tensor],
    plan: CellPlan,
    *,
    size: Sequence[int],
    frozen: Sequence[int] = (),
    momentum: float | None = 0.1,
) -> None:
    """Move running statistics towards those of a batch, as training BatchNorms do.

    ``running = (1 - momentum) running + momentum new``, the variance unbiased. Norms that are
    frozen or belong to operations that are not active keep theirs. Wherever `cell` runs fused, this
    does; on GPUs without waiting for the device.

    Args:
        statistics: the second result of `cell`.
        running: mean and variance by norm slot, changed in place.
        tracked: ``num_batches_tracked`` by slot, increased in place; may be empty where there is a
            momentum.
        plan: of the cell.
        size: (N, H, W) of the cell's last input.
        frozen: as for `cell`.
        momentum: of all norms; None stands for 1 / tracked, the plain average over all batches.
    """
    counts = list(values_per_channel(plan, size))
    code = list(plan.code)
    with torch.no_grad():
        torch.ops.da2s_fast.cell_update_running(
            statistics,
            running,
            tracked,
            list(frozen),
            code,
            counts,
            -1.0 if momentum is None else momentum,
        )
    if not torch.compiler.is_compiling():
        # What autograd saved of them elsewhere has changed: let it notice.
        torch.autograd.graph.increment_version([*running, *tracked])
