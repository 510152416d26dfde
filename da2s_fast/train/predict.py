"""Class names and probabilities for image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from da2s_fast.data import normalize, read_image
from da2s_fast.errors import UserError
from da2s_fast.train.counts import evaluating
from da2s_fast.train.evaluate import EVALUATION_BATCH, ModelSource, open_model

DEFAULT_TOPK = 5


class Prediction(NamedTuple):
    """The most probable classes of one image, best first."""

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    source: ModelSource, images: Sequence[str | Path], *, topk: int | None = None
) -> Iterator[Prediction]:
    """Classify image files.

    Args:
        source: a run folder, a model file, or a pair of model and information.
        images: files in any format Pillow reads; read as the images of a data set are, so resized
            and converted to grey or color as the model expects.
        topk: how many classes to give for each image; by default 5, or all if there are fewer.

    Yields:
        One prediction per file, in order.

    Raises:
        UserError: no model, a file that is missing or no image, or topk out of range.
    """
    model, info = open_model(source)
    count = min(DEFAULT_TOPK, len(info.classes)) if topk is None else topk
    if not 1 <= count <= len(info.classes):
        raise UserError(f"topk={count} must lie between 1 and the {len(info.classes)} classes")
    device = next(model.parameters()).device
    mean, std = torch.tensor(info.mean, device=device), torch.tensor(info.std, device=device)
    for start in range(0, len(images), EVALUATION_BATCH):
        paths = [Path(path) for path in images[start : start + EVALUATION_BATCH]]
        pixels = torch.stack([read_image(p, info.in_channels, info.image_size) for p in paths])
        with evaluating(model):
            scores = model(normalize(pixels.to(device), mean, std)).softmax(dim=1)
        best = scores.topk(count, dim=1)
        for path, values, indices in zip(
            paths, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            yield Prediction(path, tuple(info.classes[k] for k in indices), tuple(values))
