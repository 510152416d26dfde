"""Settings of a search: what the user may set, and what follows from the data where they do not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from da2s_fast.data import ImageData
from da2s_fast.search.checks import check_types, check_values
from da2s_fast.search.control import ControlName
from da2s_fast.spaces import SearchSpace, get_space

Method = Literal["da2s", "darts", "pc-darts"]
Precision = Literal["float32", "bfloat16", "float16"]

AUTHORS_EPOCHS = 50
AUTHORS_WARMUP = 8
ARCH_MOVEMENT = 5.85
"""Architecture steps x learning rate in the authors' setting (50 epochs x 390 steps x 3e-4).

Adam moves a parameter by about its rate per step: a shorter search needs a higher one."""
SMALL_DATA_MOVEMENT = 3 * ARCH_MOVEMENT
"""The same for small data sets, whose cross-entropy is soon near zero: with little to learn from,
alpha starts to move late, and some edges would still be undecided at the end."""
AUTHORS_LOSS_WEIGHT = 0.1
SMALL_DATA_LOSS_WEIGHT = 3 * AUTHORS_LOSS_WEIGHT
"""Lambda for small data sets. Adam divides by gradients of the last thousand steps, in a short
search those of the beginning too: beside them the authors' 0.1 can leave an edge torn between two
operations to the end, which then costs tens of points."""
SMALL_DATA, LARGE_DATA = 5_000, 20_000
"""Training images below and from which a data set counts as small or large."""
LEAST_STEPS = 660
"""Steps of a search by default, at least: the weights need time to follow the architecture."""


@dataclass
class SearchSettings:
    """Everything that decides a search; None means: chosen by method and data.

    Attributes:
        data: "digits", "cifar10", "cifar100", a folder of images or an .npz file.
        method: da2s (discretization-aware), darts, or pc-darts.
        space: "darts" (8 operations), "da2s" (7) or "nas-bench-201"; by default the method's.
        operations: subset of the operations, or names you registered.
        nodes: intermediate nodes per cell.
        cells: number of cells (NAS-Bench-201: per stage).
        channels: channels of the first cell.
        partial_channels: mix only 1/K of the channels (PC-DARTS); 1 mixes all.
        keep_normal: edges each node of a normal cell keeps, for example [1, 2, 3, 3].
        keep_reduce: the same for reduction cells; by default as keep_normal.
        image_size: resize images to this height and width; by default image files to the most
            common shorter side, but at most 64.
        limit: use at most this many training images.
        epochs: length of the search, T.
        warmup: epochs before the operation weights learn, E.
        batch_size: images per step, for weights and architecture each.
        learning_rate: of the weights (SGD), at the start of the cosine.
        learning_rate_min: at its end.
        momentum: of SGD.
        weight_decay: of the weights.
        grad_clip: norm to which the weight gradient is clipped.
        arch_learning_rate: of alpha and beta (Adam); by default it follows the number of steps.
        arch_weight_decay: of alpha and beta.
        second_order: DARTS's unrolled architecture gradient.
        loss_weight: lambda, weight of the discretization loss; by default larger for small data.
        edge_loss_weight: mu, weight of its edge term.
        loss_control: control function of the whole discretization loss.
        operation_control: control function of its operation term, after the warm-up.
        precision: arithmetic of the forward pass (autocast).
        compat: "daas" reproduces the authors' code with its quirks.
        measure_images: images on which the gap is measured after each epoch (at the end: all).
        device: "cpu", "cuda", "cuda:1", ...; by default the GPU where there is one.
        cuda_graph: record the steps as a CUDA graph and replay them: the same numbers without the
            time between kernels. By default on GPUs, but for precision float16, which cannot be
            recorded, and second_order.
        seed: of everything random.

    Raises:
        UserError: a value of another type than its field's.
    """

    data: str = "digits"
    method: Method = "da2s"
    space: str | None = None
    operations: list[str] | None = None
    nodes: int | None = None
    cells: int | None = None
    channels: int | None = None
    partial_channels: int | None = None
    keep_normal: list[int] | None = None
    keep_reduce: list[int] | None = None
    image_size: int | None = None
    limit: int | None = None
    epochs: int | None = None
    warmup: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    learning_rate_min: float | None = None
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    arch_learning_rate: float | None = None
    arch_weight_decay: float = 1e-3
    second_order: bool = False
    loss_weight: float | None = None
    edge_loss_weight: float = 4.0
    loss_control: ControlName = "linear"
    operation_control: ControlName = "log"
    precision: Precision = "float32"
    compat: Literal["daas"] | None = None
    measure_images: int = 5000
    device: str | None = None
    cuda_graph: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values of another type than their field's."""
        check_types(self)

    def search_space(self) -> SearchSpace:
        """The space with the chosen operations and nodes; UserError when they do not fit."""
        default = "da2s" if self.method == "da2s" else "darts"
        return get_space(self.space or default, self.operations, self.nodes)

    def keep(self) -> dict[str, tuple[int, ...]]:
        """Edges each node keeps, per cell kind."""
        space = self.search_space()
        normal = self.keep_normal
        reduce = self.keep_reduce if self.keep_reduce is not None else normal
        given = {"normal": normal, "reduce": reduce}
        return space.keep_targets(
            {kind: counts for kind in space.kinds if (counts := given[kind]) is not None} or None
        )

    def resolved(self, data: ImageData) -> ResolvedSettings:
        """A copy without None, checked against the data.

        Raises:
            UserError: a setting that cannot be used, with its value and what to do.
        """
        images = len(data.train_images)
        half = images // 2
        space = self.search_space()
        large, small = images >= LARGE_DATA, images < SMALL_DATA
        largest = 256 if self.method == "pc-darts" else 64
        batch = self.batch_size or _batch_size(half, 32 if small else largest)
        steps = max(half // batch, 1)
        least = min(max(25, math.ceil(LEAST_STEPS / steps)), AUTHORS_EPOCHS)
        epochs = self.epochs or (AUTHORS_EPOCHS if large else least)
        warmup = self._warmup(epochs) if self.warmup is None else self.warmup
        keep = self.keep()
        pc_darts = self.method == "pc-darts"
        sizes = (2, 2, 5) if space.macro == "nas-bench-201" else (3, 5, 8)
        chosen: dict[str, Any] = {
            "space": space.name,
            "operations": list(space.primitives),
            "nodes": space.nodes,
            "cells": sizes[0 if small else 2 if large else 1],
            "channels": 8 if small else 16,
            "partial_channels": 4 if pc_darts else 1,
            "image_size": data.train_images.shape[-1],
            "limit": images,
            "epochs": epochs,
            "warmup": warmup,
            "batch_size": batch,
            "learning_rate": 0.1 if pc_darts else 0.025,
            "learning_rate_min": 0.0 if pc_darts else 0.001,
            "arch_learning_rate": (SMALL_DATA_MOVEMENT if small else ARCH_MOVEMENT)
            / (steps * epochs),
            "loss_weight": SMALL_DATA_LOSS_WEIGHT
            if small and not self.compat
            else AUTHORS_LOSS_WEIGHT,
            "device": _default_device(),
        }
        device = self.device or chosen["device"]
        recordable = self.precision != "float16" and not self.second_order
        chosen["cuda_graph"] = device.startswith("cuda") and recordable
        values = dataclasses.asdict(self)
        values |= {key: value for key, value in chosen.items() if values[key] is None}
        values["keep_normal"] = list(keep["normal"])
        values["keep_reduce"] = list(keep.get("reduce", ()))
        settings = ResolvedSettings(**values)
        check_values(settings, data)
        return settings

    def _warmup(self, epochs: int) -> int:
        """The authors' share of the search during which alpha stays frozen."""
        if self.compat:
            return AUTHORS_WARMUP
        share = {"da2s": 0.16, "darts": 0.0, "pc-darts": 0.3}[self.method]
        return max(min(round(share * epochs), epochs - 2), 0)


@dataclass
class ResolvedSettings(SearchSettings):
    """Settings in which nothing is left open."""

    space: str = ""
    operations: list[str] = field(default_factory=list)
    nodes: int = 0
    cells: int = 0
    channels: int = 0
    partial_channels: int = 0
    keep_normal: list[int] = field(default_factory=list)
    keep_reduce: list[int] = field(default_factory=list)
    image_size: int = 0
    limit: int = 0
    epochs: int = 0
    warmup: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    learning_rate_min: float = 0.0
    arch_learning_rate: float = 0.0
    loss_weight: float = 0.0
    device: str = ""
    cuda_graph: bool = False


def _batch_size(half: int, largest: int) -> int:
    """A power of two that makes at least ten steps of half the training set, from 4 on."""
    if half < 8:
        return max(half, 1)
    return min(largest, max(4, 2 ** int(math.log2(max(half // 10, 1)))))


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
