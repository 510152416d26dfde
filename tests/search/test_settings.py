"""Settings: what follows from the data, and what is refused with one sentence."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2s_fast import search
from da2s_fast.data import ImageData
from da2s_fast.errors import UserError
from da2s_fast.search import SearchSession, SearchSettings
from da2s_fast.search.settings import ResolvedSettings


def data(images: int, size: int = 8, channels: int = 1) -> ImageData:
    """Random pixels: only their number and size matter here."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(max(images, 10)) % 2

    def pixels(count: int) -> torch.Tensor:
        shape = (count, channels, size, size)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    return ImageData(
        name="random",
        train_images=pixels(images),
        train_labels=labels[:images],
        test_images=pixels(10),
        test_labels=labels[:10],
        classes=("a", "b"),
        mean=(0.5,) * channels,
        std=(0.3,) * channels,
    )


SMALL, CIFAR = data(1438), data(50_000, 8)


class TestDefaults:
    def test_the_authors_setting_on_a_data_set_of_cifars_size(self) -> None:
        resolved = SearchSettings().resolved(CIFAR)
        expected = {
            "method": "da2s",
            "space": "da2s",
            "nodes": 4,
            "cells": 8,
            "channels": 16,
            "partial_channels": 1,
            "keep_normal": [2, 2, 2, 2],
            "keep_reduce": [2, 2, 2, 2],
            "epochs": 50,
            "warmup": 8,
            "batch_size": 64,
            "learning_rate": 0.025,
            "learning_rate_min": 0.001,
            "momentum": 0.9,
            "weight_decay": 3e-4,
            "grad_clip": 5,
            "arch_weight_decay": 1e-3,
            "loss_weight": 0.1,
            "edge_loss_weight": 4,
            "loss_control": "linear",
            "operation_control": "log",
        }
        assert {name: getattr(resolved, name) for name in expected} == expected
        assert resolved.arch_learning_rate == pytest.approx(3e-4)
        assert len(resolved.operations) == 7

    def test_pc_darts_on_a_data_set_of_cifars_size(self) -> None:
        resolved = SearchSettings(method="pc-darts").resolved(CIFAR)
        assert (resolved.batch_size, resolved.partial_channels, resolved.warmup) == (256, 4, 15)
        assert (resolved.learning_rate, resolved.learning_rate_min) == (0.1, 0)
        assert resolved.space == "darts"
        assert len(resolved.operations) == 8

    def test_darts(self) -> None:
        resolved = SearchSettings(method="darts").resolved(CIFAR)
        assert (resolved.space, resolved.warmup, resolved.epochs) == ("darts", 0, 50)

    @pytest.mark.parametrize("images", [2, 3, 10, 50, 200, 1438, 6000, 19_999, 20_000, 50_000])
    @pytest.mark.parametrize("method", ["da2s", "darts", "pc-darts"])
    def test_fit_every_size(self, images: int, method: Any) -> None:
        resolved = SearchSettings(method=method).resolved(data(images))
        steps = (images // 2) // resolved.batch_size
        assert steps >= 1
        assert 25 <= resolved.epochs <= 50
        # The same total movement of alpha and beta whatever the length.
        movement = 3 * 5.85 if images < 5000 else 5.85
        assert steps * resolved.epochs * resolved.arch_learning_rate == pytest.approx(movement)
        assert resolved.loss_weight == pytest.approx(0.3 if images < 5000 else 0.1)
        assert not any(value is None for name, value in vars(resolved).items() if name != "compat")

    def test_the_authors_code_knows_no_small_data(self) -> None:
        assert SearchSettings(compat="daas").resolved(SMALL).loss_weight == 0.1

    @pytest.mark.parametrize("epochs", [1, 2, 3, 5, 10, 50, 100])
    @pytest.mark.parametrize("method", ["da2s", "darts", "pc-darts"])
    def test_warmup_leaves_time_in_every_length(self, epochs: int, method: Any) -> None:
        warmup = SearchSettings(method=method, epochs=epochs).resolved(SMALL).warmup
        assert 0 <= warmup < max(epochs - 1, 1)
        share = {"da2s": 0.16, "darts": 0, "pc-darts": 0.3}[method]
        if epochs >= 5:
            assert warmup == round(share * epochs)

    def test_nas_bench_201(self) -> None:
        resolved = SearchSettings(space="nas-bench-201").resolved(SMALL)
        assert (resolved.nodes, resolved.cells) == (3, 2)
        assert resolved.keep_normal == [1, 2, 3]
        assert SearchSettings(space="nas-bench-201").resolved(CIFAR).cells == 5

    def test_what_is_given_is_kept(self) -> None:
        given = {
            "operations": ["skip_connect", "sep_conv_3x3"],
            "nodes": 3,
            "cells": 4,
            "channels": 12,
            "partial_channels": 3,
            "keep_normal": [1, 2, 3],
            "epochs": 9,
            "warmup": 3,
            "batch_size": 7,
            "learning_rate": 0.5,
            "learning_rate_min": 0.0,
            "arch_learning_rate": 0.01,
        }
        resolved = SearchSettings(**given).resolved(SMALL)
        assert {name: getattr(resolved, name) for name in given} == given
        assert resolved.keep_reduce == [1, 2, 3]
        assert SearchSettings(nodes=2, keep_reduce=[1, 1]).keep() == {
            "normal": (2, 2),
            "reduce": (1, 1),
        }

    def test_resolving_again_changes_nothing(self) -> None:
        resolved = SearchSettings(method="pc-darts", keep_reduce=[2, 1, 2, 5]).resolved(SMALL)
        assert resolved.resolved(SMALL) == resolved
        assert isinstance(resolved, ResolvedSettings)


REFUSED = [
    ({"method": "random"}, r"method='random' cannot be used; method takes one of da2s, darts, pc-"),
    ({"precision": "fp16"}, "precision='fp16' cannot be used"),
    ({"compat": "darts"}, "compat='darts' cannot be used"),
    ({"loss_control": "cosine"}, "loss_control='cosine' .* takes one of const, linear, log"),
    ({"operation_control": None}, "operation_control=None"),
    ({"epochs": "10"}, "epochs='10' cannot be used; epochs takes a whole number"),
    ({"epochs": 2.5}, "epochs=2.5"),
    ({"epochs": True}, "epochs=True"),
    ({"seed": None}, "seed=None"),
    ({"momentum": "high"}, "momentum='high' .* takes a number"),
    ({"second_order": 1}, "second_order=1 .* takes true or false"),
    ({"keep_normal": 2}, "keep_normal=2 .* takes a list, each a whole number"),
    ({"keep_normal": [1, 2.0, 3, 3]}, "keep_normal="),
    ({"operations": "skip_connect"}, "operations='skip_connect'"),
    ({"data": 3}, "data=3 cannot be used; data takes a text"),
    ({"epochs": 0}, "epochs=0 must be at least 1"),
    ({"epochs": -3}, "epochs=-3 must be at least 1"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": -1}, "batch_size=-1"),
    ({"batch_size": 101}, r"batch_size=101 is larger than half of the training set \(100 images"),
    ({"cells": 0}, "cells=0"),
    ({"cells": 1}, "cells=1 leaves no normal cell"),
    ({"cells": 2}, "cells=2 leaves no normal cell"),
    ({"channels": 0}, "channels=0"),
    ({"partial_channels": 0}, "partial_channels=0"),
    ({"nodes": 0}, "nodes is 0"),
    ({"measure_images": 0}, "measure_images=0"),
    ({"limit": 0}, "limit=0"),
    ({"limit": 150}, "limit=150 but the data given have 200 training images"),
    ({"image_size": 32}, "image_size=32 but the images given have 8 pixels"),
    ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
    ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ({"arch_learning_rate": float("inf")}, "arch_learning_rate=inf"),
    ({"grad_clip": -1.0}, "grad_clip=-1.0"),
    ({"learning_rate_min": -0.1}, "learning_rate_min=-0.1"),
    ({"weight_decay": float("inf")}, "weight_decay=inf"),
    ({"loss_weight": -1}, "loss_weight=-1"),
    ({"warmup": -1}, "warmup=-1"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**62}, "seed=4611686018427387904 is too large"),
    ({"epochs": 10, "warmup": 9}, r"warmup=9 leaves no time .* at most 8 epochs"),
    ({"epochs": 1, "warmup": 1}, "warmup=1 leaves no time"),
    ({"device": "gpu"}, "device='gpu' is unknown"),
    ({"device": "meta"}, "device='meta' is not supported"),
    ({"device": "cuda:99"}, "device='cuda:99' is not there"),
    ({"device": "cpu:1"}, "device='cpu:1' is not there"),
    ({"space": "imagenet"}, "unknown search space 'imagenet'"),
    ({"operations": ["skip"]}, "unknown operation 'skip'"),
    ({"operations": []}, "at least one operation"),
    ({"keep_normal": [1, 2, 3]}, "keep has 3 numbers for normal cells; give 4"),
    ({"keep_reduce": [3, 2, 2, 2]}, "keep is 3 for node 1 of reduce cells"),
    ({"keep_normal": [0, 2, 2, 2]}, "keep is 0 for node 1 of normal cells"),
    ({"second_order": True, "precision": "float16"}, "second_order=True needs gradients without"),
    ({"compat": "daas", "method": "darts"}, "compat='daas' reproduces"),
    ({"compat": "daas", "space": "darts"}, "compat='daas' reproduces"),
    ({"compat": "daas", "second_order": True}, "compat='daas' reproduces"),
    ({"compat": "daas", "keep_normal": [1, 2, 2, 2]}, "compat='daas' keeps two edges"),
    ({"compat": "daas", "keep_reduce": [1, 2, 2, 2]}, "compat='daas' keeps two edges"),
    ({"compat": "daas", "epochs": 9}, "warmup=8 leaves no time"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(given: dict[str, Any], message: str, digits: ImageData) -> None:
    with pytest.raises(UserError, match=message) as caught:
        SearchSettings(**given).resolved(digits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epoch", "there is no setting 'epoch'; did you mean epochs"),
        ("colour", "there is no setting 'colour'; there are data, method, space"),
    ],
)
def test_names_of_no_setting(name: str, words: str, digits: ImageData) -> None:
    with pytest.raises(UserError, match=words):
        search(digits, **{name: 3})


def test_partial_channels_that_do_not_divide(digits: ImageData) -> None:
    resolved = SearchSettings(channels=8, partial_channels=3).resolved(digits)
    with pytest.raises(UserError, match="channels=8 cannot be split by partial_channels=3"):
        SearchSession(resolved, digits)


def numbers(low: int, high: int) -> st.SearchStrategy:
    return st.one_of(st.none(), st.integers(low, high))


ANYTHING = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["da2s", "darts", "pc-darts"]),
        "space": st.sampled_from([None, "da2s", "darts", "nas-bench-201"]),
        "operations": st.one_of(
            st.none(), st.lists(st.sampled_from(["none", "skip_connect", "nor_conv_1x1", "x"]))
        ),
        "nodes": numbers(-1, 3),
        "cells": numbers(-1, 4),
        "channels": numbers(-1, 9),
        "partial_channels": numbers(-1, 5),
        "keep_normal": st.one_of(st.none(), st.lists(st.integers(-1, 4), max_size=4)),
        "keep_reduce": st.one_of(st.none(), st.lists(st.integers(-1, 4), max_size=4)),
        "epochs": numbers(-1, 12),
        "warmup": numbers(-1, 12),
        "batch_size": numbers(-1, 120),
        "learning_rate": st.floats(),
        "arch_learning_rate": st.floats(),
        "weight_decay": st.floats(),
        "second_order": st.booleans(),
        "precision": st.sampled_from(["float32", "bfloat16", "float16"]),
        "compat": st.sampled_from([None, "daas"]),
        "measure_images": st.integers(-1, 10),
        "device": st.sampled_from([None, "cpu", "cuda:7", ""]),
        "seed": st.integers(),
    },
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ANYTHING)
def test_anything_either_builds_or_is_refused(digits: ImageData, given: dict[str, Any]) -> None:
    try:
        resolved = SearchSettings(**given).resolved(digits)
        session = SearchSession(resolved, digits)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is fine
        return
    session.begin_epoch(1)
    again = SearchSettings(**dataclasses.asdict(resolved)).resolved(digits)
    assert again == resolved
