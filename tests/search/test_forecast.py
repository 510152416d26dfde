"""The forecast before a search: it changes nothing, and its bytes are those that stay alive."""

import copy
import time
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from da2s_fast.search import Forecast, SearchSession, forecast
from da2s_fast.search.architect import Architect
from da2s_fast.search.loop import run_search
from tests.search.conftest import MakeSession
from tests.search.test_session import assert_same_bits


class Alive(TorchDispatchMode):
    """Remembers every storage that an operator makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.storages[reference.cdata] = (reference, storage.nbytes())
        return results

    def bytes(self) -> int:
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def bytes_alive_after_forward(session: SearchSession) -> int:
    """What the graph of one weight step holds that was not there before."""
    network = copy.deepcopy(session.network)
    for parameter in network.arch_parameters():
        parameter.requires_grad_(False)
    images, labels = session.weight_loader.next_batch()
    there = {tensor.untyped_storage()._cdata for tensor in (*network.buffers(), images, labels)}
    there |= {weight.untyped_storage()._cdata for weight in network.weights()}
    with Alive() as alive:
        loss = Architect(network, session.architect.autocast).loss((images, labels))
    for known in there:
        alive.storages.pop(known, None)
    total = alive.bytes()
    assert loss.requires_grad  # and with it the graph is alive until here
    return total - loss.untyped_storage().nbytes()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "pc-darts", "partial_channels": 2},
        {"method": "darts", "cells": 4, "nodes": 3},
        {"space": "nas-bench-201", "operations": ["skip_connect", "nor_conv_3x3"], "cells": 1},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_bytes_are_those_alive_after_the_forward_pass(
    make_session: MakeSession, settings: dict[str, Any]
) -> None:
    session = make_session(**settings)
    expected = bytes_alive_after_forward(session)
    result = forecast(session).activation_bytes
    # Autograd also keeps a few tensors of one number (the mixing weights' views, the loss).
    assert result == pytest.approx(expected, rel=0.02)
    assert result > 100_000


def test_bytes_grow_with_the_batch(make_session: MakeSession) -> None:
    small, large = (forecast(make_session(batch_size=b)).activation_bytes for b in (16, 64))
    assert large == pytest.approx(4 * small, rel=0.1)


@pytest.mark.parametrize("method", ["da2s", "darts", "pc-darts"])
def test_changes_nothing(make_session: MakeSession, method: str) -> None:
    session = make_session(method=method, partial_channels=2)
    before = copy.deepcopy(session.state_dict())
    random = torch.get_rng_state()
    forecast(session)
    assert_same_bits(session.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert session.network.training
    for parameter in [*session.network.weights(), *session.network.arch_parameters()]:
        assert parameter.requires_grad
        assert parameter.grad is None


def test_search_is_the_same_with_and_without(make_session: MakeSession) -> None:
    sessions = [make_session(epochs=1, warmup=0) for _ in range(2)]
    forecast(sessions[0])
    first, second = (run_search(session) for session in sessions)
    assert first.history[0]["train_loss"] == second.history[0]["train_loss"]
    assert first.genotype == second.genotype


class Clock:
    """A clock that each look moves on by a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize(
    ("settings", "arch_steps"),
    [
        ({"method": "da2s", "epochs": 5, "warmup": 2}, 5 * 6),
        ({"method": "pc-darts", "epochs": 5, "warmup": 2, "partial_channels": 2}, 3 * 6),
        ({"method": "darts", "epochs": 5, "warmup": 1}, 4 * 6),
        ({"method": "darts", "epochs": 5, "warmup": 0, "second_order": True}, 4 * 5 * 6),
        (
            {"space": "nas-bench-201", "operations": ["skip_connect"], "epochs": 5, "warmup": 2},
            4 * 6,
        ),
    ],
    ids=str,
)
def test_seconds_count_every_step_and_measurement(
    make_session: MakeSession,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    arch_steps: int,
) -> None:
    """On a clock on which every step and every pass takes one second."""
    session = make_session(**settings, measure_images=50)
    monkeypatch.setattr(time, "perf_counter", Clock())
    passes = 5 * 2.5 * 50 / 16
    assert forecast(session).seconds == pytest.approx(5 * 6 + arch_steps + passes)


@pytest.mark.parametrize(
    ("seconds", "length"), [(7.4, "7 s"), (59.6, "1 min 00 s"), (3 * 3600 + 125, "3 h 02 min")]
)
def test_text(seconds: float, length: str) -> None:
    text = str(Forecast(seconds, 1_536_000_000))
    assert text == f"about {length} and 1,536 MB for activations"
