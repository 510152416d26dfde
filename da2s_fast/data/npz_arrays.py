"""Images as plain arrays in an .npz file: x_train, y_train, x_test, y_test."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from da2s_fast.data.npz_file import NpzFile
from da2s_fast.data.source import Part, Source, class_numbers, read_from
from da2s_fast.errors import UserError

KEYS = frozenset({"x_train", "y_train", "x_test", "y_test"})


def open_npz_arrays(file: NpzFile) -> Source:
    """Open an .npz file with the arrays x_train, y_train, x_test and y_test.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W). Of four dimensions the layout is the one
    whose two sides are equal; if neither or both are, the one with 1 to 4 channels.
    Values are 8-bit integers, or floats on the scale 0..1 or 0..255, which are rounded to 8 bits;
    which scale is taken from the largest value of both parts.
    Labels are integers of any values, (N,) or (N, 1).

    Raises:
        UserError: the arrays are anything else, or layout or scale cannot be told.
    """
    where = str(file.path)
    x_train, x_test = file["x_train"], file["x_test"]
    _check_shapes(where, x_train, x_test)
    channels_last = _channels_last(where, x_train.shape)
    scale = _scale(where, x_train, x_test)
    train_labels, test_labels, classes = class_numbers(
        where, ("y_train", file["y_train"]), ("y_test", file["y_test"])
    )
    parts = []
    for key, images, labels in (("train", x_train, train_labels), ("test", x_test, test_labels)):
        if len(images) != len(labels):
            raise UserError(
                f"{where}: x_{key} has {len(images)} images but y_{key} has {len(labels)} labels; "
                "both must have one entry per image"
            )
        parts.append(Part(labels, read_from(_to_tensor(images, channels_last, scale))))
    return Source(file.path.stem, classes, *parts)


def _check_shapes(where: str, x_train: NDArray[np.generic], x_test: NDArray[np.generic]) -> None:
    for key, images in (("x_train", x_train), ("x_test", x_test)):
        if images.ndim not in (3, 4):
            raise UserError(
                f"{where}: {key} has shape {images.shape}; images must be (N, H, W), "
                "(N, H, W, C) or (N, C, H, W)"
            )
        if images.size == 0:
            raise UserError(f"{where}: {key} is empty, shape {images.shape}; add images")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"{where}: x_train has images of shape {x_train.shape[1:]} but x_test of "
            f"{x_test.shape[1:]}; both must be the same"
        )


def _channels_last(where: str, shape: tuple[int, ...]) -> bool:
    """Whether images of this shape are (N, H, W, C) rather than (N, C, H, W) or (N, H, W)."""
    if len(shape) == 3:
        return False
    last_fits, first_fits = shape[1] == shape[2], shape[2] == shape[3]
    if last_fits == first_fits:
        last_fits, first_fits = shape[3] <= 4, shape[1] <= 4
    if last_fits == first_fits:
        raise UserError(
            f"{where}: in images of shape {shape[1:]} the channels cannot be told from the sides; "
            "save them as (N, C, H, W) with square sides"
        )
    return last_fits


def _scale(where: str, *arrays: NDArray[np.generic]) -> float:
    """The factor that brings all arrays to the scale 0..255."""
    kinds = {array.dtype.kind for array in arrays}
    if len(kinds) > 1 or not kinds <= set("buif"):
        types = " and ".join(str(array.dtype) for array in arrays)
        raise UserError(
            f"{where}: x_train and x_test have types {types}; save both as uint8 or both as "
            "floats from 0 to 1"
        )
    kind = kinds.pop()
    if kind == "f" and not all(np.isfinite(array).all() for array in arrays):
        raise UserError(f"{where}: the images hold NaN or infinity; replace those values")
    low = min(float(array.min()) for array in arrays)
    high = max(float(array.max()) for array in arrays)
    if kind == "b" or (kind == "f" and low >= 0 and high <= 1):
        return 255.0
    # A float image set on the scale 0..255 reaches well into it; a small maximum is another scale
    # (0..16, or 0..1 overshot by a resize), and an integer maximum of 1 is a mask.
    if low >= 0 and high <= 255 and high >= (128 if kind == "f" else 2):
        return 1.0
    raise UserError(
        f"{where}: image values run from {low:g} to {high:g} ({arrays[0].dtype}), which is no "
        "known scale; save uint8 from 0 to 255 or floats from 0 to 1"
    )


def _to_tensor(images: NDArray[np.generic], channels_last: bool, scale: float) -> Tensor:
    """uint8 (N, C, H, W), rounded to the nearest of 256 levels."""
    if images.ndim == 3:
        images = images[:, None]
    elif channels_last:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    result = np.empty(images.shape, dtype=np.uint8)
    # Image by image, so that no float64 copy of the whole set is ever held.
    for image, target in zip(images, result, strict=True):
        target[...] = np.rint(image.astype(np.float64) * scale)
    return torch.from_numpy(result)
