"""The least bytes of every case, per image and step: the other half of the limit.

Counted as in da2s_fast/ops/cell/cost.py: a tensor that crosses a barrier is written once and read
once per stage that needs it; what happens between two barriers stays in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from da2s_fast.nn.super_network import IMAGENET_SIZE
from da2s_fast.nn.topology import CellTopology
from da2s_fast.ops.cell.cost import Size, Stage, stages
from da2s_fast.ops.cell.plan import CellPlan, PreprocessKind
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
    total, before = stems(channels, image_size, needs_weights)
    reduced = before[0] != before[1]
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
        found = stages(plan, 1, before, element=ELEMENT)
        # The stem's output needs no gradient then, nor does what only leads there.
        idle = [] if needs_weights else [range(2), range(1), range(0)][min(index, 2)]
        total += sum(stage.bytes for stage in found if not _useless(stage, idle))
        side = -(-before[1].height // 2) if reduction else before[1].height
        before, reduced = [before[1], Size(space.nodes * channels, side, side)], reduction
    return total + _head(before[1])


def stems(channels: int, image_size: int, needs_weights: bool) -> tuple[int, list[Size]]:
    """Bytes per image of a super-network's stem, and the sizes of the first cell's inputs."""
    if image_size < IMAGENET_SIZE:
        size = Size(3 * channels, image_size, image_size)
        return _stem(image_size, size, needs_weights), [size, size]
    half = -(-image_size // 2)
    sizes = [Size(channels // 2, half, half)]
    for _ in range(2):
        half = -(-half // 2)
        sizes.append(Size(channels, half, half))
    total = _stem(image_size, sizes[0], needs_weights)
    for x, z in pairwise(map(prod, sizes)):
        total += ELEMENT * (_conv(x, z) if needs_weights else x + z)
    return total, sizes[1:]


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
    total = _stem(image_size, Size(channels, image_size, image_size), True)
    for stage in range(3):
        if stage:
            halved = image_size // 2
            before, after = channels * image_size**2, 2 * channels * halved**2
            # Two convolutions and the shortcut's, whose input is the pooled one.
            total += ELEMENT * (2 * _conv(before, after) + _conv(after, after))
            channels, image_size = 2 * channels, halved
        plan = CellPlan(
            channels,
            space.primitives,
            space.nodes,
            False,
            ("identity",),
            output_nodes=1,
            pool_norm=False,
        )
        total += cells * _cell(plan, [Size(channels, image_size, image_size)])
    return total + _head(Size(channels, image_size, image_size))


def mixed_op(primitives: Sequence[str], channels: int, stride: int, image_size: int) -> int:
    """Bytes per image of one edge and the node it feeds."""
    plan = CellPlan(channels, tuple(primitives), 1, stride == 2, ("identity",))
    return _cell(plan, [Size(channels, image_size, image_size)])


def derived_network(
    normal: CellTopology, reduce: CellTopology, channels: int, cells: int, image_size: int
) -> int:
    """Bytes per image of a derived network's training step."""
    size = Size(3 * channels, image_size, image_size)
    total = _stem(image_size, size, True)
    before, reduced = [size, size], False
    for index in range(cells):
        reduction = index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        topology = reduce if reduction else normal
        total += _cell(_cut(topology, channels, reduction, reduced), before)
        side = -(-before[1].height // 2) if reduction else before[1].height
        before = [before[1], Size(len(topology.concat) * channels, side, side)]
        reduced = reduction
    return total + _head(before[1])


def _cut(topology: CellTopology, channels: int, reduction: bool, reduced: bool) -> CellPlan:
    """A derived cell as a search cell of which only the kept operations run."""
    names = tuple(sorted({edge.operation for edge in topology.edges}))
    kept = {
        (edge.source, topology.inputs + node): names.index(edge.operation)
        for node, edges in enumerate(topology.nodes)
        for edge in edges
    }
    kinds: tuple[PreprocessKind, PreprocessKind] = ("reduce" if reduced else "conv", "conv")
    whole = CellPlan(channels, names, len(topology.nodes), reduction, kinds, pool_norm=False)
    pairs = [(edge.source, edge.target) for edge in whole.edges]
    return replace(whole, active=tuple((kept[pair],) if pair in kept else () for pair in pairs))


def _cell(plan: CellPlan, inputs: Sequence[Size]) -> int:
    return sum(stage.bytes for stage in stages(plan, 1, inputs, element=ELEMENT))


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
