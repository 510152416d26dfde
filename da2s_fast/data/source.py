"""What every kind of data source offers before any image is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from da2s_fast.data.splits import Indices
from da2s_fast.errors import UserError


@dataclass(frozen=True)
class Part:
    """The training or the test part of a source.

    Attributes:
        labels: int64 (N,), class numbers from 0.
        read: gives the images at sorted indices (n,) as uint8 (n, C, H, W); the whole part need
            not be read to get a few of them.
    """

    labels: Indices
    read: Callable[[Indices], Tensor]


@dataclass(frozen=True)
class Source:
    """A data set that has been opened but not read."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part


def read_from(images: Tensor) -> Callable[[Indices], Tensor]:
    """The ``read`` of a part whose images, uint8 (N, C, H, W), are in memory already."""

    def read(indices: Indices) -> Tensor:
        return images if len(indices) == len(images) else images[indices]

    return read


def class_numbers(
    where: str,
    train: tuple[str, NDArray[np.generic]],
    test: tuple[str, NDArray[np.generic]],
    names: tuple[str, ...] | None = None,
) -> tuple[Indices, Indices, tuple[str, ...]]:
    """Turn the labels of a file into class numbers 0, 1, 2, ...

    Args:
        where: the file, for messages.
        train: key in the file and labels of the training part: integers, (N,) or (N, 1).
        test: the same of the test part.
        names: class names that the labels index; without them, the distinct training labels in
            rising order are the classes, whatever their values.

    Raises:
        UserError: labels of another shape or type, or a label that no class has.
    """
    train_labels, test_labels = _integers(where, *train), _integers(where, *test)
    known = np.unique(train_labels) if names is None else np.arange(len(names))
    for key, labels in ((train[0], train_labels), (test[0], test_labels)):
        strange = np.setdiff1d(labels, known)
        if len(strange) > 0:
            whose = "does not occur in the training labels" if names is None else "has no name"
            raise UserError(f"{where}: label {strange[0]} in {key} {whose}; correct the labels")
    classes = tuple(str(value) for value in known) if names is None else names
    return np.searchsorted(known, train_labels), np.searchsorted(known, test_labels), classes


def _integers(where: str, key: str, labels: NDArray[np.generic]) -> Indices:
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {key} has type {labels.dtype}; labels must be integers, one per image"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            f"{where}: {key} has shape {labels.shape}; labels must be class numbers of shape "
            "(N,) or (N, 1), not one-hot"
        )
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise UserError(f"{where}: {key} holds {labels.max()}; labels must fit in 64 bits signed")
    return labels.astype(np.int64)
