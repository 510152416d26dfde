"""The drivers of the cell's operators on GPUs, under the operators' names."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from da2s_fast.ops.cell.plan import decode
from da2s_fast.ops.cell.triton.backward import cell_backward
from da2s_fast.ops.cell.triton.forward import cell

__all__ = ["cell", "cell_backward", "cell_update_running"]


def cell_update_running(  # noqa: PLR0917 - the schema's arguments
    statistics: Tensor,
    running: list[Tensor],
    tracked: list[Tensor],
    frozen: list[int],
    plan: list[int],
    counts: list[int],
    momentum: float,
) -> None:
    """Move running statistics towards the batch's, all of a cell in a few launches."""
    slots = _moving(tuple(plan), tuple(frozen))
    if not slots:
        return
    channels = decode(tuple(plan)).norm_channels
    parts = statistics.split([n for n in channels for _ in range(2)])
    counted = [tracked[slot] for slot in slots] if tracked else []
    if counted:
        torch._foreach_add_(counted, 1)
    # In the wider of both types; where that is the buffer's, in place.
    own = [t for slot in slots for t in running[2 * slot : 2 * slot + 2]]
    wide = [t.to(torch.promote_types(t.dtype, statistics.dtype)) for t in own]
    shares: list[Tensor] = []
    if momentum < 0:  # the plain average over all batches
        shares = [
            count.to(t.dtype).reciprocal()
            for count, t in zip(counted, wide[::2], strict=True)
            for _ in range(2)
        ]
        torch._foreach_mul_(wide, [1 - share for share in shares])
    else:
        torch._foreach_mul_(wide, 1 - momentum)
    # What every number of a kind is multiplied by: the variance becomes unbiased.
    kinds: dict[float, list[int]] = {}
    for position, slot in enumerate(slots):
        count = counts[min(slot, len(counts) - 1)]
        kinds.setdefault(1.0, []).append(2 * position)
        kinds.setdefault(count / (count - 1), []).append(2 * position + 1)
    for factor, positions in kinds.items():
        new = [parts[2 * slots[i // 2] + i % 2].to(wide[i].dtype) for i in positions]
        if shares:
            new = list(torch._foreach_mul(new, [shares[i] for i in positions]))
        alpha = factor if shares else factor * momentum
        torch._foreach_add_([wide[i] for i in positions], new, alpha=alpha)
    for to, value in zip(own, wide, strict=True):
        if to is not value:
            to.copy_(value)


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
