"""What settings must satisfy before a search may start."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from da2s_fast.data import ImageData
from da2s_fast.errors import UserError

if TYPE_CHECKING:
    from da2s_fast.search.settings import ResolvedSettings

LARGEST_SEED = 2**62
"""Loaders use twice the seed, and torch's generators take 64 bits."""


def check_names(given: Iterable[str], settings: type) -> None:
    """Demand that a dataclass has fields of these names.

    Raises:
        UserError: naming the first that it does not have, and the most similar one that it has.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UserError(f"there is no setting {name!r}; {hint}")


def check_types(settings: Any) -> None:
    """Demand that every field of a dataclass has the type of its annotation.

    Raises:
        UserError: naming the field, its value and what it takes.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, hint):
            raise UserError(f"{name}={value!r} cannot be used; {name} takes {_describe(hint)}")


def check_values(settings: ResolvedSettings, data: ImageData) -> None:
    """Refuse values that cannot work, alone, together or with the data.

    Raises:
        UserError: naming the setting, its value and what to do.
    """
    _check_numbers(settings)
    _check_data(settings, data)
    _check_device(settings.device)
    if settings.warmup and settings.warmup >= settings.epochs - 1:
        raise UserError(
            f"warmup={settings.warmup} leaves no time to search in {settings.epochs} epochs; choose"
            f" a warm-up of at most {max(settings.epochs - 2, 0)} epochs or search longer"
        )
    if settings.search_space().macro == "darts" and settings.cells < 3:
        raise UserError(
            f"cells={settings.cells} leaves no normal cell between the reduction cells; choose at "
            "least 3"
        )
    if settings.second_order and settings.precision == "float16":
        raise UserError(
            "second_order=True needs gradients without loss scaling; choose precision float32 or "
            "bfloat16 instead of float16"
        )
    if settings.cuda_graph:
        _check_graph(settings)
    if settings.compat:
        _check_compat(settings)


def _check_numbers(settings: ResolvedSettings) -> None:
    for name in (
        "epochs",
        "batch_size",
        "cells",
        "channels",
        "partial_channels",
        "nodes",
        "limit",
        "measure_images",
    ):
        if getattr(settings, name) < 1:
            raise UserError(f"{name}={getattr(settings, name)} must be at least 1")
    for name in ("learning_rate", "arch_learning_rate", "grad_clip"):
        if not (math.isfinite(getattr(settings, name)) and getattr(settings, name) > 0):
            raise UserError(f"{name}={getattr(settings, name)} must be positive and finite")
    for name in (
        "learning_rate_min",
        "momentum",
        "weight_decay",
        "arch_weight_decay",
        "loss_weight",
        "edge_loss_weight",
        "warmup",
        "seed",
    ):
        if not (math.isfinite(getattr(settings, name)) and getattr(settings, name) >= 0):
            raise UserError(f"{name}={getattr(settings, name)} must be finite and not negative")
    if settings.seed >= LARGEST_SEED:
        raise UserError(f"seed={settings.seed} is too large; choose one below 2^62")


def _check_data(settings: ResolvedSettings, data: ImageData) -> None:
    half = len(data.train_images) // 2
    if settings.batch_size > half:
        raise UserError(
            f"batch_size={settings.batch_size} is larger than half of the training set ({half} "
            "images); choose a smaller batch or give more images"
        )
    # These two are for loading; images that are loaded already stay as they are.
    if settings.limit < len(data.train_images):
        raise UserError(
            f"limit={settings.limit} but the data given have {len(data.train_images)} training "
            "images; load them with this limit"
        )
    if settings.image_size != data.image_size:
        raise UserError(
            f"image_size={settings.image_size} but the images given have {data.image_size} pixels; "
            "load them in this size"
        )


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is unknown; choose cpu, cuda or cuda:0") from None
    if device.type not in {"cpu", "cuda"}:
        raise UserError(f"device={name!r} is not supported; choose cpu or cuda")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UserError(
            f"device={name!r} is not there ({count} of its kind can be used); choose another"
        )
    if device.type == "cuda":
        _check_driver(name)


def _check_driver(name: str) -> None:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"device={name!r} cannot be used ({reason}); install a driver and a torch that fit "
            "each other, or choose device cpu"
        ) from error


def _check_graph(settings: ResolvedSettings) -> None:
    if torch.device(settings.device).type != "cuda":
        raise UserError(
            f"cuda_graph=True needs a GPU, but device={settings.device!r}; choose device cuda or "
            "leave cuda_graph out"
        )
    if settings.precision == "float16":
        raise UserError(
            "cuda_graph=True cannot scale the loss, which needs to know about overflows; choose "
            "precision float32 or bfloat16 instead of float16"
        )


def _check_compat(settings: ResolvedSettings) -> None:
    if settings.method != "da2s" or settings.second_order or settings.space != "da2s":
        raise UserError(
            "compat='daas' reproduces the authors' DA2S search; it goes with method='da2s' in "
            "the da2s space and first-order steps only"
        )
    if {*settings.keep_normal, *settings.keep_reduce} != {2}:
        raise UserError("compat='daas' keeps two edges per node; leave keep counts out")


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is list:
        (item,) = get_args(hint)
        return isinstance(value, list | tuple) and all(_fits(element, item) for element in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in get_args(hint))
    if origin is Literal:
        return "one of " + ", ".join(get_args(hint))
    if origin is list:
        return f"a list, each {_describe(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "nothing")
