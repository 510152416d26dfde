"""How a cell's pixels are cut into tiles, and sums over the batch into chunks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from da2s_fast.ops.cell.plan import CellPlan

PIXELS = 64
"""Most pixels of a tile."""
BLOCK = 32
"""Most channels of a tile."""
_TILE = 1024
"""Most numbers of a tile: with twice as many, threads would have to put registers into memory."""
CHUNKS = 32
"""Most chunks that a sum over the batch is cut into, a power of two."""
CHUNK_PIXELS, CHUNK_NUMBERS = 256, 8192
"""Fewest pixels of a chunk, or so many that a candidate has these numbers of them."""
INPUT_CHUNKS = 256
"""Likewise of the preprocessing, whose norms are few, so that few read these moments."""
INPUT_CHUNK_NUMBERS = 8192
"""Fewest numbers of an input that such a chunk takes."""
IMAGE_CHUNKS = 64
"""Most chunks of whole images, in the backward pass; a power of two."""
IMAGE_CHUNK_PIXELS, IMAGE_CHUNK_NUMBERS = 128, 4096
"""Fewest pixels of those, or so many that a candidate has these numbers of them: a chunk's
gradients of weights are as many numbers as weights, and everybody who needs a sum adds up all
chunks. But with half the programs that a GPU has place for, edges that go back into one state
would leave the other half idle: they do so one after the other."""

ENOUGH_PROGRAMS = 256
"""As many as large GPUs run at once of programs that take half of a multiprocessor."""
ENOUGH_SMALL_PROGRAMS = 1024
"""Likewise of those that take an eighth."""


def block_of(channels: int) -> int:
    """Channels of a tile: all of them, as a power of two, or BLOCK."""
    return min(BLOCK, 1 << (channels - 1).bit_length())


@dataclass(frozen=True)
class Tiling:
    """The tiles and chunks of a cell.

    Args:
        plan: the cell.
        batch: N.
        sizes: (channels, height, width) of every input.
    """

    plan: CellPlan
    batch: int
    sizes: tuple[tuple[int, ...], ...]

    @property
    def before(self) -> tuple[int, int]:
        """Height and width of the input states."""
        _, height, width = self.sizes[-1]
        return height, width

    @property
    def after(self) -> tuple[int, int]:
        """Height and width of the nodes."""
        height, width = self.before
        return ((height + 1) // 2, (width + 1) // 2) if self.plan.reduction else (height, width)

    def size(self, state: int) -> tuple[int, int]:
        """Height and width of a state."""
        return self.before if state < self.plan.inputs else self.after

    def pixels(self, state: int) -> int:
        """Of all images."""
        return self.batch * prod(self.size(state))

    @cached_property
    def chunks(self) -> int:
        """How many chunks every sum over the batch has, but for those of `input_chunks`."""
        fewest = max(1, min(CHUNK_PIXELS, CHUNK_NUMBERS // self.plan.mixed_channels))
        wanted = min(CHUNKS, max(1, self.pixels(self.plan.inputs) // fewest))
        return 1 << (wanted.bit_length() - 1)

    @property
    def tile(self) -> int:
        """Pixels of a tile."""
        return min(PIXELS, _TILE // block_of(self.plan.channels))

    def tiles_per_chunk(self, pixels: int) -> int:
        """Tiles of a chunk."""
        return -(-pixels // (self.tile * self.chunks))

    @cached_property
    def input_chunks(self) -> int:
        """How many chunks the preprocessing's moments have.

        Its programs take a chunk each, of all channels of an input, and there is nothing else to
        cut them by: many more chunks than elsewhere give all multiprocessors several programs.
        """
        numbers = self.pixels(0) * max(channels for channels, _, _ in self.sizes)
        tiles = -(-self.pixels(0) // self.tile)
        wanted = min(INPUT_CHUNKS, tiles, max(1, numbers // INPUT_CHUNK_NUMBERS))
        return 1 << (wanted.bit_length() - 1)

    @cached_property
    def images(self) -> int:
        """Images of a chunk in the backward pass."""
        pixels = min(IMAGE_CHUNK_PIXELS, IMAGE_CHUNK_NUMBERS // self.plan.mixed_channels)
        enough = -(-pixels // prod(self.after))
        return max(min(enough, self.batch), -(-self.batch // IMAGE_CHUNKS))

    @cached_property
    def image_chunks(self) -> int:
        """How many chunks of whole images there are; the last ones may be empty."""
        return 1 << (-(-self.batch // self.images) - 1).bit_length()
