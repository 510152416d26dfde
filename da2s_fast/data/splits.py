"""Deterministic, stratified choices of images by their labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from da2s_fast.data.image_data import ImageData
from da2s_fast.errors import UserError

Indices = NDArray[np.int64]


def split_train(data: ImageData, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the training images in two, with every class in the same proportion.

    The usual cut of a bilevel search: one part trains the weights, the other the architecture.

    Args:
        data: the data set.
        fraction: share of the images in the first part, between 0 and 1.
        seed: decides which images fall into which part.

    Returns:
        Two sorted int64 tensors (N1,) and (N2,) of indices into ``data.train_images`` that
        together hold every index once; N1 = round(fraction * N).

    Raises:
        UserError: the fraction is not between 0 and 1, or leaves one part empty.
    """
    labels = data.train_labels.cpu().numpy()
    if not 0 < fraction < 1:
        raise UserError(f"the training set cannot be split at {fraction}; give a share in (0, 1)")
    total = round(fraction * len(labels))
    if total in (0, len(labels)):
        raise UserError(
            f"splitting {len(labels)} training images at {fraction} leaves one part empty; "
            "use more images or a share nearer to 0.5"
        )
    first = _draw(labels, _allocate(np.bincount(labels), total), seed)
    return torch.from_numpy(first), torch.from_numpy(_others(first, len(labels)))


def stratified_subset(labels: Indices, total: int) -> Indices:
    """Sorted indices of ``total`` images, always the same, at least one of each class present.

    Classes keep their proportions as far as whole images allow. All indices if ``total`` is not
    below the number of images.

    Raises:
        UserError: ``total`` is below the number of classes present.
    """
    if total >= len(labels):
        return np.arange(len(labels))
    counts = np.bincount(labels)
    present = np.minimum(counts, 1)
    if total < present.sum():
        raise UserError(
            f"limit={total} is below the {present.sum()} classes; give at least one image each"
        )
    return _draw(labels, present + _allocate(counts - present, total - present.sum()), seed=0)


def hold_out(labels: Indices, fraction: float) -> tuple[Indices, Indices]:
    """Sorted indices of a training and a test part, always the same.

    About ``fraction`` of each class goes to the test part, but every class keeps at least one
    training image.

    Raises:
        UserError: no class has a second image to spare.
    """
    counts = np.bincount(labels)
    spare = counts - np.minimum(counts, 1)
    total = min(max(1, round(fraction * len(labels))), int(spare.sum()))
    if total == 0:
        raise UserError(
            f"{len(labels)} images in {np.count_nonzero(counts)} classes leave none to test on; "
            "add images or a test folder"
        )
    test = _draw(labels, _allocate(spare, total), seed=0)
    return _others(test, len(labels)), test


def _allocate(counts: Indices, total: int) -> Indices:
    """Share out ``total`` <= counts.sum() in proportion to ``counts`` (largest remainder)."""
    available = int(counts.sum())
    if available == 0:
        return np.zeros_like(counts)
    shares, remainders = np.divmod(counts * int(total), available)
    # Stable: of equal remainders the lower class number wins, on every platform.
    order = np.argsort(-remainders, kind="stable")
    shares[order[: int(total) - int(shares.sum())]] += 1
    return shares


def _draw(labels: Indices, counts: Indices, seed: int) -> Indices:
    """Sorted indices of ``counts[k]`` random images of each class k."""
    # RandomState, because its stream is frozen: newer generators may change between versions.
    random = np.random.RandomState(seed % 2**32)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))


def _others(indices: Indices, total: int) -> Indices:
    rest = np.ones(total, dtype=bool)
    rest[indices] = False
    return np.flatnonzero(rest)
