"""The kernels of csrc/cuda for stages of the cell, where they beat Triton's by their meters.

They read the tables of `tables` and leave behind what Triton's kernels do, so either can take a
launch. docs/gpu_meters.md shows both.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch

from da2s_fast.kernels.launch import CudaKernel
from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops._backend import define_operator, has_kernel
from da2s_fast.ops._triton import tuned
from da2s_fast.ops.cell.operations import DENSE
from da2s_fast.ops.cell.triton.layout import Layout
from da2s_fast.ops.cell.triton.node_tasks import NodeTasks
from da2s_fast.ops.cell.triton.packs import Windows, most_rows
from da2s_fast.ops.cell.triton.reach_tasks import ReachTasks

# grid: programs along its axes. shared: bytes of shared memory. The rest is `Nodes` of csrc/cuda.
_NODES = define_operator(
    "cell_nodes(int[] grid, Tensor tasks, Tensor waits, Tensor(a!) counters, Tensor packs, "
    "Tensor layers, Tensor mixes, Tensor mixed, Tensor(b!) states, Tensor(c!) z, Tensor weights, "
    "Tensor p_weights, Tensor? g_weights, Tensor(d!)? moments, Tensor(e!) statistics, "
    "Tensor(f!)? output, int[] output_strides, int pixels, int chunk_pixels, float eps, "
    "int height, int width, int images, int chunks, int operations, int pitch, bool known, "
    "int type, int halo, int second_halo, int taps, int log_width, int log_height, "
    "int log_images, int channels, int shared) -> ()"
)
# Likewise `Reach`; weight_gradients are None where weights want none.
_REACH = define_operator(
    "cell_reach(int[] grid, Tensor tasks, Tensor waits, Tensor(a!) counters, Tensor candidates, "
    "Tensor seconds, Tensor groups, Tensor layers, Tensor states, Tensor z, Tensor(b!) gradients, "
    "Tensor weights, Tensor(c!)? weight_gradients, Tensor p_weights, Tensor? g_weights, "
    "Tensor statistics, Tensor(d!) sums, int pixels, int weight_count, float eps, int height, "
    "int width, int chunks, int images, int operations, int pitch, int halo, int inner_halo, "
    "int taps, int log_width, int log_height, int log_images, bool kept, int channels, "
    "int shared) -> ()"
)
NODES = CudaKernel("cell_nodes", torch.ops.da2s_fast.cell_nodes)
REACH = CudaKernel("cell_reach", torch.ops.da2s_fast.cell_reach)

# As in csrc/cuda/cell/table.cuh and tile.cuh.
_CHANNELS = (4, 8, 16, 32, 64)
_COLUMNS, _WARPS, _WARP = 28, 8, 32
_PROGRAM = 16
"""Numbers of 8 bytes that a program of `REACH` knows of itself."""
_TURN = 4
"""Likewise of `NODES`."""
_TILE = 4096
"""Numbers of z of a whole tile."""
_THREADS = 256
_RUN = 3
"""Least logarithm of a tile's width: a thread's neighbouring outputs of a depthwise convolution."""
_SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes that a program may have, by compute capability; only GPUs know their own."""
_MOST_PIXELS = 1 << 30
"""Of all images: `NODES` counts them in 32 bits, and a tile behind the last."""
_RESERVED = 1 << 10
"""Bytes that CUDA takes for itself, of a multiprocessor's, for every program."""

OUTPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""In the order of csrc/cuda/cell/mix.cuh."""


class Tile(NamedTuple):
    """Logarithms of a tile's extents, in pixels of the output."""

    log_width: int
    log_height: int
    log_images: int

    @property
    def pixels(self) -> int:
        """Of the output."""
        return 1 << sum(self)

    def numbers(self, channels: int) -> int:
        """Of z."""
        return channels * self.pixels

    @property
    def half(self) -> Tile:
        """With half the images, or rows where there is one image."""
        if self.log_images:
            return self._replace(log_images=self.log_images - 1)
        return self._replace(log_height=self.log_height - 1)


