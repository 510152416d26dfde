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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from da2s_fast.kernels.cell import convolve, mix, prepare
from da2s_fast.kernels.launch import launch
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import launched_as, precision_of, rounds_to_tf32
from da2s_fast.ops.cell.operator import accumulation_dtype
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.layout import (
    ENOUGH_PROGRAMS,
    TF32_MARK,
    Layout,
    block_of,
    layout_of,
)
from da2s_fast.ops.cell.triton.tables import Packs, Round, Rows, Tables, tables_of


@dataclass
class Call:
    """What both passes work on.

    Attributes:
        layout: where everything is.
        tables: what programs do.
        inputs: as given.
        p: (edges, operations).
        g: (edges,) or None.
        weights: flat, in the arithmetic's type.
        states: flat.
        z: flat.
        moments: flat, float64.
        statistics: flat.
        eps: of the norms.
        known: all statistics are known.
        tf32: float32 may be rounded to TF32 in products; both passes do the same.
    """

    layout: Layout
    tables: Tables
    inputs: Sequence[Tensor]
    p: Tensor
    g: Tensor | None
    weights: Tensor
    states: Tensor
    z: Tensor
    moments: Tensor
    statistics: Tensor
    eps: float
    known: bool
    tf32: bool

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Of the inputs."""
        return tuple(x.stride() for x in self.inputs)

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Height and width of the inputs."""
        return tuple(tuple(x.shape[2:]) for x in self.inputs)

    def products(self, channels: int) -> dict[str, Any]:
        """How products over so many channels are taken, by kernel parameter.

        Below 16 channels, and in double precision, tensor shapes would be mostly empty, or are not
        there: sums of products then.
        """
        block = block_of(channels)
        exact = self.states.dtype == torch.float64
        return {
            "DOT": block >= 16 and not exact,
            "PRECISION": precision_of(self.inputs[-1].dtype, self.tf32),
            "BLOCK": min(block, 16) if exact else block,
            "PIXELS": self.layout.tile,
        }

    @property
    def few(self) -> bool:
        """Whether candidates see few channels, in the terms of `kernels.tuning`."""
        few = block_of(self.layout.plan.mixed_channels) < 16
        return few and self.states.dtype == torch.float32

    def area(self, state: int) -> dict[str, int]:
        """A state's size, by kernel parameter."""
        height, width = self.layout.size(state)
        pixels = self.layout.pixels(state)
        return {
            "pixels": pixels,
            "height": height,
            "width": width,
            "tiles_per_chunk": self.layout.tiles_per_chunk(pixels),
        }


