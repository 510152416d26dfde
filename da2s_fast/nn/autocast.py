"""What type a cell has under autocast: the engine returns what its modules would return."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from da2s_fast.ops.cell.plan import CellPlan

_CAST = (torch.float32, torch.bfloat16, torch.float16)


def autocast_dtype(inputs: Sequence[Tensor]) -> torch.dtype | None:
    """The type that convolutions of these inputs are computed in by autocast; None without it.

    Inputs of other types, float64 among them, stay as they are, as in torch.
    """
    device = inputs[-1].device.type
    if not torch.is_autocast_enabled(device) or any(x.dtype not in _CAST for x in inputs):
        return None
    return torch.get_autocast_dtype(device)


def output_dtype(plan: CellPlan, given: torch.dtype, low: torch.dtype) -> torch.dtype:
    """The type of the cell's output where autocast computes convolutions in `low`.

    Norms, pools and skips keep the type that they get, sums and the concatenation of nodes take
    the widest.

    Args:
        plan: of the cell.
        given: type of the inputs.
        low: from `autocast_dtype`.
    """
    if given == low:
        return low
    states = [given if kind == "identity" else low for kind in plan.preprocess]
    for node in range(plan.inputs, len(plan.states)):
        terms = []
        for edge in plan.entering(node):
            state = states[edge.source]
            convolved = [bool(plan.shapes_of(name, edge.stride)) for name in plan.candidates(edge)]
            terms += [low if conv else state for conv in convolved]
            if plan.partial_channels > 1:
                terms.append(state)
        states.append(reduce(torch.promote_types, terms))
    return reduce(torch.promote_types, states[-plan.outputs :])
