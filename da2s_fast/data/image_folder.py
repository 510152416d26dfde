"""Folders of image files, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from da2s_fast.data.encoded_source import EncodedPart, encoded_parts
from da2s_fast.data.source import Source
from da2s_fast.data.splits import hold_out
from da2s_fast.errors import UserError

_TEST_SHARE = 0.2

Sample = tuple[str, int]


class ImageFiles:
    """Image files on disk."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._paths = [Path(path) for path, _ in samples]

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, index: int) -> IO[bytes]:
        """Open one file."""
        try:
            return self._paths[index].open("rb")
        except OSError as error:
            raise UserError(
                f"cannot read the image {self._paths[index]}: {error.strerror}; "
                "check the file and its permissions"
            ) from error

    def describe(self, index: int) -> str:
        """Its path."""
        return str(self._paths[index])


def open_image_folder(root: Path, image_size: int | None) -> Source:
    """Open a folder with train/ and test/ (or val/), each with one folder per class.

    Without a test/ or val/ folder, a fifth of each class is held out for the test, always the
    same; without a train/ folder too, the class folders lie in ``root`` itself. Names that begin
    with a dot are ignored. Images are made equal as `da2s_fast.data.read_image` describes.

    Raises:
        UserError: no class folders, a class without images, or a test class never trained on.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS  # noqa: PLC0415 - slow to import

    train_folder = root / "train" if (root / "train").is_dir() else root
    test_folder = None
    if train_folder != root:
        test_folder = next((f for f in (root / "test", root / "val") if _class_folders(f)), None)
    classes = tuple(_class_folders(train_folder))
    if not classes:
        raise UserError(
            f"{train_folder} has no class folders; put the images of each class in a folder of "
            "their own"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    samples = _samples(train_folder, numbers)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if count == 0:
            raise UserError(
                f"{train_folder / name} holds no image files ({' '.join(IMG_EXTENSIONS)}); add "
                "some or remove the folder"
            )
    if test_folder is None:
        train_rows, test_rows = hold_out(labels, _TEST_SHARE)
        train_samples = [samples[row] for row in train_rows]
        test_samples = [samples[row] for row in test_rows]
    else:
        train_samples, test_samples = samples, _test_samples(test_folder, numbers)
    train, test = _part(train_samples), _part(test_samples)
    return Source(root.resolve().name, classes, *encoded_parts(root, train, test, image_size))


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _samples(folder: Path, numbers: dict[str, int]) -> list[Sample]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # noqa: PLC0415 - slow to import

    samples = make_dataset(folder, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    return [(path, label) for path, label in samples if not _is_hidden(Path(path), folder)]


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _test_samples(folder: Path, numbers: dict[str, int]) -> list[Sample]:
    for name in _class_folders(folder):
        if name not in numbers:
            raise UserError(
                f"{folder / name} is a class without training images; add {name} to the training "
                "folder or remove it"
            )
    samples = _samples(folder, numbers)
    if not samples:
        raise UserError(f"{folder} holds no image files; add some or remove the folder")
    return samples


def _part(samples: Sequence[Sample]) -> EncodedPart:
    version = []
    for path, label in samples:
        status = Path(path).stat()
        version.append((path, label, status.st_size, status.st_mtime_ns))
    return EncodedPart(
        ImageFiles(samples), np.array([label for _, label in samples], dtype=np.int64), version
    )