_POOL = Windows(halo=1, taps=0, stride=1)
"""Of a pool's outputs."""


def tile_of(
    channels: int,
    size: tuple[int, int],
    images: int,
    memory: int,
    shared_of: Callable[[Tile], int],
) -> Tile:
    """The tile of a program.

    A whole one, as large as threads can take, unless shared memory is short. Rows are whole; there
    are several images only if all of their rows are there.

    Args:
        channels: of a pixel.
        size: height and width of an image of the output.
        images: of a chunk.
        memory: bytes that a program may have.
        shared_of: bytes that it needs for a tile.
    """
    height, width = size
    log_width = max(_RUN, (width - 1).bit_length())
    left = max(0, (_TILE // channels).bit_length() - 1 - log_width)
    log_height = min(left, (height - 1).bit_length())
    tile = Tile(log_width, log_height, min(left - log_height, (images - 1).bit_length()))
    while tile.pixels > 1 << log_width and shared_of(tile) > memory:
        tile = tile.half
    # Two programs of a multiprocessor hide each other's barriers and loads: worth a larger share of
    # halos, as long as half of the threads have a run of two channels.
    several = tile.pixels > 1 << log_width and tile.numbers(channels) > _THREADS << _RUN
    if several and shared_of(tile) > _each_of_two(memory) >= shared_of(tile.half):
        tile = tile.half
    return tile


def _each_of_two(memory: int) -> int:
    """Bytes for each of two programs of a multiprocessor, if one may have `memory`."""
    return (memory + _RESERVED) // 2 - _RESERVED


def _input_of(tile: Tile, windows: Windows, channels: int) -> int:
    """Numbers of a tile's input, with its halo: see csrc/cuda/cell/tile.cuh."""
    rows = ((1 << tile.log_height) - 1) * windows.stride + 1 + 2 * windows.halo
    columns = ((windows.stride << tile.log_width) + windows.halo) | (channels < _WARP)
    return ((rows << tile.log_images) * columns + windows.halo) * channels


def _handed_of(tile: Tile, windows: Windows, height: int, channels: int) -> int:
    """Numbers that a tile hands to the next: see csrc/cuda/cell/layer.cuh."""
    whole = 1 << tile.log_height >= height
    return 0 if whole else (2 * windows.halo << tile.log_width) * channels


def nodes_arguments(layout: Layout, tasks: NodeTasks, device: torch.device) -> dict[str, Any]:
    """What a launch of `NODES` needs to know of a cell, by the operator's parameters."""
    c = layout.plan.mixed_channels
    first, second = tasks.windows, tasks.second_windows
    taps = max(first.taps, second.taps)
    chunk_pixels = layout.tile * layout.tiles_per_chunk(layout.pixels(layout.plan.inputs))
    images = -(-chunk_pixels // prod(layout.after))

    def shared(tile: Tile) -> int:  # `Room` of csrc/cuda/cell/nodes_room.cuh
        rows = most_rows(c)
        between = max(tile.numbers(c), 2 * _THREADS)
        inputs = max(_input_of(tile, first, c), _input_of(tile, second, c))
        mixes = 2 * c * tasks.most + _TILE  # of csrc/cuda/cell/mix.cuh
        singles = c * (2 + rows + 2 * _WARPS) + max((c + taps) * c + between + inputs, mixes)
        return 8 * (rows * (2 * c + _COLUMNS) + _TURN) + 4 * singles

    tile = tile_of(c, layout.after, images, _shared_memory(device), shared)
    return {
        "chunk_pixels": chunk_pixels,
        "halo": first.halo,
        "second_halo": second.halo,
        "taps": taps,
        **tile._asdict(),
        "channels": c,
        "shared": shared(tile),
    }


def reach_arguments(layout: Layout, tasks: ReachTasks, device: torch.device) -> dict[str, Any]:
    """As `nodes_arguments`, for `REACH`."""
    c = layout.plan.mixed_channels
    windows, inner = tasks.windows, tasks.inner_windows
    taps = max(windows.taps, inner.taps)

    def shared(tile: Tile, kept: bool = False) -> int:  # `ReachRoom` of csrc/cuda/cell/reach.cuh
        weights = (c + taps) * c
        small = c * (4 + 2 + 2 * _WARPS)
        numbers = tile.numbers(c) if c > 16 else _TILE
        # In the place of a tile's input halves.cuh has as many numbers as a tile of z.
        inputs = [_input_of(tile, windows, c)]
        for alike in (windows._replace(stride=1), inner):
            handed = _handed_of(tile, alike, layout.after[0], c) if kept else 0
            inputs.append(_input_of(tile, alike, c) + handed)
        pools = 2 * _input_of(tile, _POOL, c)  # `collect_pool` of csrc/cuda/cell/collect.cuh
        # `write_products` and `write_taps` of csrc/cuda/cell/pull.cuh; `coefficients` needs less.
        parts = max(16, taps) * _THREADS
        behind = max(2 * numbers + max(inputs), pools, parts)
        return 8 * (2 * c + _COLUMNS + _PROGRAM) + 4 * (small + weights + behind)

    memory = _shared_memory(device)
    tile = tile_of(c, layout.after, layout.images, memory, shared)
    two = _each_of_two(memory)
    kept = shared(tile, kept=True) <= (two if shared(tile) <= two else memory)
    return {
        "halo": windows.halo,
        "inner_halo": inner.halo,
        "taps": taps,
        **tile._asdict(),
        "kept": kept,
        "channels": c,
        "shared": shared(tile, kept),
    }


def nodes_reason(layout: Layout, tasks: NodeTasks, p: Slot, g: Slot | None, z: Slot) -> str | None:
    """Say why `NODES` cannot take a cell; None where it can."""
    if reason := _reason(layout, p, g, z):
        return reason
    channels = layout.plan.mixed_channels
    if any(name in DENSE for name in layout.plan.operations):
        return "dense convolutions are among the candidates"
    if layout.halves and channels % 8:
        return f"FactorizedReduce has {channels} channels, no multiple of 8"
    if (pixels := layout.pixels(layout.plan.inputs)) > _MOST_PIXELS:
        return f"{pixels} pixels are more than {_MOST_PIXELS}"
    return _shared_reason(nodes_arguments(layout, tasks, z.device), z.device)


def reach_reason(layout: Layout, tasks: ReachTasks, p: Slot, g: Slot | None, z: Slot) -> str | None:
    """Say why `REACH` cannot take a cell; None where it can."""
    if reason := _reason(layout, p, g, z):
        return reason
    return _shared_reason(reach_arguments(layout, tasks, z.device), z.device)


def _reason(layout: Layout, p: Slot, g: Slot | None, z: Slot) -> str | None:
    channels, width = layout.plan.mixed_channels, layout.after[1]
    if reason := _library_reason(z.device):
        return reason
    if z.dtype != torch.float32:
        return f"arithmetic is in {z.dtype}"
    if channels not in _CHANNELS:
        return f"candidates see {channels} channels, which are not among {_CHANNELS}"
    if (width - 1).bit_length() > (_TILE // channels).bit_length() - 1:
        return f"{width} pixels of {channels} channels are more than a tile"
    for name, weights in (("p", p), ("g", g)):
        if weights is not None and weights.dtype != torch.float32:
            return f"{name} is {weights.dtype}"
    return None


def _shared_reason(arguments: dict[str, Any], device: torch.device) -> str | None:
    shared, most = arguments["shared"], _shared_memory(device)
    if shared > most:
        return f"a program would need {shared} bytes of shared memory, and there are {most}"
    return None


def _library_reason(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"a tensor is on {device}"
    return None if has_kernel(_NODES, "cuda") else "the CUDA library was not compiled"


def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may have on a device."""
    if device.type != "cuda":
        return tuned(_SHARED, device)
    properties = torch.cuda.get_device_properties(device)
    # Older torches do not tell how much a program may ask for.
    least = properties.shared_memory_per_block
    return int(getattr(properties, "shared_memory_per_block_optin", least))
