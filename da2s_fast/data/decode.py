"""Decoding image files (JPEG, PNG, ...) to equal uint8 arrays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor

from da2s_fast.data.image_data import MIN_IMAGE_SIZE, check_image_size
from da2s_fast.data.splits import Indices
from da2s_fast.errors import UserError

_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N"})
_SURVEYED = 1000
_DEFAULT_SIZE = 64
_BLOCK = 256


class EncodedImages(Protocol):
    """Image files on disk or in memory."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> IO[bytes]:
        """The bytes of one image file."""

    def describe(self, index: int) -> str:
        """Where that image is, for messages."""


class Geometry(NamedTuple):
    """Channels (1 or 3) and side that images are decoded to."""

    channels: int
    size: int


def read_image(path: Path, channels: int, size: int) -> Tensor:
    """Read one image file as the images of a data set are read.

    It is turned as its EXIF orientation says, put on white where transparent, converted to grey
    or RGB, and, unless it is ``size`` x ``size`` already, its largest centred square is resized.

    Args:
        path: any image file Pillow can read.
        channels: 1 for grey or 3 for RGB.
        size: height and width of the result.

    Returns:
        uint8 (C, size, size).

    Raises:
        UserError: the file is missing, damaged or no image, or ``channels`` is not 1 or 3.
    """
    if channels not in (1, 3):
        raise UserError(f"an image file has 1 or 3 channels, not {channels}; give an .npz file")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    with stream:
        return torch.from_numpy(_decode(stream, str(path), Geometry(channels, size)))


def survey(images: EncodedImages, image_size: int | None) -> Geometry:
    """Choose what to decode a set of images to, from up to 1,000 of them, evenly spaced.

    Grey only if all of them are grey. The size is ``image_size``, else the most common shorter
    side (the larger of two equally common), but at most 64.

    Raises:
        UserError: an image cannot be read, or the size is below 8.
    """
    shorter_sides: Counter[int] = Counter()
    grey = True
    for index in np.unique(np.linspace(0, len(images) - 1, _SURVEYED).astype(int)):
        name = images.describe(index)
        with images.open(index) as stream, _opened(stream, name) as image:
            shorter_sides[min(image.size)] += 1
            grey = grey and image.mode in _GREY_MODES
    if image_size is None:
        common = max(shorter_sides, key=lambda side: (shorter_sides[side], side))
        if common < MIN_IMAGE_SIZE:
            raise UserError(
                f"most images like {images.describe(0)} are only {common} pixels wide or high; "
                f"give image_size={MIN_IMAGE_SIZE} or more to have them enlarged"
            )
        image_size = min(common, _DEFAULT_SIZE)
    check_image_size(image_size)
    return Geometry(1 if grey else 3, image_size)


def decode_all(
    images: EncodedImages, indices: Indices, geometry: Geometry, description: str
) -> Tensor:
    """Decode the images at ``indices`` as `read_image` does, on several threads.

    Shows a progress bar on a terminal when there is much to do.

    Returns:
        uint8 (n, C, size, size).

    Raises:
        UserError: an image cannot be read; the message names it.
    """
    channels, size = geometry
    result = np.empty((len(indices), channels, size, size), dtype=np.uint8)

    def decode_block(start: int) -> None:
        for row, index in enumerate(indices[start : start + _BLOCK], start):
            with images.open(index) as stream:
                result[row] = _decode(stream, images.describe(index), geometry)

    _run_all(decode_block, range(0, len(indices), _BLOCK), description)
    return torch.from_numpy(result)


def _run_all(task: Callable[[int], None], starts: Sequence[int], description: str) -> None:
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for _ in track(
            pool.map(task, starts),
            description,
            total=len(starts),
            console=console,
            transient=True,
            disable=len(starts) < 8 or not console.is_terminal,
        ):
            pass
    finally:
        # After an error or Ctrl-C, do not decode what is still waiting.
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _opened(stream: IO[bytes], name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(stream) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"cannot read the image {name} ({reason}); replace or remove it") from error


def _decode(stream: IO[bytes], name: str, geometry: Geometry) -> NDArray[np.uint8]:
    """uint8 (C, size, size)."""
    channels, size = geometry
    with _opened(stream, name) as opened:
        # Lets the JPEG decoder skip detail of photos that are far larger than wanted.
        opened.draft(None, (4 * size, 4 * size))
        image = _convert(ImageOps.exif_transpose(opened), channels, name)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8).reshape(size, size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _convert(image: Image.Image, channels: int, name: str) -> Image.Image:
    """Grey ("L") or RGB; transparent pixels show white behind them."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"the image {name} has 32-bit pixels of unknown scale; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
