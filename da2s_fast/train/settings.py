"""Settings of a training from scratch, and what follows from the data where they are not given."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from da2s_fast.data import ImageData
from da2s_fast.errors import UserError
from da2s_fast.spaces import Genotype

_T = TypeVar("_T")


class Recipe(NamedTuple):
    """Size of the network and length of the training."""

    channels: int
    cells: int
    epochs: int


def recipe(images: int) -> Recipe:
    """The recipe for this many training images.

    From 20,000 images on that of DARTS for CIFAR-10 (Liu et al. 2019, section 3.2). Below, a
    network of that size would learn the images by heart and take hours to do it: from 5,000 on
    two thirds of the channels and cells and a third of the epochs, below that fewer still.
    """
    if images >= 20_000:
        return Recipe(channels=36, cells=20, epochs=600)
    if images >= 5_000:
        return Recipe(channels=24, cells=14, epochs=200)
    return Recipe(channels=16, cells=8, epochs=100)


NAS_BENCH_201_CHANNELS = 16
NAS_BENCH_201_CELLS = 5
LARGEST_BATCH = 96


@dataclass
class RetrainSettings:
    """Everything that decides a training from scratch; None means: chosen by data and genotype.

    Attributes:
        data: "digits", "cifar10", "cifar100", a folder of images or an .npz file.
        channels: channels of the first cells (36 for large data sets, see `recipe`).
        cells: number of cells (20 likewise; NAS-Bench-201: per stage).
        auxiliary_weight: weight of the auxiliary head's loss (0.4); 0 for no auxiliary head.
        cutout: side of the square cut out of each image (half of its side); 0 for none.
        drop_path: probability of dropping a path at the end of the training; it grows linearly.
        epochs: length of the training (600 for large data sets).
        batch_size: images per step (96).
        learning_rate: of SGD, at the start of a cosine that ends at 0.
        momentum: of SGD.
        weight_decay: of all weights.
        grad_clip: norm to which the gradient is clipped.
        image_size: resize images to this height and width; by default image files to the most
            common shorter side, but at most 64.
        limit: use at most this many training images.
        device: "cpu", "cuda", "cuda:1", ...; by default the GPU where there is one.
        seed: of everything random.
    """

    data: str = "digits"
    channels: int | None = None
    cells: int | None = None
    auxiliary_weight: float | None = None
    cutout: int | None = None
    drop_path: float = 0.2
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    image_size: int | None = None
    limit: int | None = None
    device: str | None = None
    seed: int = 0

    def resolved(self, genotype: Genotype, data: ImageData) -> RetrainSettings:
        """A copy without None, checked.

        Raises:
            UserError: a setting that cannot be used, with its value and what to do.
        """
        images = len(data.train_images)
        size = recipe(images)
        nas_bench = genotype.reduce is None
        chosen: dict[str, Any] = {
            "channels": NAS_BENCH_201_CHANNELS if nas_bench else size.channels,
            "cells": NAS_BENCH_201_CELLS if nas_bench else size.cells,
            "auxiliary_weight": 0.0 if nas_bench else 0.4,
            "cutout": data.image_size // 2,
            "epochs": size.epochs,
            "batch_size": _batch_size(images),
            "image_size": data.image_size,
            "limit": images,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
        values = dataclasses.asdict(self)
        values |= {key: value for key, value in chosen.items() if values[key] is None}
        settings = RetrainSettings(**values)
        settings._check(images)
        if nas_bench and settings.auxiliary_weight:
            raise UserError(
                f"auxiliary_weight={settings.auxiliary_weight}: networks in the NAS-Bench-201 "
                "layout have no auxiliary head; leave it out"
            )
        return settings

    def _check(self, images: int) -> None:
        for name in ("epochs", "cells"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "grad_clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name}={getattr(self, name)} must be positive and finite")
        for name in ("auxiliary_weight", "momentum", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path={self.drop_path} is no probability below 1")
        # Batch normalization has nothing to normalize in a batch of one.
        if not 2 <= (self.batch_size or 0) <= images:
            raise UserError(
                f"batch_size={self.batch_size} must lie between 2 and the number of training "
                f"images, {images}"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"device {self.device!r} cannot be used here: {reason}") from None


def _batch_size(images: int) -> int:
    """96, or less where that would leave fewer than ten steps per epoch, but at least 2."""
    return max(2, min(LARGEST_BATCH, images // 10))


def given(value: _T | None) -> _T:
    """A setting that is never None once settings are resolved."""
    assert value is not None
    return value
