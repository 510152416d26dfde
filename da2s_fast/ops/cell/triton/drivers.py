"""The drivers of the cell's operators on GPUs, under the operators' names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
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
    kinds: dict[tuple[torch.dtype, ...], list[int]] = {}
    for slot in slots:
        buffers = [*running[2 * slot : 2 * slot + 2], *(tracked[slot : slot + 1])]
        kinds.setdefault(tuple([buffer.dtype for buffer in buffers]), []).append(slot)
    for types, all_own in kinds.items():
        double = torch.float64 in (*types, statistics.dtype)
        for start in range(0, len(all_own), _MOST_NORMS):
            own = tuple(all_own[start : start + _MOST_NORMS])
            buffers = [running[2 * slot + half] for half in (0, 1) for slot in own]
            # What has gaps is copied there and back.
            flat = [buffer.contiguous() for buffer in buffers]
            tensors = {
                "statistics": statistics,
                "means": flat[: len(own)],
                "variances": flat[len(own) :],
                "tracked": [tracked[slot] for slot in own] if tracked else [],
            }
            norms = tuple(plan), own, tuple(counts)
            schedule.start(_update_running, tensors, norms, momentum, double)
            for to, value in zip(buffers, flat, strict=True):
                if to is not value:
                    to.copy_(value)


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
