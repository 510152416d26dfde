"""How the work of mixed_sum's Triton kernels is cut; `kernels/mixed_sum.py` explains them."""

from functools import lru_cache
from typing import Any, NamedTuple

import triton
from torch import Tensor

from da2s_fast.ops._layout import is_channels_last

# A block of channels is at most that wide where channels lie across: 256 bytes and more.
_WIDEST = 128
# Partial sums that a program adds at a time: parts by channels.
_PARTS, _CHANNELS = 64, 16


class Tuning(NamedTuple):
    """How work is cut.

    Attributes:
        largest: bytes of a tile at most: several loads under way per thread.
        smallest: bytes of a tile at least: one load of 128 bits per thread.
        programs: more than a GPU runs at a time; for so many, tiles are made smaller and sums over
            channels shared.
        parts: of a channel at most that programs share.
    """

    largest: int
    smallest: int
    programs: int
    parts: int


class Geometry(NamedTuple):
    """The view of all tensors of a call as rows of columns: `kernels/mixed_sum.py`."""

    across: bool
    images: int
    channels: int
    columns: int

    @classmethod
    def of(cls, first: Tensor, normalizes: bool) -> "Geometry":
        """Return it for tensors like the first input; without norms they have no channels."""
        if not normalizes:
            return cls(False, 1, 1, first.numel())
        images, channels = first.shape[:2]
        pixels = first.numel() // (images * channels)
        if pixels == 1 or is_channels_last(first):
            return cls(True, images * pixels, channels, channels)
        return cls(False, images, channels, pixels)

    @property
    def rows(self) -> int:
        """Rows of all channels."""
        return self.images if self.across else self.images * self.channels

    @property
    def values(self) -> int:
        """Values of a channel."""
        return self.images if self.across else self.images * self.columns

    def tile(self, tuning: Tuning, itemsize: int, rows: int) -> tuple[int, int]:
        """Return rows and columns, powers of two, of tiles of tensors of which `rows` are used."""
        size = self.rows * self.columns * itemsize // tuning.programs
        size = max(tuning.smallest, min(triton.next_power_of_2(size), tuning.largest))
        numbers = size // itemsize
        widest = min(numbers, _WIDEST) if self.across else numbers
        columns = min(triton.next_power_of_2(self.columns), widest)
        return min(triton.next_power_of_2(rows), numbers // columns), columns


class Reduction(NamedTuple):
    """How a sum over channels is shared: arguments of the kernels, and their grid."""

    grid: tuple[int]
    parts: int
    arguments: dict[str, Any]

    @property
    def adding(self) -> dict[str, Any]:
        """Arguments of the kernels that add partial sums."""
        channels = self.arguments["channels"]
        return {
            "channels": channels,
            "PARTS": self.parts,
            "ROWS": min(triton.next_power_of_2(self.parts), _PARTS),
            "COLUMNS": min(triton.next_power_of_2(channels), _CHANNELS),
        }


@lru_cache(maxsize=256)
def reduction(geometry: Geometry, tuning: Tuning, itemsize: int) -> Reduction:
    """Return how sums over channels of such numbers are shared."""
    rows, columns = geometry.tile(tuning, itemsize, geometry.images)
    tiles = triton.cdiv(geometry.images, rows)
    blocks = geometry.channels
    if geometry.across:
        blocks = triton.cdiv(geometry.channels, columns)
    else:
        tiles *= triton.cdiv(geometry.columns, columns)
    parts = min(tiles, triton.cdiv(tuning.programs, blocks), tuning.parts)
    arguments = {
        "rows": geometry.images,
        "columns": geometry.columns,
        "row_stride": geometry.columns * (1 if geometry.across else geometry.channels),
        "channels": geometry.channels,
        "tiles": tiles,
        "PARTS": parts,
        "ACROSS": geometry.across,
        "ROWS": rows,
        "COLUMNS": columns,
    }
    return Reduction((blocks * parts,), parts, arguments)


def elementwise(
    geometry: Geometry, tuning: Tuning, itemsize: int
) -> tuple[tuple[int], dict[str, Any]]:
    """Return grid and arguments of a pass over all numbers."""
    rows, columns = geometry.tile(tuning, itemsize, geometry.rows)
    grid = triton.cdiv(geometry.rows, rows) * triton.cdiv(geometry.columns, columns)
    return (grid,), {
        "rows": geometry.rows,
        "columns": geometry.columns,
        "channels": geometry.channels,
        "ACROSS": geometry.across,
        "ROWS": rows,
        "COLUMNS": columns,
    }
