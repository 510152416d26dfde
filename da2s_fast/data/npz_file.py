"""Reading .npz files that may be anything."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from da2s_fast.errors import UserError


class NpzFile:
    """The arrays of one .npz file, each read only when asked for; never unpickles.

    Raises:
        UserError: the file, or the array asked for, is damaged, missing or needs pickle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as arrays:
            self.keys = frozenset(arrays.files)

    def __getitem__(self, key: str) -> NDArray[np.generic]:
        with self._open(key) as arrays:
            array = arrays[key]
        if not isinstance(array, np.ndarray):
            raise UserError(f"{self.path}: {key} is not an array; save it with numpy.savez")
        if array.dtype.hasobject:
            raise UserError(_needs_pickle(self.path, key))
        return array

    @contextmanager
    def _open(self, key: str | None = None) -> Iterator[np.lib.npyio.NpzFile]:
        where = f"{self.path}" if key is None else f"{key} in {self.path}"
        # numpy takes a file that is no zip archive for a pickle and says so: not helpful here.
        try:
            with self.path.open("rb") as stream:
                is_zip = zipfile.is_zipfile(stream)
        except OSError as error:
            raise UserError(f"cannot read {where}: {error.strerror}; check the path") from error
        if not is_zip:
            raise UserError(f"{self.path} is not an .npz file or is cut off; copy or save it again")
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                yield arrays
        except UserError:
            raise
        except Exception as error:  # damaged bytes make zipfile, zlib and numpy raise anything
            if "allow_pickle" in str(error):
                raise UserError(_needs_pickle(self.path, key)) from error
            raise UserError(
                f"cannot read {where} ({type(error).__name__}: {error}); the file is damaged, "
                "copy or save it again"
            ) from error


def _needs_pickle(path: Path, key: str | None) -> str:
    return (
        f"{path}: {key} holds Python objects, which are not loaded because they can run code; "
        "save plain numbers, all images of one size"
    )
