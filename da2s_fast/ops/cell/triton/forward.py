"""The operator `cell` on GPUs, launch by launch: see `da2s_fast.ops.cell.reference` for the stages.

    preprocess the inputs                                      | barrier: their statistics
    the input states
    for each node:
        first layers of the edges that enter it, pools         | barrier: statistics of z1
        second layers of separable convolutions                | barrier: statistics of z
        the node: its candidates mixed

A launch ends where a barrier stands; whoever comes behind it merges the chunks' moments itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from da2s_fast.kernels import schedule
from da2s_fast.kernels.cell import convolve, mix, prepare
from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import launched_as, rounds_to_tf32
from da2s_fast.ops.cell.operator import accumulation_dtype
from da2s_fast.ops.cell.triton.call import Call, Settings, by_name, call_of, cdiv, settings_of
from da2s_fast.ops.cell.triton.layout import TF32_MARK, layout_of
from da2s_fast.ops.cell.triton.nodes import make_nodes
from da2s_fast.ops.cell.triton.packs import Rows
from da2s_fast.ops.cell.triton.tables import Round
from da2s_fast.ops.cell.triton.tiling import ENOUGH_PROGRAMS, block_of

_MERGED = 1024
"""Numbers of moments that `settle` reads at once: with more it would have more registers."""


def cell(  # noqa: PLR0917 - the schema's arguments
    inputs: list[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: list[Tensor],
    running: list[Tensor],
    frozen: list[int],
    plan: list[int],
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the statistics, and what `cell_backward` needs: weights, states and z."""
    x = inputs[-1]
    dtype = accumulation_dtype(x.dtype)
    settings = settings_of(inputs, plan, frozen, eps, save, rounds_to_tf32())
    layout = layout_of(*settings.key)
    cell_plan = layout.plan
    if frozen:
        statistics = torch.cat([value.to(dtype) for value in running])
    else:
        statistics = x.new_empty((layout.norms[-1],), dtype=dtype)
    saved = x.new_empty((layout.saved_size + TF32_MARK * settings.tf32,), dtype=dtype)
    if weights:
        # A copy more on the device, for hundreds of views less that Python makes.
        torch.cat([_flatten_dense_tensors(weights)], out=saved[: layout.weights[-1]])
    height, width = layout.after
    output = x.new_empty(
        (x.shape[0], cell_plan.outputs * cell_plan.channels, height, width)
    ).contiguous(memory_format=memory_format_of(inputs[0]))
    tensors: dict[Hashable, Tensor] = {
        **by_name(inputs, p, g),
        "saved": saved,
        "statistics": statistics,
        "output": output,
        "moments": x.new_empty((layout.moments_size,), dtype=torch.float64),
        "made": x.new_empty((layout.counters,), dtype=torch.int32),
    }
    if not save:
        tensors["z"] = x.new_empty((layout.z_size,), dtype=dtype)
    schedule.start(_forward, tensors, settings)
    return output, statistics, saved


def _forward(slots: Mapping[Hashable, Slot], settings: Settings) -> None:
    """All launches."""
    call = call_of(slots, settings, backward=False)
    _prepare(call)
    if call.compiled:
        make_nodes(call, sum(call.tables.making.lengths), slots["output"])
        return
    for step in call.tables.rounds:
        _layers(call, step)
        _mix(call, step, slots["output"])


