"""Fixtures for all tests: where the real data are, and a cache of its own for every test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep downloads and decoded images out of the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DA2S_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: DA2S_DATA, else ../shared/data beside the repository."""
    given = os.environ.get("DA2S_DATA")
    root = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is not there; name their folder in DA2S_DATA")
    return root


def _real(path: Path) -> Path:
    if not path.is_file():
        pytest.skip(f"no real data: {path} is not there")
    return path


@pytest.fixture(scope="session")
def cifar10_npz(data_root: Path) -> Path:
    """CIFAR-10 as packed JPEG files (train_bytes, train_off, train_y, test_..., classes)."""
    return _real(data_root / "cifar10" / "cifar10_jpeg.npz")


@pytest.fixture(scope="session")
def tiny_imagenet_npz(data_root: Path) -> Path:
    """100 classes of Tiny ImageNet as packed JPEG files (bytes, off, y, is_val, name)."""
    return _real(data_root / "tiny_imagenet" / "tiny_imagenet_100c.npz")


@pytest.fixture(scope="session")
def usps_npz(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """USPS, 16x16 grey digits, as x_train, y_train, x_test and y_test."""
    path = tmp_path_factory.mktemp("usps") / "usps.npz"
    with np.load(_real(data_root / "usps" / "usps.npz")) as file:
        np.savez(
            path,
            x_train=file["train_x"],
            y_train=file["train_y"],
            x_test=file["test_x"],
            y_test=file["test_y"],
        )
    return path
