"""Where downloads and decoded images are kept."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def cache_directory() -> Path:
    """The directory named by the environment variable DA2S_CACHE, else ~/.cache/da2s_fast."""
    given = os.environ.get("DA2S_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "da2s_fast"


class DecodedCache:
    """One decoded part of a data set on disk, valid as long as its source is unchanged.

    Args:
        identity: what is decoded and how; one cached file exists per identity.
        version: changes whenever the source does (file sizes, modification times); a cached file
            of another version is ignored, and removed when a new one is stored.
    """

    def __init__(self, identity: Iterable[object], version: Iterable[object]) -> None:
        self._prefix = _digest(identity)
        name = f"{self._prefix}-{_digest(version)}.npy"
        self._path = cache_directory() / "decoded" / name

    def load(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """The stored uint8 array, read from disk as it is used, or None if there is none."""
        try:
            array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array if array.dtype == np.uint8 and array.shape == shape else None

    def store(self, images: Tensor) -> None:
        """Keep uint8 ``images``; all or nothing. A full disk costs the cache, not the run."""
        directory = self._path.parent
        temporary = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=directory, suffix=".tmp", delete=False) as stream:
                temporary = Path(stream.name)
                np.save(stream, images.numpy())
                stream.flush()
                os.fsync(stream.fileno())
            for outdated in directory.glob(f"{self._prefix}-*.npy"):
                outdated.unlink(missing_ok=True)
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("Decoded images are not kept for the next run: %s.", error)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def load_rows(array: np.ndarray, indices: np.ndarray) -> Tensor:
    """The rows of a cached array at ``indices`` as a tensor in memory."""
    return torch.from_numpy(np.array(array[indices]))


def _digest(parts: Iterable[object]) -> str:
    text = "\n".join(str(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]
