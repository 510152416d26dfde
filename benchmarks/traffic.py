"""The least bytes of every case, per image and step: the other half of the limit.

Counted as in da2s_fast/ops/cell/cost.py: a tensor that crosses a barrier is written once and read
once per stage that needs it; what happens between two barriers stays in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from da2s_fast.nn.topology import CellTopology
from da2s_fast.ops.cell.cost import Size, Stage, stages
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.spaces import SearchSpace

ELEMENT = 4
"""Bytes of a float32."""


def search_network(
    space: SearchSpace,
    channels: int,
    cells: int,
    partial_channels: int,
    image_size: int,
    *,
    needs_weights: bool,
) -> int:
    """Bytes per image of a super-network; without weight gradients the first cells do less."""
    if space.macro == "nas-bench-201":
        return _nas_bench_201(space, channels, cells, image_size)
    size = Size(3 * channels, image_size, image_size)
    total = _stem(image_size, size, needs_weights)
    before, reduced = [size, size], False
    for index in range(cells):
        reduction = index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        plan = CellPlan(
            channels,
            space.primitives,
            space.nodes,
            reduction,
            ("reduce" if reduced else "conv", "conv"),
            partial_channels,
        )
        found = stages(plan, 1, (before[0], before[1]), element=ELEMENT)
        # The stem's output needs no gradient then, nor does what only leads there.
        idle = [] if needs_weights else [range(2), range(1), range(0)][min(index, 2)]
        total += sum(stage.bytes for stage in found if not _useless(stage, idle))
        side = -(-before[1].height // 2) if reduction else before[1].height
        before, reduced = [before[1], Size(space.nodes * channels, side, side)], reduction
    return total + _head(before[1])


def _useless(stage: Stage, idle: Sequence[int]) -> bool:
    """Whether a stage only serves gradients that nobody asked for."""
    if stage.name == "preprocess backward":
        return len(idle) == 2
    return any(
        stage.name.startswith(f"bundle {state} backward {step}")
        for state in idle
        for step in (2, 3)
    )


def _nas_bench_201(space: SearchSpace, channels: int, cells: int, image_size: int) -> int:
    # A dense convolution moves what a dilated one moves.
    stand_ins = {"nor_conv_1x1": "dil_conv_3x3", "nor_conv_3x3": "dil_conv_5x5"}
    primitives = [stand_ins.get(name, name) for name in space.primitives]
    total = _stem(image_size, Size(channels, image_size, image_size), True)
    for stage in range(3):
        if stage:
            halved = image_size // 2
            before, after = channels * image_size**2, 2 * channels * halved**2
            # Two convolutions and the shortcut's, whose input is the pooled one.
            total += ELEMENT * (_conv(before, after) + _conv(after, after) + _conv(before, after))
            channels, image_size = 2 * channels, halved
        plan = CellPlan(channels, tuple(primitives), space.nodes, False, ("conv",))  # type: ignore[arg-type]
        total += cells * _edges_only(plan, Size(channels, image_size, image_size))
    return total + _head(Size(channels, image_size, image_size))


def mixed_op(primitives: Sequence[str], channels: int, stride: int, image_size: int) -> int:
    """Bytes per image of one edge and the node it feeds."""
    plan = CellPlan(channels, tuple(primitives), 1, stride == 2, ("conv",))  # type: ignore[arg-type]
    return _edges_only(plan, Size(channels, image_size, image_size))


def _edges_only(plan: CellPlan, size: Size) -> int:
    """A cell with one input that is not preprocessed."""
    found = stages(plan, 1, (size, size), element=ELEMENT)
    return sum(stage.bytes for stage in found if not stage.name.startswith("preprocess"))


def derived_network(
    normal: CellTopology, reduce: CellTopology, channels: int, cells: int, image_size: int
) -> int:
    """Bytes per image of a derived network's training step."""
    size = Size(3 * channels, image_size, image_size)
    total = _stem(image_size, size, True)
    before = [size, size]
    for index in range(cells):
        reduction = index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        topology = reduce if reduction else normal
        side = before[1].height
        after = -(-side // 2) if reduction else side
        x, one = channels * side * side, channels * after * after
        elements = sum(_conv(prod(size), x) for size in before)
        for source in {edge.source for edge in topology.edges}:
            here = x if source < topology.inputs else one
            kept = [edge.operation for edge in topology.edges if edge.source == source]
            elements += _derived_bundle(kept, here, one, reduction and source < topology.inputs)
        elements += len(topology.nodes) * one
        total += ELEMENT * elements
        before = [before[1], Size(len(topology.concat) * channels, after, after)]
    return total + _head(before[1])


def _derived_bundle(kept: Sequence[str], x: int, one: int, halved: bool) -> int:
    """The kept edges that leave one state, in elements; reading their z at the nodes included."""
    halves = sum(name.startswith("sep_conv") for name in kept)
    convs = halves + sum(name.startswith("dil_conv") for name in kept)
    convs += halved * kept.count("skip_connect")
    z = (convs + len({name for name in kept if "pool" in name})) * one
    forward = (x if z else 0) + z + 2 * halves * one
    node = len(kept) * one
    backward = 2 * (z + len(kept) * one) + 4 * halves * one + (4 if halves else 2) * x
    return forward + node + backward


def _conv(x: int, z: int, input_gradient: bool = True) -> int:
    """A convolution and its BatchNorm, in elements: as a stage of the cell, with the next's read.

    Forward reads x and writes z; backward reads z and its gradient for the norm's sums, then
    again, with x, for the gradients.
    """
    return (3 if input_gradient else 2) * x + 5 * z


def _stem(image_size: int, size: Size, needs_weights: bool) -> int:
    images, z = 3 * image_size**2, prod(size)
    return ELEMENT * (_conv(images, z, False) if needs_weights else images + z)


def _head(size: Size) -> int:
    """Pooling reads the last cell's output; its backward writes the gradient."""
    return ELEMENT * 2 * prod(size)
