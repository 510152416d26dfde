"""One bundle, all edges that leave a state: its two forward stages.

A stage ends where BatchNorm needs the whole batch (a barrier): no work behind it can start for
any image before the last image is through.

    1  ReLU and pools once; per edge depthwise, pointwise -> z of pools, dilated and dense
       convolutions and skips, z1 of separable convolutions       | barrier: their statistics
    2  separable: normalize z1, ReLU, depthwise, pointwise -> z   | barrier: their statistics
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from da2s_fast.ops.cell.convolutions import (
    bypass,
    dense,
    depthwise,
    factorized_reduce,
    pointwise,
    pool,
)
from da2s_fast.ops.cell.norm import EPS, Statistics, batch_statistics, normalized
from da2s_fast.ops.cell.operations import CONVS, DENSE, NONE, POOLS, SKIP
from da2s_fast.ops.cell.plan import CellPlan

Key = tuple[int, str]
"""(edge, operation)."""
Norms = list[Statistics | None]
"""Statistics by norm slot; what is None is taken from the batch and filled in."""


@dataclass
class Bundle:
    """The tensors of a bundle between its stages."""

    source: int
    x: Tensor
    """The mixed channels of the state, (N, C / K, H, W)."""
    rest: Tensor
    """Its other channels, (N, C - C / K, H, W)."""
    z: dict[Key, Tensor] = field(default_factory=dict)
    """Every candidate's output before its last norm; the state itself for identity skips."""
    z1: dict[Key, Tensor] = field(default_factory=dict)
    """Separable convolutions' first halves before their norm."""
    pools: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    bypassed: tuple[Tensor, Tensor | None] | None = None


def forward(  # noqa: PLR0917 - the cell, then the tensors
    plan: CellPlan,
    source: int,
    state: Tensor,
    weights: Sequence[Tensor],
    norms: Norms,
    eps: float = EPS,
) -> Bundle:
    """Both stages; takes missing statistics from the batch at each barrier."""
    mixed = plan.mixed_channels
    bundle = Bundle(source, state[:, :mixed], state[:, mixed:])
    _stage1(plan, bundle, weights)
    for (edge, operation), z in (bundle.z | bundle.z1).items():
        slot = plan.norm_slots[edge, operation]
        if slot.start < slot.stop and norms[slot.start] is None:
            norms[slot.start] = batch_statistics(z, eps)
    _stage2(plan, bundle, weights, norms)
    for edge, operation in bundle.z1:
        last = plan.norm_slots[edge, operation].stop - 1
        if norms[last] is None:
            norms[last] = batch_statistics(bundle.z[edge, operation], eps)
    return bundle


def _stage1(plan: CellPlan, bundle: Bundle, weights: Sequence[Tensor]) -> None:
    edges = plan.bundle(bundle.source)
    stride = edges[0].stride
    relu = bundle.x.relu()
    wanted = {operation for edge in edges for operation in plan.candidates(edge)}
    bundle.pools = {o: pool(bundle.x, o, stride) for o in POOLS if o in wanted}
    if plan.partial_channels > 1:
        bundle.bypassed = bypass(bundle.rest, stride)
    for edge in edges:
        for operation in plan.candidates(edge):
            key = (edge.row, operation)
            own = weights[plan.weight_slots[key]]
            if operation in POOLS:
                bundle.z[key] = bundle.pools[operation][0]
            elif operation == SKIP:
                bundle.z[key] = bundle.x if stride == 1 else factorized_reduce(relu, *own)
            elif operation == NONE:
                bundle.z[key] = bundle.x[:, :, ::stride, ::stride].mul(0.0)
            elif operation in DENSE:
                bundle.z[key] = dense(relu, own[0], stride)
            else:
                conv = CONVS[operation]
                out = pointwise(depthwise(relu, own[0], conv, stride), own[1])
                (bundle.z1 if conv.twice else bundle.z)[key] = out


def _stage2(plan: CellPlan, bundle: Bundle, weights: Sequence[Tensor], norms: Norms) -> None:
    for (edge, operation), z1 in bundle.z1.items():
        own = weights[plan.weight_slots[edge, operation]]
        inner = normalized(z1, known(norms, plan.norm_slots[edge, operation].start)).relu()
        bundle.z[edge, operation] = pointwise(depthwise(inner, own[2], CONVS[operation], 1), own[3])


def known(norms: Norms, slot: int) -> Statistics:
    """Statistics that a forward pass has filled in."""
    statistics = norms[slot]
    assert statistics is not None
    return statistics
