"""The launch of csrc/cuda's forward kernel, which takes the place of several of Triton's."""

from __future__ import annotations

from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.call import Call


def make_nodes(call: Call, length: int, output: Slot | None) -> None:
    """So many tasks of csrc/cuda's kernel, from where the launch before ended."""
    layout, plan, tasks = call.layout, call.layout.plan, call.tables.making
    if not length:
        return
    area = call.area(plan.inputs)
    del area["tiles_per_chunk"]  # here a chunk is so many pixels
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
