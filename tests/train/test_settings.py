"""Defaults that follow the data, and settings that cannot work."""

import pytest

from da2s_fast.errors import UserError
from da2s_fast.spaces import Genotype
from da2s_fast.train import RetrainSettings, recipe

from .conftest import GENOTYPE, NAS_BENCH_201


def test_large_data_sets_get_the_recipe_of_darts():
    assert recipe(50_000) == (36, 20, 600)
    settings = RetrainSettings()
    assert (settings.learning_rate, settings.momentum, settings.weight_decay) == (0.025, 0.9, 3e-4)
    assert (settings.drop_path, settings.grad_clip) == (0.2, 5.0)


def test_recipe_grows_with_the_data():
    small, medium, large = (recipe(images) for images in (100, 5_000, 20_000))
    assert all(a < b < c for a, b, c in zip(small, medium, large, strict=True))


def test_defaults_follow_the_data(digits):
    settings = RetrainSettings().resolved(Genotype.parse(GENOTYPE), digits)
    assert (settings.channels, settings.cells, settings.epochs) == recipe(len(digits.train_images))
    assert settings.cutout == 4
    assert settings.auxiliary_weight == 0.4
    assert settings.batch_size == 96
    assert settings.resolved(Genotype.parse(GENOTYPE), digits) == settings


def test_defaults_for_nas_bench_201(digits):
    settings = RetrainSettings().resolved(Genotype.parse(NAS_BENCH_201), digits)
    assert (settings.channels, settings.cells, settings.auxiliary_weight) == (16, 5, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"cells": 0}, "cells=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight=-0.1"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"batch_size": 1}, "batch_size=1 must lie between 2 and"),
        ({"batch_size": 10_000}, "batch_size=10000 must lie between 2 and"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_impossible_settings_are_refused(digits, values, message):
    with pytest.raises(UserError, match=message):
        RetrainSettings(**values).resolved(Genotype.parse(GENOTYPE), digits)


def test_auxiliary_head_is_refused_for_nas_bench_201(digits):
    with pytest.raises(UserError, match="no auxiliary head"):
        RetrainSettings(auxiliary_weight=0.4).resolved(Genotype.parse(NAS_BENCH_201), digits)
