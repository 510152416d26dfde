"""From a genotype and settings to the network that is trained, and how large that is."""

from __future__ import annotations

import torch

from da2s_fast.data import ImageData
from da2s_fast.nn.super_network import IMAGENET_SIZE
from da2s_fast.spaces import Genotype
from da2s_fast.train.counts import count_multiply_adds, count_parameters
from da2s_fast.train.model_file import DerivedModel, ModelInfo
from da2s_fast.train.settings import RetrainSettings, given


def model_info(genotype: Genotype, settings: RetrainSettings, data: ImageData) -> ModelInfo:
    """How the network of a genotype is built for some data; the settings are resolved."""
    return ModelInfo(
        genotype=str(genotype),
        channels=given(settings.channels),
        cells=given(settings.cells),
        auxiliary=bool(settings.auxiliary_weight),
        stem="imagenet" if data.image_size >= IMAGENET_SIZE else "cifar",
        in_channels=data.channels,
        image_size=data.image_size,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
    )


def build_model(info: ModelInfo, seed: int) -> DerivedModel:
    """The network, its weights drawn from the seed; torch's global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return info.build()


def derived_size(genotype: Genotype, data: ImageData) -> dict[str, int]:
    """Size and cost of the network that `retrain` makes of a genotype where nothing else is asked.

    Returns:
        "channels" of the first cells and number of "cells", "parameters" without the auxiliary
        head, "multiply_adds" for one image.

    Raises:
        UserError: too few images to train on.
    """
    info = model_info(genotype, RetrainSettings().resolved(genotype, data), data)
    model = build_model(info, 0)
    return {
        "channels": info.channels,
        "cells": info.cells,
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, info.input_shape),
    }
