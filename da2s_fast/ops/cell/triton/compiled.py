"""The kernels of csrc/cuda for stages of the cell, where they beat Triton's by their meters.

They read the tables of `tables` and leave behind what Triton's kernels do, so either can take a
launch. docs/gpu_meters.md shows both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from da2s_fast.kernels.launch import CudaKernel
from da2s_fast.ops._backend import define_operator, has_kernel
from da2s_fast.ops.cell.operations import DENSE
from da2s_fast.ops.cell.triton.layout import Layout
from da2s_fast.ops.cell.triton.tables import Packs

# grid: programs along its axes. shared: bytes of shared memory. The rest is csrc/cuda/cell's
# `Convolve`.
_CONVOLVE = define_operator(
    "cell_convolve(int[] grid, Tensor table, Tensor packs, Tensor source, Tensor(a!) z, "
    "Tensor weights, Tensor(b!) moments, Tensor(c!) statistics, int pixels, int chunk_pixels, "
    "float eps, int height, int width, int pitch, bool known, int halo, int taps, int log_width, "
    "int log_height, int log_images, int channels, bool second, int shared) -> ()"
)
CONVOLVE = CudaKernel("cell_convolve", torch.ops.da2s_fast.cell_convolve)

# As in csrc/cuda/cell/table.cuh and tile.cuh.
_CHANNELS = (4, 8, 16, 32, 64)
_MOST_ROWS, _COLUMNS, _WARPS = 8, 28, 8
_TILE = 4096
"""Numbers of z of a tile."""
_RUN = 3
"""Least logarithm of a tile's width."""
_SHARED, _SHARED_OF_TWO = 163 << 10, 81 << 10
"""Bytes that a program may have with compute capability 8.0, and each of two."""


class Tile(NamedTuple):
    """Logarithms of a tile's extents, in pixels of the output."""

    log_width: int
    log_height: int
    log_images: int


def tile_of(channels: int, height: int, width: int, packs: Packs) -> Tile:
    """As large as threads can take, unless shared memory is short.

    Rows are whole; there are several images only if all of their rows are there. Images are left
    out until a multiprocessor has room for two programs, then rows until there is room for one.
    """
    log_width = max(_RUN, (width - 1).bit_length())
    left = max(0, (_TILE // channels).bit_length() - 1 - log_width)
    log_height = min(left, (height - 1).bit_length())
    for log_images in range(left - log_height, -1, -1):
        tile = Tile(log_width, log_height, log_images)
        if shared_of(channels, tile, packs) <= _SHARED_OF_TWO:
            return tile
    for smaller in range(log_height, -1, -1):
        tile = Tile(log_width, smaller, 0)
        if shared_of(channels, tile, packs) <= _SHARED:
            break
    return tile


def shared_of(channels: int, tile: Tile, packs: Packs) -> int:
    """Bytes of a program: `Room` of csrc/cuda/cell/convolve.cuh."""
    rows = ((1 << tile.log_height) - 1) * packs.stride + 1 + 2 * packs.halo
    columns = ((1 << tile.log_width) - 1) * packs.stride + 1 + 2 * packs.halo | 1
    doubles = _MOST_ROWS * (2 * channels + _COLUMNS)
    singles = (
        channels * (2 + _MOST_ROWS + 2 * _WARPS)
        + _TILE
        + 2 * (channels + packs.taps) * channels
        + (rows << tile.log_images) * columns * channels
    )
    return 8 * doubles + 4 * singles


def convolve_arguments(layout: Layout, packs: Packs, second: bool) -> dict[str, Any]:
    """What a launch of `CONVOLVE` needs to know of a cell, by the operator's parameters."""
    channels = layout.plan.mixed_channels
    tile = tile_of(channels, *layout.after, packs)
    return {
        "halo": packs.halo,
        "taps": packs.taps,
        **tile._asdict(),
        "channels": channels,
        "second": second,
        "shared": shared_of(channels, tile, packs),
    }


def convolve_reason(
    layout: Layout, packs: Packs, second: bool, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Say why `CONVOLVE` cannot take the layers of a node; None where it can."""
    channels = layout.plan.mixed_channels
    if reason := _library_reason(device):
        return reason
    if dtype != torch.float32:
        return f"arithmetic is in {dtype}"
    if channels not in _CHANNELS:
        return f"candidates see {channels} channels, which are not among {_CHANNELS}"
    if not second and any(name in DENSE for name in layout.plan.operations):
        return "dense convolutions are among the candidates"
    if not second and layout.halves and channels % 8:
        return f"FactorizedReduce has {channels} channels, no multiple of 8"
    width = layout.after[1]
    if (max(width, 1 << _RUN) - 1).bit_length() > (_TILE // channels).bit_length() - 1:
        return f"{width} pixels of {channels} channels are more than a tile"
    shared, most = convolve_arguments(layout, packs, second)["shared"], _shared_memory(device)
    if shared > most:
        return f"a program would need {shared} bytes of shared memory, and there are {most}"
    return None


def _library_reason(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"a tensor is on {device}"
    return None if has_kernel(_CONVOLVE, "cuda") else "the CUDA library was not compiled"


def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may have on a device."""
    if device.type != "cuda":
        return _SHARED
    properties = torch.cuda.get_device_properties(device)
    # Older torches do not tell how much a program may ask for.
    least = properties.shared_memory_per_block
    return int(getattr(properties, "shared_memory_per_block_optin", least))
