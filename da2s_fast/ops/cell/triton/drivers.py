"""The drivers of the cell's operators on GPUs, under the operators' names."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from da2s_fast.kernels import schedule
from da2s_fast.kernels.cell import running as kernels
from da2s_fast.kernels.launch import launch
from da2s_fast.ops._triton import launched_as
from da2s_fast.ops.cell.plan import decode
from da2s_fast.ops.cell.triton.backward import cell_backward
from da2s_fast.ops.cell.triton.forward import cell

__all__ = ["cell", "cell_backward", "cell_update_running"]

# Pointers to three buffers of each fit into the parameters of a kernel, of which older drivers take
# 4 KiB. No cell of the known spaces has more norms.
_MOST_NORMS = 160
_BLOCK = 128

_DTYPE = attrgetter("dtype")


def cell_update_running(  # noqa: PLR0917 - the schema's arguments
    statistics: Tensor,
    running: list[Tensor],
    tracked: list[Tensor],
    frozen: list[int],
    plan: list[int],
    counts: list[int],
    momentum: float,
) -> None:
    """Move running statistics towards the batch's, all of a cell in one launch.

    A launch more for every further type of buffers, and for every _MOST_NORMS norms.
    """
    slots = _moving(tuple(plan), tuple(frozen))
    means, variances = running[::2], running[1::2]
    for types, all_own in _by_type(slots, means, variances, tracked).items():
        double = torch.float64 in (*types, statistics.dtype)
        for start in range(0, len(all_own), _MOST_NORMS):
            own = all_own[start : start + _MOST_NORMS]
            buffers = (*_chosen(means, own), *_chosen(variances, own))
            # What has gaps is copied there and back.
            whole = all(map(Tensor.is_contiguous, buffers))
            flat = buffers if whole else tuple([buffer.contiguous() for buffer in buffers])
            tensors: dict[Hashable, Any] = {
                "statistics": statistics,
                "means": flat[: len(own)],
                "variances": flat[len(own) :],
                "tracked": _chosen(tracked, own) if tracked else (),
            }
            norms = tuple(plan), own, tuple(counts)
            schedule.start(_update_running, tensors, norms, momentum, double)
            if not whole:
                for to, value in zip(buffers, flat, strict=True):
                    to.copy_(value)


def _chosen(buffers: list[Tensor], slots: tuple[int, ...]) -> tuple[Tensor, ...]:
    if len(slots) == len(buffers):
        return tuple(buffers)
    return tuple([buffers[slot] for slot in slots])


def _by_type(slots: tuple[int, ...], *buffers: list[Tensor]) -> dict[tuple[Any, ...], Any]:
    """The slots by the types of their means, variances and counters."""
    types = [set(map(_DTYPE, own)) for own in buffers]
    if all(len(own) < 2 for own in types):  # nearly always
        return {tuple(chain(*types)): slots} if slots else {}
    kinds: dict[tuple[Any, ...], Any] = {}
    for slot in slots:
        kind = tuple([own[slot].dtype for own in buffers if own])
        kinds[kind] = (*kinds.get(kind, ()), slot)
    return kinds


def _update_running(
    slots: Mapping[str, Any],
    norms: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    momentum: float,
    double: bool,
) -> None:
    device = slots["statistics"].device
    launch(
        kernels.update_running,
        (len(slots["means"]),),
        **launched_as("update_running", device),
        table=_table(*norms, device),
        **slots,
        MOMENTUM=None if momentum < 0 else momentum,
        WIDE=tl.float64 if double else tl.float32,
        BLOCK=_BLOCK,
    )


@lru_cache(maxsize=256)
def _moving(code: tuple[int, ...], frozen: tuple[int, ...]) -> tuple[int, ...]:
    """Slots of the norms that are not frozen and belong to something that runs, ascending."""
    plan = decode(code)
    active = set(plan.preprocess_norms.values())
    for edge in plan.edges:
        for operation in plan.candidates(edge):
            slots = plan.norm_slots[edge.row, operation]
            active |= set(range(slots.start, slots.stop))
    return tuple(sorted(active - set(frozen)))


@lru_cache(maxsize=256)
def _table(
    code: tuple[int, ...], slots: tuple[int, ...], counts: tuple[int, ...], device: torch.device
) -> Tensor:
    """Per norm what the kernel is told of it, on the device, where it stays."""
    channels = decode(code).norm_channels
    rows = [
        [2 * sum(channels[:slot]), channels[slot], counts[min(slot, len(counts) - 1)]]
        for slot in slots
    ]
    return torch.tensor(rows, dtype=torch.int64).to(device)
