"""Real images in memory for the tests of the data sources."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Packed:
    """A few images of a packed JPEG file, decoded one by one with Pillow alone."""

    def __init__(self, path: Path, prefix: str) -> None:
        with np.load(path) as file:
            self.data, self.offsets = file[f"{prefix}bytes"], file[f"{prefix}off"]
            self.labels = file[f"{prefix}y"].astype(np.int64)

    def jpeg(self, index: int) -> bytes:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def pixels(self, index: int) -> np.ndarray:
        """uint8 (3, H, W)."""
        with Image.open(io.BytesIO(self.jpeg(index))) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    def first_of_each(self, count: int) -> list[int]:
        """Indices of the first ``count`` images of every class."""
        return [
            int(i) for k in np.unique(self.labels) for i in np.flatnonzero(self.labels == k)[:count]
        ]


@pytest.fixture(scope="session")
def cifar_train(cifar10_npz: Path) -> Packed:
    return Packed(cifar10_npz, "train_")


@pytest.fixture(scope="session")
def cifar_test(cifar10_npz: Path) -> Packed:
    return Packed(cifar10_npz, "test_")


@pytest.fixture(scope="session")
def tiny_imagenet(tiny_imagenet_npz: Path) -> Packed:
    return Packed(tiny_imagenet_npz, "")
