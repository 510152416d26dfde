"""Data sets known by name."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch

from da2s_fast.data.cache import cache_directory
from da2s_fast.data.npz_file import NpzFile
from da2s_fast.data.packed_jpeg import open_packed_jpeg
from da2s_fast.data.source import Part, Source, read_from
from da2s_fast.data.splits import hold_out
from da2s_fast.errors import UserError

NAMES = ("digits", "cifar10", "cifar100")


def open_digits() -> Source:
    """The 1,797 handwritten digits of scikit-learn: 8x8 grey, 10 classes, 359 for the test.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import

    images, labels = load_digits(return_X_y=True)
    # 17 grey levels, 0..16.
    pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    train, test = (
        Part(labels[rows], read_from(pixels[torch.from_numpy(rows)]))
        for rows in hold_out(labels, 0.2)
    )
    return Source("digits", tuple("0123456789"), train, test)


def open_cifar(name: str, roots: list[Path], download: bool, image_size: int | None) -> Source:
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images, 32x32 RGB.

    Looked for in each of ``roots``: first NAME/NAME_jpeg.npz (packed JPEG files), then the
    official archive as torchvision unpacks it; else downloaded into the last of them.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    Raises:
        UserError: not there and not to be had.
    """
    for root in roots:
        packed = root / name / f"{name}_jpeg.npz"
        if packed.is_file():
            source = open_packed_jpeg(NpzFile(packed), image_size)
            return Source(name, source.classes, source.train, source.test)
    from torchvision.datasets import CIFAR10, CIFAR100  # noqa: PLC0415 - slow to import

    data_set = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    root = next((r for r in roots if (r / data_set.base_folder).is_dir()), roots[-1])
    try:
        # torchvision unpickles these files only after their MD5 sums have been checked.
        train = data_set(str(root), train=True, download=download)
        test = data_set(str(root), train=False, download=False)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} is not in {root} and could not be fetched ({reason}); check the connection, "
            f"or unpack {data_set.url} there, or name its folder in DA2S_DATA"
        ) from error
    parts = (
        Part(
            np.asarray(part.targets, dtype=np.int64),
            read_from(torch.from_numpy(part.data.transpose(0, 3, 1, 2)).contiguous()),
        )
        for part in (train, test)
    )
    return Source(name, tuple(train.classes), *parts)


def data_roots(given: Path | None) -> list[Path]:
    """Where to look: ``given`` alone, else the folder in DA2S_DATA if any, then the cache.

    Raises:
        UserError: DA2S_DATA names no folder.
    """
    if given is not None:
        return [given]
    variable = os.environ.get("DA2S_DATA")
    if not variable:
        return [cache_directory()]
    if not Path(variable).is_dir():
        raise UserError(f"DA2S_DATA is {variable}, which is no folder; correct or unset it")
    return [Path(variable), cache_directory()]
