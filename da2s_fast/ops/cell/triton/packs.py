"""Rows on the device, and which of them a program of csrc/cuda takes together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.cell.rows import Layer, Pack
from da2s_fast.ops.cell.triton.tiling import ENOUGH_PROGRAMS

POOL_KINDS = (rows.MAXIMUM.value, rows.AVERAGE.value)
_SECTOR = 4  # numbers


class Rows(NamedTuple):
    """Consecutive rows of one kind, and how many."""

    table: Tensor
    """From the first row on."""
    length: int


class Windows(NamedTuple):
    """What the widest of some layers needs.

    Attributes:
        halo: pixels that windows reach beyond an output's own.
        taps: of a depthwise convolution.
        stride: of any of them.
    """

    halo: int
    taps: int
    stride: int


def windows_of(layers: Sequence[Layer]) -> Windows:
    """The largest halo, number of taps and stride."""
    return Windows(
        max((abs(row.padding) for row in layers), default=0),
        max((row.kernel**2 for row in layers if row.kind == rows.SEPARABLE.value), default=0),
        max((row.stride for row in layers), default=1),
    )


def most_rows(channels: int) -> int:
    """Of a pack, see csrc/cuda/cell/table.cuh."""
    return min(8, 192 // channels)


def packs_of(layers: Sequence[Layer], chunks: int, channels: int) -> list[Pack]:
    """Neighbours that read the same input: the more, the more programs are left nevertheless."""
    most = max(1, min(most_rows(channels), len(layers) * chunks // ENOUGH_PROGRAMS))
    found: list[Pack] = []
    for place, row in enumerate(layers):
        pool = int(row.kind in POOL_KINDS)
        last = found[-1] if found else None
        if last and last.length < most and layers[last.first].source == row.source:
            found[-1] = last._replace(length=last.length + 1, pools=last.pools + pool)
        else:
            found.append(Pack(place, 1, pool))
    return found


def upload(lists: Iterable[Sequence[tuple[int, ...]]], device: torch.device) -> list[Rows]:
    """Every list as rows on the device, all in one tensor, each at the start of a sector."""
    numbers: list[int] = []
    places = []
    for own in lists:
        places.append((len(numbers), len(own)))
        numbers += [number for row in own for number in row]
        numbers += [0] * (-len(numbers) % _SECTOR)
    tensor = torch.tensor([*numbers, 0], dtype=torch.int64).to(device)
    return [Rows(tensor[start:], length) for start, length in places]