def _prepare(call: Call) -> None:
    """The input states; their convolutions are where the first z will be."""
    layout, plan, tables = call.layout, call.layout.plan, call.tables
    options = call.products(plan.channels)
    blocks = cdiv(plan.channels, options["BLOCK"])
    common: dict[str, Any] = {
        "inputs": tuple(call.inputs),
        "strides": call.strides,
        "sizes": call.sizes,
        "scratch": call.z,
        "moments": call.input_moments,
        "channels": plan.channels,
        **call.area(0),
        "tiles_per_chunk": cdiv(layout.pixels(0), layout.tile * layout.input_chunks),
    }
    if tables.parts.length:
        launch(
            prepare.prepare,
            (layout.input_chunks, tables.parts.length, blocks),
            **launched_as(
                "prepare, tensor shapes" if options["DOT"] else "prepare", call.states.device
            ),
            table=tables.parts.table,
            weights=call.weights,
            **common,
            **options,
        )
    tile = larger_tile(layout.pixels(0), tables.inputs.length * blocks, layout.tile)
    launch(
        prepare.settle,
        (cdiv(layout.pixels(0), tile), tables.inputs.length, blocks),
        **launched_as("settle", call.states.device, tile * options["BLOCK"] // 8),
        table=tables.inputs.table,
        statistics=call.statistics,
        states=call.states,
        counters=call.made if call.compiled else None,
        COUNTERS=layout.counters,
        EPS=call.eps,
        CHUNKS=layout.input_chunks,
        MERGED=max(1, min(layout.input_chunks, _MERGED // options["BLOCK"])),
        PIXELS=tile,
        CHUNK_PIXELS=options["PIXELS"],
        BLOCK=options["BLOCK"],
        **common,
    )


def layers_again(call: Call, place: int) -> None:
    """Layers of a node in the backward pass, which has the last node in the first place."""
    if call.compiled:
        make_nodes(call, call.tables.making.lengths[place], None)
    else:
        _layers(call, call.tables.rounds[-1 - place])


def _layers(call: Call, step: Round) -> None:
    """First and second layers of the edges that enter a node, and pools."""
    if step.first.length:
        _convolve(call, step.node, step.first, second=False)
    if step.second.length:
        _convolve(call, step.node, step.second, second=True)


def _convolve(call: Call, node: int, own: Rows, second: bool) -> None:
    layout, plan = call.layout, call.layout.plan
    options = call.products(plan.mixed_channels)
    kernel = "convolve"
    if options["DOT"] and not call.known:
        kernel = "convolve, tensor shapes and moments"
    elif call.few and second:
        kernel = "convolve, second layers of few channels"
    launch(
        convolve.convolve,
        (layout.chunks, own.length, cdiv(plan.mixed_channels, options["BLOCK"])),
        **launched_as(kernel, call.states.device, options["PIXELS"] * options["BLOCK"]),
        channels=plan.mixed_channels,
        HALVES=layout.halves,
        DENSES=layout.denses and not second,
        SECOND=second,
        KNOWN=call.known,
        EPS=call.eps,
        CHUNKS=layout.chunks,
        table=own.table,
        source=call.z if second else call.states,
        z=call.z,
        weights=call.weights,
        moments=call.moments,
        statistics=call.statistics,
        pitch=plan.mixed_channels if second else plan.channels,
        **call.area(node),
        **options,
    )


def larger_tile(pixels: int, blocks: int, tile: int) -> int:
    """Pixels of a program that merges moments: up to four tiles if enough programs are left.

    Every program adds up all chunks' moments of what it normalizes.

    Args:
        pixels: of all programs together.
        blocks: programs for each tile.
        tile: pixels of others' tiles.
    """
    larger = (4 * tile, 2 * tile)
    return next((t for t in larger if cdiv(pixels, t) * blocks >= ENOUGH_PROGRAMS), tile)


def _mix(call: Call, step: Round, output: Slot) -> None:
    """A node, and its part of the output."""
    layout, plan = call.layout, call.layout.plan
    block = block_of(plan.mixed_channels)
    place = step.node - (len(plan.states) - plan.outputs)
    part = output.narrow(1, max(place, 0) * plan.channels, plan.channels)
    blocks = cdiv(plan.mixed_channels, block)
    tile = larger_tile(layout.pixels(step.node), blocks, layout.tile)
    launch(
        mix.mix,
        (cdiv(layout.pixels(step.node), tile), blocks),
        **launched_as("mix", call.states.device, tile * block),
        table=step.mixed.table,
        candidates=step.candidates,
        rows=step.mixed.length,
        p_weights=call.p,
        g_weights=call.g,
        operations=len(plan.operations),
        states=call.states,
        z=call.z,
        moments=call.moments,
        statistics=call.statistics,
        to_state=call.states.narrow(
            0, layout.states[step.node], layout.pixels(step.node) * plan.channels
        ),
        output=part,
        output_strides=part.stride(),
        channels=plan.mixed_channels,
        SHUFFLED=plan.partial_channels,
        HALVES=layout.halves,
        HAS_OUTPUT=place >= 0,
        KNOWN=call.known,
        EPS=call.eps,
        PIXELS=tile,
        CHUNK_PIXELS=layout.tile,
        CHUNKS=layout.chunks,
        BLOCK=block,
        **call.area(step.node),
    )
