"""One door to every data source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from da2s_fast.data import npz_arrays, packed_jpeg
from da2s_fast.data.image_data import ImageData, check_image_size
from da2s_fast.data.image_folder import open_image_folder
from da2s_fast.data.named import NAMES, data_roots, open_cifar, open_digits
from da2s_fast.data.npz_file import NpzFile
from da2s_fast.data.resize import resize_square
from da2s_fast.data.source import Part, Source
from da2s_fast.data.splits import Indices, stratified_subset
from da2s_fast.errors import UserError


def load_data(
    source: str | Path,
    *,
    root: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    download: bool = True,
) -> ImageData:
    """Load a data set.

    Args:
        source: "digits", "cifar10", "cifar100", a folder of images (`open_image_folder`), or an
            .npz file of arrays (`open_npz_arrays`) or of packed JPEG files (`open_packed_jpeg`).
            A name wins over a folder of that name; write ./digits for the folder.
        root: folder that holds or receives the named data sets; default: the folder in the
            environment variable DA2S_DATA, then the cache (DA2S_CACHE, else ~/.cache/da2s_fast).
        image_size: side to resize all images to; shorter side first, then the centre.
        limit: use this many training images, and test images in the same proportion but at least
            one per class: always the same ones, with every class in its proportion.
        download: whether a named data set may be fetched from the internet.

    Raises:
        UserError: the source is missing, damaged or unsuitable, or an argument is out of range.
    """
    if image_size is not None:
        check_image_size(image_size)
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no images; give a positive number or none")
    try:
        opened = _open(source, root, image_size, download)
        train_rows, test_rows = _rows(opened, limit)
        train = _read(opened.train, train_rows, image_size)
        test = _read(opened.test, test_rows, image_size)
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or source}: {error.strerror}; check that it is there "
            "and may be read"
        ) from error
    return ImageData.from_tensors(opened.name, train, test, opened.classes)


def _open(source: str | Path, root: Path | None, image_size: int | None, download: bool) -> Source:
    if source == "digits":
        return open_digits()
    if source in NAMES:
        return open_cifar(str(source), data_roots(root), download, image_size)
    path = Path(source).expanduser()
    if path.is_dir():
        return open_image_folder(path, image_size)
    if not path.is_file():
        raise UserError(
            f"there is no data set {str(source)!r}; give {', '.join(NAMES)}, a folder with one "
            "folder of images per class, or an .npz file"
        )
    if path.suffix != ".npz":
        raise UserError(f"{path} is a single file but not .npz; give an .npz file or a folder")
    file = NpzFile(path)
    if file.keys >= npz_arrays.KEYS:
        return npz_arrays.open_npz_arrays(file)
    if any(file.keys >= keys for keys in (packed_jpeg.SPLIT_KEYS, packed_jpeg.WHOLE_KEYS)):
        return packed_jpeg.open_packed_jpeg(file, image_size)
    raise UserError(
        f"{path} holds {', '.join(sorted(file.keys)) or 'nothing'}; it must hold "
        f"{', '.join(sorted(npz_arrays.KEYS))}"
    )


def _rows(source: Source, limit: int | None) -> tuple[Indices, Indices]:
    """Indices of the training and test images to use."""
    train_labels, test_labels = source.train.labels, source.test.labels
    if limit is None or limit >= len(train_labels):
        return np.arange(len(train_labels)), np.arange(len(test_labels))
    share = round(len(test_labels) * limit / len(train_labels))
    return (
        stratified_subset(train_labels, limit),
        stratified_subset(test_labels, max(share, len(source.classes))),
    )


def _read(part: Part, rows: Indices, image_size: int | None) -> tuple[Tensor, Tensor]:
    images = part.read(rows)
    if image_size is not None:
        images = resize_square(images, image_size)
    return images, torch.from_numpy(part.labels[rows])
