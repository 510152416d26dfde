"""Accuracy of a trained model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.data import ImageData, evaluation_batches, load_data
from da2s_fast.errors import UserError
from da2s_fast.train.counts import evaluating
from da2s_fast.train.model_file import DerivedModel, ModelInfo, load_model

MODEL_FILE = "model.pt"
EVALUATION_BATCH = 256

ModelSource = str | Path | tuple[DerivedModel, ModelInfo]
"""A run folder, a model file, or what `load_model` returns."""


class Evaluation(NamedTuple):
    """Mean cross entropy, share of images classified correctly (0 to 1), number of images."""

    loss: float
    accuracy: float
    images: int


def open_model(
    source: ModelSource, device: torch.device | str | None = None
) -> tuple[DerivedModel, ModelInfo]:
    """The model of a run folder or a model file, in evaluation mode.

    Args:
        source: where the model is; a pair of model and information is returned as it is.
        device: where to put a model that is loaded; by default the GPU where there is one.

    Raises:
        UserError: there is no model.
    """
    if isinstance(source, tuple):
        return source
    path = Path(source)
    if path.is_dir():
        path = path / MODEL_FILE
        if not path.exists():
            raise UserError(
                f"{path.parent} holds no {MODEL_FILE}; finish a retraining there or name a model"
            )
    return load_model(path, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))


def evaluate(source: ModelSource, data: str | ImageData) -> Evaluation:
    """Loss and accuracy on the test images of a data set.

    Images are normalized with the statistics of the data the model was trained on.

    Args:
        source: a run folder, a model file, or a pair of model and information.
        data: loaded data, or a source for `load_data`, resized to what the model expects.

    Raises:
        UserError: no model, no data, or data of other channels, size or classes.
    """
    model, info = open_model(source)
    if not isinstance(data, ImageData):
        data = load_data(data, image_size=info.image_size)
    if (data.channels, data.image_size) != (info.in_channels, info.image_size):
        raise UserError(
            f"{data.name} has images of {data.channels}x{data.image_size}x{data.image_size}, but "
            f"the model was trained on {info.in_channels}x{info.image_size}x{info.image_size}"
        )
    if data.classes != info.classes:
        raise UserError(
            f"{data.name} has the classes {_shortened(data.classes)}, but the model knows "
            f"{_shortened(info.classes)}; evaluate it on data with its own classes"
        )
    batches = evaluation_batches(
        data.test_images,
        data.test_labels,
        EVALUATION_BATCH,
        mean=info.mean,
        std=info.std,
        device=next(model.parameters()).device,
    )
    return measure(model, batches)


def measure(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Loss and accuracy over (images, labels) batches; the model's mode is restored."""
    loss = hits = torch.zeros(())
    images = 0
    with evaluating(model):
        for x, labels in batches:
            logits = model(x)
            loss = loss + F.cross_entropy(logits, labels, reduction="sum").double()
            hits = hits + (logits.argmax(dim=1) == labels).sum()
            images += len(labels)
    return Evaluation(loss.item() / images, hits.item() / images, images)


def _shortened(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5])
    return f"{shown}, ... ({len(classes)})" if len(classes) > 5 else shown
