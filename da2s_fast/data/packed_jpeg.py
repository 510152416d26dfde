"""JPEG files packed into one .npz file: the bytes of all, and where each begins."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from da2s_fast.data.encoded_source import EncodedPart, encoded_parts
from da2s_fast.data.npz_file import NpzFile
from da2s_fast.data.source import Source, class_numbers
from da2s_fast.data.splits import Indices
from da2s_fast.errors import UserError

SPLIT_KEYS = frozenset({"train_bytes", "train_off", "train_y", "test_bytes", "test_off", "test_y"})
WHOLE_KEYS = frozenset({"bytes", "off", "y", "is_val"})


class PackedImages:
    """Image files at ``data[offsets[i]:offsets[i + 1]]`` for the i in ``indices``."""

    def __init__(
        self, where: str, data: NDArray[np.uint8], offsets: Indices, indices: Indices
    ) -> None:
        self._where = where
        self._data = data
        self._offsets = offsets
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def open(self, index: int) -> IO[bytes]:
        """The bytes of one image."""
        row = self._indices[index]
        return io.BytesIO(self._data[self._offsets[row] : self._offsets[row + 1]].tobytes())

    def describe(self, index: int) -> str:
        """Its number and where it is packed."""
        return f"number {self._indices[index]} of {self._where}"


def open_packed_jpeg(file: NpzFile, image_size: int | None) -> Source:
    """Open packed image files, in one of two forms.

    Either train_bytes, train_off, train_y and the same for test, or bytes, off, y and is_val
    (1 for the images to test on). ``*bytes`` is uint8 (B,), ``*off`` integers (N + 1,), ``*y``
    integers (N,). Class names may be given as ``classes`` or ``name``, indexed by ``*y``.

    Raises:
        UserError: arrays of other types or lengths, or offsets that run backwards or past the end.
    """
    version = _file_version(file.path)
    if file.keys >= SPLIT_KEYS:
        keys = ("train_y", "test_y")
        train_y, test_y, classes = _labels(file, *((key, file[key]) for key in keys))
        encoded = []
        for prefix, labels in (("train_", train_y), ("test_", test_y)):
            data, offsets = _bytes_and_offsets(file, prefix, len(labels))
            rows = np.arange(len(labels))
            where = f"{prefix}bytes in {file.path}"
            encoded.append(EncodedPart(PackedImages(where, data, offsets, rows), labels, version))
    else:
        held_out, values = file["is_val"], file["y"]
        if values.ndim != 1 or held_out.shape != values.shape or held_out.dtype.kind not in "biu":
            raise UserError(
                f"{file.path}: y has shape {values.shape} and is_val is {held_out.dtype} "
                f"{held_out.shape}; both must be (N,), is_val with 0 or 1 for each image"
            )
        data, offsets = _bytes_and_offsets(file, "", len(values))
        is_test = held_out.astype(bool)
        train_y, test_y, classes = _labels(file, ("y", values[~is_test]), ("y", values[is_test]))
        encoded = [
            EncodedPart(
                PackedImages(f"bytes in {file.path}", data, offsets, np.flatnonzero(rows)),
                labels,
                version,
            )
            for rows, labels in ((~is_test, train_y), (is_test, test_y))
        ]
    for which, part in zip(("training", "test"), encoded, strict=True):
        if len(part.labels) == 0:
            raise UserError(f"{file.path} has no {which} images; add some")
    train, test = encoded
    return Source(file.path.stem, classes, *encoded_parts(file.path, train, test, image_size))


def _labels(
    file: NpzFile, train: tuple[str, NDArray[np.generic]], test: tuple[str, NDArray[np.generic]]
) -> tuple[Indices, Indices, tuple[str, ...]]:
    names = None
    for key in ("classes", "name"):
        if key in file.keys:
            names = tuple(str(name) for name in file[key].ravel())
            break
    return class_numbers(str(file.path), train, test, names)


def _bytes_and_offsets(file: NpzFile, prefix: str, count: int) -> tuple[NDArray[np.uint8], Indices]:
    data, offsets = file[f"{prefix}bytes"], file[f"{prefix}off"]
    if data.dtype != np.uint8 or data.ndim != 1:
        raise UserError(
            f"{file.path}: {prefix}bytes is {data.dtype} {data.shape}; it must be uint8 (B,)"
        )
    if offsets.dtype.kind not in "iu" or offsets.shape != (count + 1,):
        raise UserError(
            f"{file.path}: {prefix}off is {offsets.dtype} {offsets.shape}; for {count} labels it "
            f"must be integers of shape ({count + 1},)"
        )
    starts = offsets.astype(np.int64)
    if starts[0] < 0 or (np.diff(starts) < 0).any() or starts[-1] > len(data):
        raise UserError(
            f"{file.path}: {prefix}off must rise from 0 to at most the {len(data)} bytes there "
            "are; pack the images again"
        )
    return data.astype(np.uint8, copy=False), starts


def _file_version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
