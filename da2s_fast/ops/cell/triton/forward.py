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

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from da2s_fast.kernels import schedule
from da2s_fast.kernels.cell import convolve, mix, prepare
from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
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
from da2s_fast.ops.cell.triton.packs import Rows
from da2s_fast.ops.cell.triton.tables import Round, Tables, tables_of


class Settings(NamedTuple):
    """What decides about launches besides the tensors' types, shapes and strides.

    Attributes:
        key: of `layout_of`.
        frozen: norms whose statistics are given.
        eps: of the norms.
        tf32: float32 may be rounded to TF32 in products; both passes do the same.
    """

    key: tuple[tuple[int, ...], int, tuple[tuple[int, ...], ...], bool]
    frozen: tuple[int, ...]
    eps: float
    tf32: bool


def settings_of(  # noqa: PLR0917 - the schema's arguments
    inputs: Sequence[Tensor],
    plan: Sequence[int],
    frozen: Sequence[int],
    eps: float,
    save: bool,
    tf32: bool,
) -> Settings:
    """From the arguments of either operator."""
    sizes = tuple([tuple(x.shape[1:]) for x in inputs])
    return Settings((tuple(plan), inputs[-1].shape[0], sizes, save), tuple(frozen), eps, tf32)


@dataclass
class Call:
    """What both passes work on; slots stand for the tensors.

    Attributes:
        layout: where everything is.
        tables: what programs do.
        inputs: as given.
        p: (edges, operations).
        g: (edges,) or None.
        weights: flat, in the arithmetic's type.
        states: flat.
        z: flat.
        moments: flat, float64; None where all statistics are known.
        statistics: flat.
        made: counters of csrc/cuda's forward kernel; None where nobody counts.
        eps: of the norms.
        known: all statistics are known.
        tf32: see `Settings`.
    """

    layout: Layout
    tables: Tables
    inputs: Sequence[Slot]
    p: Slot
    g: Slot | None
    weights: Slot
    states: Slot
    z: Slot
    moments: Slot | None
    statistics: Slot
    made: Slot | None
    eps: float
    known: bool
    tf32: bool

    @cached_property
    def compiled(self) -> bool:
        """Whether csrc/cuda's kernel makes the nodes."""
        making = self.tables.making
        return compiled.nodes_reason(self.layout, making, self.p, self.g, self.z) is None

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
    settings = settings_of(inputs, plan, frozen, eps, save, rounds_to_tf32())
    layout = layout_of(*settings.key)
    cell_plan = layout.plan
    if frozen:
        statistics = torch.cat([value.to(dtype) for value in running])
    else:
        statistics = x.new_empty((layout.norms[-1],), dtype=dtype)
    saved = x.new_empty((layout.saved_size + TF32_MARK * settings.tf32,), dtype=dtype)
    if weights:
        torch.cat([w.reshape(-1) for w in weights], out=saved[: layout.weights[-1]])
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


def by_name(inputs: Sequence[Tensor], p: Tensor, g: Tensor | None) -> dict[Hashable, Tensor]:
    """What both passes are given, by the names of their slots."""
    return {**dict(enumerate(inputs)), "p": p, **({} if g is None else {"g": g})}


def call_of(slots: Mapping[Hashable, Slot], settings: Settings, *, backward: bool) -> Call:
    """What a pass works on, from the slots of its tensors; z has its own if it is not saved."""
    layout, saved = layout_of(*settings.key), slots["saved"]
    return Call(
        layout,
        tables_of(*settings.key, settings.frozen, backward, saved.device),
        [slots[place] for place in range(layout.plan.inputs)],
        slots["p"],
        slots.get("g"),
        saved,
        saved.narrow(0, layout.states_start, layout.states_size),
        slots.get("z") or saved.narrow(0, layout.z_start, layout.z_size),
        slots.get("moments"),
        slots["statistics"],
        slots.get("made"),
        settings.eps,
        known=backward,
        tf32=settings.tf32,
    )


def _forward(slots: Mapping[Hashable, Slot], settings: Settings) -> None:
    """All launches."""
    call = call_of(slots, settings, backward=False)
    _prepare(call)
    if call.compiled:
        _make_nodes(call, sum(call.tables.making.lengths), slots["output"])
        return
    for step in call.tables.rounds:
        _layers(call, step)
        _mix(call, step, slots["output"])


def _prepare(call: Call) -> None:
    """The input states; their convolutions are where the first z will be."""
    layout, plan, tables = call.layout, call.layout.plan, call.tables
    options = call.products(plan.channels)
    blocks = cdiv(plan.channels, options["BLOCK"])
    common = {
        "inputs": tuple(call.inputs),
        "strides": call.strides,
        "sizes": call.sizes,
        "scratch": call.z,
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
        counters=call.made if call.compiled else None,
        COUNTERS=layout.counters,
        EPS=call.eps,
        CHUNKS=layout.chunks,
        PIXELS=options["PIXELS"],
        BLOCK=options["BLOCK"],
        **common,
    )


def layers_again(call: Call, place: int) -> None:
    """Layers of a node in the backward pass, which has the last node in the first place."""
    if call.compiled:
        _make_nodes(call, call.tables.making.lengths[place], None)
    else:
        _layers(call, call.tables.rounds[-1 - place])


def _make_nodes(call: Call, length: int, output: Slot | None) -> None:
    """So many tasks of csrc/cuda's kernel, from where the launch before ended."""
    layout, plan, tasks = call.layout, call.layout.plan, call.tables.making
    if not length:
        return
    area = call.area(plan.inputs)
    tiles = area.pop("tiles_per_chunk")
    launch(
        compiled.NODES,
        (layout.chunks * length, 1),
        tasks=tasks.tasks.table,
        waits=tasks.waits.table,
        counters=call.made,
        packs=tasks.packs.table,
        layers=tasks.layers.table,
        mixes=tasks.mixes.table,
        mixed=tasks.mixed.table,
        states=call.states,
        z=call.z,
        weights=call.weights,
        p_weights=call.p,
        g_weights=call.g,
        moments=call.moments,
        statistics=call.statistics,
        output=output,
        output_strides=output.stride() if output else (0, 0, 0, 0),
        chunk_pixels=tiles * layout.tile,
        eps=call.eps,
        images=layout.batch,
        chunks=layout.chunks,
        operations=len(plan.operations),
        pitch=plan.channels,
        known=call.known,
        type=compiled.OUTPUT_TYPES.index(output.dtype) if output else 0,
        **area,
        **compiled.nodes_arguments(layout, tasks, call.z.device),
    )


def _layers(call: Call, step: Round) -> None:
    """First and second layers of the edges that enter a node, and pools."""
    if step.first.length:
        _convolve(call, step.node, step.first, second=False)
    if step.second.length:
        _convolve(call, step.node, step.second, second=True)


def _convolve(call: Call, node: int, own: Rows, second: bool) -> None:
    layout, plan = call.layout, call.layout.plan
    options = call.products(plan.mixed_channels)
    launch(
        convolve.convolve,
        (layout.chunks, own.length, cdiv(plan.mixed_channels, options["BLOCK"])),
        **launched_as(
            "convolve, second layers of few channels" if call.few and second else "convolve",
            call.states.device,
            options["PIXELS"] * options["BLOCK"],
        ),
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


def mixed_tile(pixels: int, blocks: int, tile: int) -> int:
    """Pixels of a program that mixes candidates: up to four tiles if enough programs are left.

    Every program adds up all chunks' moments of every candidate.
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
    tile = mixed_tile(layout.pixels(step.node), blocks, layout.tile)
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
