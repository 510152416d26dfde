"""Sources of compressed images: decoded on demand, kept decoded for the next run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from da2s_fast.data.cache import DecodedCache, load_rows
from da2s_fast.data.decode import EncodedImages, Geometry, decode_all, survey
from da2s_fast.data.source import Part
from da2s_fast.data.splits import Indices


@dataclass(frozen=True)
class EncodedPart:
    """Compressed images, their labels, and what changes whenever the images do."""

    images: EncodedImages
    labels: Indices
    version: Iterable[object]


def encoded_parts(
    path: Path, train: EncodedPart, test: EncodedPart, image_size: int | None
) -> tuple[Part, Part]:
    """Parts whose images are decoded when read, both as the training part asks for.

    Args:
        path: the file or folder that holds both.
        train: the training part.
        test: the test part.
        image_size: see `survey`.

    Raises:
        UserError: an image cannot be read, or the size is below 8.
    """
    geometry = survey(train.images, image_size)
    return (
        Part(train.labels, _Reader(train, geometry, path, "training")),
        Part(test.labels, _Reader(test, geometry, path, "test")),
    )


class _Reader:
    """The ``read`` of a part: from the cache if it holds the images, else by decoding them."""

    def __init__(self, part: EncodedPart, geometry: Geometry, path: Path, name: str) -> None:
        self._images = part.images
        self._geometry = geometry
        self._description = f"Reading {name} images"
        self._cache = DecodedCache((path.resolve(), name, *geometry), part.version)

    def __call__(self, indices: Indices) -> Tensor:
        channels, size = self._geometry
        cached = self._cache.load((len(self._images), channels, size, size))
        if cached is not None:
            return load_rows(cached, indices)
        images = decode_all(self._images, indices, self._geometry, self._description)
        if np.array_equal(indices, np.arange(len(self._images))):
            self._cache.store(images)
        return images
