"""Parameters and multiply-adds against counts by hand and published ones."""

import torch
from torch import nn

from da2s_fast.train import ModelInfo, count_multiply_adds, count_parameters
from tests.spaces.test_genotype import DARTS_V2

from .conftest import GENOTYPE


def network(genotype: str, **values):
    info = {
        "channels": 4,
        "cells": 3,
        "auxiliary": True,
        "stem": "cifar",
        "in_channels": 3,
        "image_size": 13,
        "classes": tuple("abcde"),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    return ModelInfo(genotype=genotype, **info | values).build()


def test_multiply_adds_are_those_of_every_layer_seen_by_hooks():
    model = network(GENOTYPE)
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            per_output = module.in_channels // module.groups * module.kernel_size[0] ** 2
            counted += output.numel() * per_output
        elif isinstance(module, nn.Linear):
            counted += output.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    model.eval()(torch.zeros(1, 3, 13, 13))
    for hook in hooks:
        hook.remove()
    assert count_multiply_adds(model, (3, 13, 13)) == counted


def test_multiply_adds_of_layers_counted_by_hand():
    layers = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten(), nn.Linear(6 * 9, 5)
    )
    assert count_multiply_adds(layers, (4, 5, 5)) == 6 * 9 * (2 * 9) + 54 * 5


def test_parameter_count_published_for_darts_on_imagenet():
    model = network(
        DARTS_V2, channels=48, cells=14, stem="imagenet", classes=tuple(map(str, range(1000)))
    )
    # The DARTS authors' script reports 4.718752 MB (4.7 M in Liu et al. 2019, table 3). The 574 M
    # multiply-adds of that table are not what the convolutions and linear layers of the authors'
    # own network add up to, so they are no test.
    assert count_parameters(model) == 4_718_752
    assert count_multiply_adds(model, (3, 224, 224)) == 529_911_552


def test_counting_changes_nothing():
    model = network(GENOTYPE).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_multiply_adds(model, (3, 13, 13))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_auxiliary_head_is_not_counted():
    with_head, without = (network(GENOTYPE, auxiliary=auxiliary) for auxiliary in (True, False))
    assert count_parameters(with_head) == count_parameters(without)
    shape = (3, 13, 13)
    assert count_multiply_adds(with_head, shape) == count_multiply_adds(without, shape)
