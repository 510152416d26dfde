"""The last launches of `cell_backward`: gradients of the inputs, then sums over the chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from da2s_fast.kernels.cell import finish as kernels
from da2s_fast.kernels.cell import prepare_backward
from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops._triton import launched_as
from da2s_fast.ops.cell.triton.call import Call, cdiv
from da2s_fast.ops.cell.triton.tiling import ENOUGH_PROGRAMS, block_of

# What a program of `finish` reads at once: of so many chunks at most, so many numbers together;
# of sums for the mixture so many.
_ADDED_CHUNKS, _ADDED = 16, 2048
_SUMMED = 1024


class Collected(NamedTuple):
    """What a backward pass collects; slots stand for the tensors.

    Attributes:
        gradients: of the states, and rooms for others; flat.
        sums: of gradients, partial; flat, float64.
        weight_gradients: (chunks, weights), flat; empty where nobody wants them.
        for_weights: whether somebody does.
    """

    gradients: Slot
    sums: Slot
    weight_gradients: Slot
    for_weights: bool


class _Share(NamedTuple):
    """What a program takes on.

    Attributes:
        tiles: of pixels.
        blocks: of channels.
    """

    tiles: int
    blocks: int


def _share_of(tiles: int, blocks: int) -> _Share:
    """As much as leaves enough programs: several tiles with all blocks, or one with some."""
    groups = min(blocks, cdiv(ENOUGH_PROGRAMS, tiles))
    return _Share(max(1, tiles // ENOUGH_PROGRAMS), cdiv(blocks, groups))


def leave(call: Call, collected: Collected, found: Sequence[Slot | None]) -> None:
    """Gradients of the inputs, where a place is given, and of the preprocessing's weights."""
    layout, plan = call.layout, call.layout.plan
    options = call.products(plan.channels)
    tiles = cdiv(layout.pixels(0), options["PIXELS"])
    in_blocks = [cdiv(x.shape[1], options["BLOCK"]) for x in call.inputs]
    parts = [{"identity": 0, "conv": 1, "reduce": 2}[kind] for kind in plan.preprocess]
    tasks = len(found) + sum(parts) * collected.for_weights
    shares = [_share_of(tiles, own) for own in in_blocks]
    programs = [
        cdiv(tiles, share.tiles) * cdiv(own, share.blocks) * max(1, count) * (to is not None)
        for share, own, count, to in zip(shares, in_blocks, parts, found, strict=True)
    ]
    pulled = layout.image_chunks * cdiv(plan.channels, options["BLOCK"])
    pulled_blocks = _share_of(pulled, max(in_blocks)).blocks
    pulling = pulled * cdiv(max(in_blocks), pulled_blocks) * (tasks > len(found))
    most = max(*programs, pulling)
    if not most:
        return
    kernel = "leave"
    if options["DOT"] and 2 in parts:
        kernel = "leave, FactorizedReduce in tensor shapes"
    elif options["DOT"] and options["PRECISION"] == "ieee":
        kernel = "leave, tensor shapes in float32"
    height, width = layout.before
    launch(
        prepare_backward.leave,
        (most, tasks),
        **launched_as(kernel, call.states.device),
        table=call.tables.parts.table,
        inputs=tuple(call.inputs),
        strides=call.strides,
        sizes=call.sizes,
        to=tuple(found),
        to_strides=tuple(None if to is None else to.stride() for to in found),
        cins=tuple(x.shape[1] for x in call.inputs),
        firsts=tuple(sum(parts[:position]) for position in range(len(parts))),
        programs=tuple(programs),
        tiles=tuple(share.tiles for share in shares),
        blocks=tuple(share.blocks for share in shares),
        pulling_programs=pulling,
        pulled_blocks=pulled_blocks,
        state_gradients=tuple(layout.gradients[: plan.inputs]),
        weights=call.weights,
        weight_gradients=collected.weight_gradients,
        states=call.states,
        gradients=collected.gradients,
        statistics=call.statistics,
        sums=collected.sums,
        pixels=layout.pixels(0),
        height=height,
        width=width,
        channels=plan.channels,
        weight_count=layout.weights[-1],
        images=layout.images,
        PARTS=sum(own << 2 * position for position, own in enumerate(parts)),
        WEIGHTS=tasks > len(found),
        EPS=call.eps,
        CHUNKS=layout.image_chunks,
        **options,
    )


def finish(
    call: Call,
    collected: Collected,
    grad_p: Slot | None,
    grad_g: Slot | None,
    grad_weights: Slot | None,
) -> None:
    """Add up the chunks: gradients of p, g and the weights, flat."""
    layout, plan = call.layout, call.layout.plan
    block = block_of(plan.mixed_channels)
    weight_count = layout.weights[-1]
    edges = 0 if grad_p is None and grad_g is None else len(plan.edges)
    chunks = min(layout.image_chunks, _ADDED_CHUNKS)
    blocks = 0 if grad_weights is None else cdiv(weight_count, _ADDED // chunks)
    if not edges + blocks:
        return
    rows = call.tables.candidates.length // len(plan.edges)
    launch(
        kernels.finish,
        (edges + blocks,),
        **launched_as("finish", call.states.device),
        table=call.tables.candidates.table,
        edges=edges,
        p_weights=call.p,
        g_weights=call.g,
        operations=len(plan.operations),
        statistics=call.statistics,
        sums=collected.sums,
        weight_gradients=collected.weight_gradients,
        weight_count=weight_count,
        to_p=grad_p,
        to_g=grad_g,
        to_weights=grad_weights,
        channels=plan.mixed_channels,
        EPS=call.eps,
        CHUNKS=layout.image_chunks,
        BLOCK=block,
        ROWS=rows,
        ROW_CHUNKS=max(1, min(layout.image_chunks, _SUMMED // (rows * block))),
        ADDED=_ADDED // chunks,
        ADDED_CHUNKS=chunks,
        OPERATIONS=power_of_two([len(plan.operations)]),
    )


def power_of_two(numbers: Sequence[int]) -> int:
    """The least power of two that is no less than all numbers."""
    return 1 << (max([1, *numbers]) - 1).bit_length()