def cdiv(a: int, b: int) -> int:
    """Division, rounded up."""
    return -(-a // b)


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
    key = tuple(plan), x.shape[0], tuple(tuple(y.shape[1:]) for y in inputs), save
    layout = layout_of(*key)
    cell_plan = layout.plan
    if frozen:
        statistics = torch.cat([value.to(dtype) for value in running])
    else:
        statistics = x.new_empty((layout.norms[-1],), dtype=dtype)
    tf32 = rounds_to_tf32()
    saved = x.new_empty((layout.saved_size + TF32_MARK * tf32,), dtype=dtype)
    if weights:
        torch.cat([w.reshape(-1) for w in weights], out=saved[: layout.weights[-1]])
    call = Call(
        layout,
        tables_of(*key, tuple(frozen), False, x.device),
        inputs,
        p,
        g,
        saved,
        saved[layout.states_start :],
        saved[layout.z_start :] if save else x.new_empty((layout.z_size,), dtype=dtype),
        x.new_empty((layout.moments_size,), dtype=torch.float64),
        statistics,
        eps,
        known=False,
        tf32=tf32,
    )
    height, width = layout.after
    output = x.new_empty(
        (x.shape[0], cell_plan.outputs * cell_plan.channels, height, width)
    ).contiguous(memory_format=memory_format_of(inputs[0]))
    _prepare(call)
    for step in call.tables.rounds:
        layers(call, step)
        _mix(call, step, output)
    return output, statistics, saved


def _prepare(call: Call) -> None:
    """The input states."""
    layout, plan, tables = call.layout, call.layout.plan, call.tables
    scratch = call.states.new_empty((layout.prepared[1],))
    options = call.products(plan.channels)
    blocks = cdiv(plan.channels, options["BLOCK"])
    common = {
        "inputs": tuple(call.inputs),
        "strides": call.strides,
        "sizes": call.sizes,
        "scratch": scratch,
        "moments": call.moments,
        "channels": plan.channels,
        **call.area(0),
    }
    if tables.parts.length:
        launch(
            prepare.prepare,
            (layout.chunks, tables.parts.length, blocks),
            **launched_as("prepare", call.states.device),
            table=tables.parts.table,
            weights=call.weights,
            **common,
            **options,
        )
    launch(
        prepare.settle,
        (cdiv(layout.pixels(0), options["PIXELS"]), tables.inputs.length, blocks),
        **launched_as("settle", call.states.device),
        table=tables.inputs.table,
        statistics=call.statistics,
        states=call.states,
        EPS=call.eps,
        CHUNKS=layout.chunks,
        PIXELS=options["PIXELS"],
        BLOCK=options["BLOCK"],
        **common,
    )


def layers(call: Call, step: Round) -> None:
    """First and second layers of the edges that enter a node, and pools."""
    layout, plan = call.layout, call.layout.plan
    options = call.products(plan.mixed_channels)
    for second, own in enumerate((step.first, step.second)):
        if not own.length:
            continue
        packs = step.second_packs if second else step.first_packs
        reason = compiled.convolve_reason(layout, packs, bool(second), call.z.dtype, call.z.device)
        if reason is None:
            _convolve_compiled(call, step, own, packs, bool(second))
            continue
        launch(
            convolve.convolve,
            (layout.chunks, own.length, cdiv(plan.mixed_channels, options["BLOCK"])),
            **launched_as(
                "convolve, second layers of few channels" if call.few and second else "convolve",
                call.states.device,
                options["PIXELS"] * options["BLOCK"],
            ),
            table=own.table,
            source=call.z if second else call.states,
            z=call.z,
            weights=call.weights,
            moments=call.moments,
            statistics=call.statistics,
            channels=plan.mixed_channels,
            pitch=plan.mixed_channels if second else plan.channels,
            HALVES=layout.halves,
            DENSES=layout.denses and not second,
            SECOND=bool(second),
            KNOWN=call.known,
            EPS=call.eps,
            CHUNKS=layout.chunks,
            **call.area(step.node),
            **options,
        )


def _convolve_compiled(call: Call, step: Round, own: Rows, packs: Packs, second: bool) -> None:
    """What `convolve` computes, by the kernel of csrc/cuda."""
    layout, plan = call.layout, call.layout.plan
    area = call.area(step.node)
    launch(
        compiled.CONVOLVE,
        (layout.chunks, packs.rows.length),
        table=own.table,
        packs=packs.rows.table,
        source=call.z if second else call.states,
        z=call.z,
        weights=call.weights,
        moments=call.moments,
        statistics=call.statistics,
        pixels=area["pixels"],
        chunk_pixels=area["tiles_per_chunk"] * layout.tile,
        eps=call.eps,
        height=area["height"],
        width=area["width"],
        pitch=plan.mixed_channels if second else plan.channels,
        known=call.known,
        **compiled.convolve_arguments(layout, packs, second),
    )


def mixed_tile(pixels: int, blocks: int, tile: int) -> int:
    """Pixels of a program that mixes candidates: up to four tiles if enough programs are left.

    Every program adds up all chunks' moments of every candidate.
    """
    larger = (4 * tile, 2 * tile)
    return next((t for t in larger if cdiv(pixels, t) * blocks >= ENOUGH_PROGRAMS), tile)


def _mix(call: Call, step: Round, output: Tensor) -> None:
    """A node, and its part of the output."""
    layout, plan = call.layout, call.layout.plan
    block = block_of(plan.mixed_channels)
    place = step.node - (len(plan.states) - plan.outputs)
    part = output.narrow(1, max(place, 0) * plan.channels, plan.channels)
    blocks = cdiv(plan.mixed_channels, block)
    tile = mixed_tile(layout.pixels(step.node), blocks, layout.tile)
    launch(
        mix.mix,
        (cdiv(layout.pixels(step.node), tile), blocks),
        **launched_as("mix", call.states.device, tile * block),
        table=step.mixed.table,
        rows=step.mixed.length,
        p_weights=call.p,
        g_weights=call.g,
        operations=len(plan.operations),
        states=call.states,
        z=call.z,
        moments=call.moments,
        statistics=call.statistics,
        to_state=call.states[layout.states[step.node] :],
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
