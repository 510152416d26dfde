"""Checkpoint files that are either whole or not there.

A checkpoint is written beside its place, flushed to the disk and renamed over the old one, so
that a crash at any moment leaves the old or the new file. Its content carries a SHA-256 sum.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from da2s_fast.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a temporary file and rename it to `path` when it is on the disk.

    Raises:
        UserError: the disk is full or the folder is not there or cannot be written; `path` is as
            it was.
    """
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; make it")
    # Not by tempfile, whose files nobody but their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; the file on disk is unchanged, "
            "make room or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never there
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically (UTF-8)."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts; UserError when the disk refuses."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    wrapped = {
        "sha256": hashlib.sha256(payload).hexdigest(),
        "payload": torch.frombuffer(bytearray(payload), dtype=torch.uint8),
    }
    # torch.save to a file object reports a full disk as RuntimeError without errno: serialize
    # to memory and leave the disk to plain writes.
    buffer = io.BytesIO()
    torch.save(wrapped, buffer)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; UserError when it is missing or damaged."""
    try:
        wrapped = torch.load(path, map_location="cpu", weights_only=True)
        payload = wrapped["payload"].numpy().tobytes()
        if hashlib.sha256(payload).hexdigest() == wrapped["sha256"]:
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; start the run anew") from None
    except Exception as error:
        # Whatever a damaged file makes the reader raise, the user needs one sentence.
        raise UserError(f"checkpoint {path} cannot be read ({type(error).__name__})") from error
    raise UserError(f"checkpoint {path} is damaged: its checksum does not match its content")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX; other systems have no folder descriptors)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
