"""Operations and bytes of a cell, stage by stage: the limit its kernels are measured against.

Operations are 2 per multiply-add of the convolutions; normalizing, pooling and summing are counted
as bytes only. Bytes are the least a stage must move when everything between two barriers stays in
cache: every tensor that crosses a barrier is written once and read once per stage that needs it.
What is computed twice without being stored (ReLU, depthwise outputs in backward) is not counted as
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from da2s_fast.ops.cell.operations import CONVS, DENSE, NONE, POOLS, SKIP
from da2s_fast.ops.cell.plan import CellPlan, EdgePlan
from da2s_fast.ops.cell.reference import Memory


class Size(NamedTuple):
    """Channels, height and width of one of the cell's inputs."""

    channels: int
    height: int
    width: int


class Stage(NamedTuple):
    """What one stage needs at least, for a whole batch."""

    name: str
    operations: int
    bytes: int


class _Counter:
    """Counts per image; `stage` scales to the batch."""

    def __init__(
        self, plan: CellPlan, batch: int, inputs: Sequence[Size], element: int = 4
    ) -> None:
        self.plan, self.batch, self.inputs, self.element = plan, batch, inputs, element
        # Behind the preprocessing all inputs have the last one's size.
        height, width = inputs[-1].height, inputs[-1].width
        self.before = height * width
        self.after = -(-height // 2) * -(-width // 2) if plan.reduction else self.before

    def pixels(self, state: int) -> int:
        return self.before if state < self.plan.inputs else self.after

    def stage(self, name: str, multiply_adds: int, elements: int) -> Stage:
        return Stage(name, 2 * self.batch * multiply_adds, self.batch * elements * self.element)

    def preprocess_macs(self, position: int) -> int:
        if self.plan.preprocess[position] == "identity":
            return 0
        return self.inputs[position].channels * self.plan.channels * self.before

    def half_macs(self, operation: str) -> int:
        """One depthwise and pointwise convolution; both halves write `after` pixels."""
        c = self.plan.mixed_channels
        return self.after * c * (CONVS[operation].kernel ** 2 + c)

    def first_macs(self, edges: list[EdgePlan]) -> int:
        plan, c = self.plan, self.plan.mixed_channels
        total = 0
        for edge in edges:
            for operation in plan.candidates(edge):
                if operation in CONVS:
                    total += self.half_macs(operation)
                elif operation in DENSE:
                    total += c * c * DENSE[operation] ** 2 * self.after
                elif operation == SKIP and edge.stride == 2:
                    total += c * c * self.after
        return total

    def second_macs(self, edges: list[EdgePlan]) -> int:
        return sum(
            self.half_macs(operation)
            for edge in edges
            for operation in self.plan.candidates(edge)
            if operation in CONVS and CONVS[operation].twice
        )

    def tensors(self, edges: list[EdgePlan]) -> tuple[int, int, int]:
        """Number of z of the edges' own, of z1, and of pooled tensors shared by the bundle."""
        plan = self.plan
        own = sum(
            operation in CONVS or operation in DENSE or (operation == SKIP and edge.stride == 2)
            for edge in edges
            for operation in plan.candidates(edge)
        )
        halves = sum(
            operation in CONVS and CONVS[operation].twice
            for edge in edges
            for operation in plan.candidates(edge)
        )
        pools = {o for edge in edges for o in plan.candidates(edge) if o in POOLS}
        return own, halves, len(pools)


def stages(
    plan: CellPlan,
    batch: int,
    inputs: Sequence[Size],
    *,
    memory: Memory = "save",
    element: int = 4,
) -> list[Stage]:
    """Every stage of one forward and backward pass, in order.

    Args:
        plan: the cell.
        batch: N.
        inputs: sizes of the cell's inputs, one or two.
        memory: recompute adds the preprocessing and the forward stages of every bundle.
        element: bytes per number.
    """
    count = _Counter(plan, batch, inputs, element)
    prepared = [inputs[position] for position in plan.preprocess_norms]
    raw = sum(size.channels * size.height * size.width for size in prepared)
    ready = len(prepared) * plan.channels * count.before
    macs = sum(count.preprocess_macs(position) for position in range(plan.inputs))
    preprocess = count.stage("preprocess", macs, raw + ready)
    found = [preprocess]
    forward: dict[int, list[Stage]] = {}
    backward: list[Stage] = []
    for state in plan.states:
        if state >= plan.inputs:
            found.append(_node(plan, count, state))
        edges = plan.bundle(state)
        if not edges:
            continue
        own, halves, pools = count.tensors(edges)
        c = plan.mixed_channels
        x = plan.channels * count.pixels(state)
        one = c * count.after
        rest = (plan.channels - c) * count.after  # what bypasses, behind its pool
        first, second = count.first_macs(edges), count.second_macs(edges)
        # z of separable convolutions are written by the second stage, all others by the first.
        forward[state] = [
            count.stage(f"bundle {state} forward 1", first, x + rest + (own + pools) * one),
            count.stage(f"bundle {state} forward 2", second, 2 * halves * one),
        ]
        found += forward[state]
        z = (own + pools) * one
        gradients = len(edges) * plan.channels * count.after
        direct = first - second  # both halves of a separable convolution cost the same
        backward += [
            # Reverse order: the list is turned around at the end.
            count.stage(
                f"bundle {state} backward 3", 2 * (first - direct), 2 * halves * one + 2 * x
            ),
            count.stage(
                f"bundle {state} backward 2",
                2 * (direct + second),
                z + gradients + 2 * halves * one + 2 * x,
            ),
            count.stage(f"bundle {state} backward 1", 0, z + gradients),
        ]
        if memory == "recompute":
            again = forward[state][::-1]
            backward += map(_recomputed, again)
    backward.insert(0, count.stage("preprocess backward", 2 * macs, 2 * raw + 2 * ready))
    if memory == "recompute":
        backward.append(_recomputed(preprocess))
    return found + backward[::-1]


def _recomputed(stage: Stage) -> Stage:
    return stage._replace(name=f"{stage.name}, recomputed")


def _node(plan: CellPlan, count: _Counter, state: int) -> Stage:
    """Reads every z of its edges once, writes the node."""
    edges = plan.entering(state)
    c = plan.mixed_channels
    read = sum(o != NONE for edge in edges for o in plan.candidates(edge)) * c * count.after
    rest = len(edges) * (plan.channels - c) * count.after
    return count.stage(f"node {state}", 0, read + rest + plan.channels * count.after)


def forward_operations(plan: CellPlan, batch: int, inputs: Sequence[Size]) -> int:
    """Operations of a forward pass."""
    count = _Counter(plan, batch, inputs)
    macs = sum(count.preprocess_macs(position) for position in range(plan.inputs))
    macs += sum(_bundle_macs(count, state) for state in plan.states)
    return 2 * batch * macs


def backward_operations(
    plan: CellPlan, batch: int, inputs: Sequence[Size], wanted: Sequence[bool], weights: bool
) -> int:
    """Operations of a backward pass: one convolution's worth per gradient that is needed.

    Args:
        plan: the cell.
        batch: N.
        inputs: sizes of the cell's inputs, one or two.
        wanted: whether each input's gradient is asked for.
        weights: whether those of the weights are.
    """
    count = _Counter(plan, batch, inputs)
    macs = 0
    for position, kind in enumerate(plan.preprocess):
        macs += (wanted[position] + weights) * count.preprocess_macs(position)
        # Only what lies before an input's state can need the gradient of that state.
        needed = wanted[position] or (weights and kind != "identity")
        macs += (needed + weights) * _bundle_macs(count, position)
    # The gradients of p need those of all nodes.
    macs += sum((1 + weights) * _bundle_macs(count, state) for state in plan.states[plan.inputs :])
    return 2 * batch * macs


def _bundle_macs(count: _Counter, state: int) -> int:
    edges = count.plan.bundle(state)
    return count.first_macs(edges) + count.second_macs(edges)
