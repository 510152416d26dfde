"""Operations and bytes of a cell, stage by stage: the limit its kernels are measured against.

Operations are 2 per multiply-add of the convolutions; normalizing, pooling and summing are counted
as bytes only. Bytes are the least a stage must move when everything between two barriers stays in
cache: every tensor that crosses a barrier is written once and read once per stage that needs it.
What is computed twice without being stored (ReLU, depthwise outputs in backward) is not counted as
needed.
"""

from __future__ import annotations

from typing import NamedTuple

from da2s_fast.ops.cell.plan import CONVS, POOLS, SKIP, CellPlan, EdgePlan
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

    def __init__(self, plan: CellPlan, batch: int, inputs: tuple[Size, Size], element: int) -> None:
        self.plan, self.batch, self.inputs, self.element = plan, batch, inputs, element
        # Behind the preprocessing both inputs have the second one's size.
        height, width = inputs[1].height, inputs[1].width
        self.before = height * width
        self.after = -(-height // 2) * -(-width // 2) if plan.reduction else self.before

    def pixels(self, state: int) -> int:
        return self.before if state < self.plan.inputs else self.after

    def stage(self, name: str, multiply_adds: int, elements: int) -> Stage:
        return Stage(name, 2 * self.batch * multiply_adds, self.batch * elements * self.element)

    def preprocess_macs(self) -> int:
        return sum(size.channels * self.plan.channels * self.before for size in self.inputs)

    def half_macs(self, operation: str) -> int:
        """One depthwise and pointwise convolution; both halves write `after` pixels."""
        c = self.plan.mixed_channels
        return self.after * c * (CONVS[operation].kernel ** 2 + c)

    def first_macs(self, edges: list[EdgePlan]) -> int:
        plan, c = self.plan, self.plan.mixed_channels
        total = 0
        for edge in edges:
            for operation in plan.operations:
                if operation in CONVS:
                    total += self.half_macs(operation)
                elif operation == SKIP and edge.stride == 2:
                    total += c * c * self.after
        return total

    def second_macs(self, edges: list[EdgePlan]) -> int:
        twice = [o for o in self.plan.operations if o in CONVS and CONVS[o].twice]
        return len(edges) * sum(self.half_macs(operation) for operation in twice)

    def tensors(self, edges: list[EdgePlan]) -> tuple[int, int, int]:
        """Number of z of the edges' own, of z1, and of pooled tensors shared by the bundle."""
        plan = self.plan
        own = sum(
            operation in CONVS or (operation == SKIP and edge.stride == 2)
            for edge in edges
            for operation in plan.operations
        )
        halves = len(edges) * sum(o in CONVS and CONVS[o].twice for o in plan.operations)
        return own, halves, sum(operation in POOLS for operation in plan.operations)


def stages(
    plan: CellPlan,
    batch: int,
    inputs: tuple[Size, Size],
    *,
    memory: Memory = "save",
    element: int = 4,
) -> list[Stage]:
    """Every stage of one forward and backward pass, in order.

    Args:
        plan: the cell.
        batch: N.
        inputs: sizes of the outputs of the last cell but one and of the last cell.
        memory: recompute adds the forward stages of every bundle to its backward.
        element: bytes per number.
    """
    count = _Counter(plan, batch, inputs, element)
    raw = sum(size.channels * size.height * size.width for size in inputs)
    ready = plan.inputs * plan.channels * count.before
    macs = count.preprocess_macs()
    found = [count.stage("preprocess", macs, raw + ready)]
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
            backward += [s._replace(name=f"{s.name}, recomputed") for s in again]
    backward.insert(0, count.stage("preprocess backward", 2 * macs, 2 * raw + 2 * ready))
    return found + backward[::-1]


def _node(plan: CellPlan, count: _Counter, state: int) -> Stage:
    """Reads every z of its edges once, writes the node."""
    edges = plan.entering(state)
    c = plan.mixed_channels
    read = len(edges) * sum(operation != "none" for operation in plan.operations) * c * count.after
    rest = len(edges) * (plan.channels - c) * count.after
    return count.stage(f"node {state}", 0, read + rest + plan.channels * count.after)
