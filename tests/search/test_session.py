"""The state of a search: learning rates, warm-up, precision, and going on to the same bits."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from da2s_fast.data import ImageData, load_data
from da2s_fast.ops import discretization_loss
from da2s_fast.search import SearchSession, SearchSettings
from da2s_fast.search.control import control
from tests.nn.cell_modules import compiled
from tests.search.conftest import TINY, MakeSession

METHODS = ["da2s", "darts", "pc-darts"]


def step(session: SearchSession) -> tuple[float, float]:
    """One step as the loop takes it: architecture loss (nan for none) and weight loss."""
    train = session.weight_loader.next_batch()
    arch_loss = math.nan
    if session.alpha_learns or session.beta_learns:
        arch_loss = session.arch_step(train, session.arch_loader.next_batch()).item()
    loss, _ = session.weight_step(train)
    session.scaler.update()
    return arch_loss, loss.item()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_bits(mine: Any, theirs: Any, where: str = "state") -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs), where
        assert mine.dtype == theirs.dtype
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key, value in mine.items():
            assert_same_bits(value, theirs[key], f"{where}[{key!r}]")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), where
        for index, value in enumerate(mine):
            assert_same_bits(value, theirs[index], f"{where}[{index}]")
    else:
        assert mine == theirs, where


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "da2s"},
        {"method": "da2s", "compat": "daas", "nodes": 4, "epochs": 50, "warmup": 8},
        {"method": "darts", "second_order": True},
        {"method": "pc-darts", "partial_channels": 2},
        {"precision": "bfloat16"},
        {"precision": "float16"},
    ],
    ids=str,
)
def test_restored_session_goes_on_with_the_same_bits(
    make_session: MakeSession, settings: dict[str, Any]
) -> None:
    session = make_session(**settings)
    for epoch in (1, 2):
        session.begin_epoch(epoch)
        step(session)
    state = through_a_file(session.state_dict())
    continued = []
    for epoch in (3, 4):
        session.begin_epoch(epoch)
        continued.append(step(session))
    random = torch.rand(3)
    other = make_session(**settings)
    other.begin_epoch(3)
    step(other)  # leaves traces everywhere, which loading must wipe out
    other.load_state_dict(state)
    again = []
    for epoch in (3, 4):
        other.begin_epoch(epoch)
        again.append(step(other))
    assert str(again) == str(continued)  # nan is nan
    assert torch.equal(torch.rand(3), random)
    mine, theirs = session.state_dict(), other.state_dict()
    del mine["random"], theirs["random"]
    assert_same_bits(mine, theirs)


def test_seed_decides_everything(make_session: MakeSession) -> None:
    def run(seed: int) -> list[tuple[float, float]]:
        session = make_session(seed=seed)
        session.begin_epoch(2)
        return [step(session) for _ in range(2)]

    first = run(0)
    torch.rand(7)
    assert run(0) == first
    assert run(1) != first


def test_building_draws_nothing_from_the_global_generator(make_session: MakeSession) -> None:
    before = torch.get_rng_state()
    make_session()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("epochs", "warmup"), [(10, 3), (10, 0), (5, 1)])
class TestWarmup:
    def learned(self, session: SearchSession, epoch: int) -> tuple[bool, bool]:
        """Whether alpha and beta change in a step of this epoch."""
        before = session.architecture.state_dict()
        session.begin_epoch(epoch)
        step(session)
        after = session.architecture.state_dict()

        def changed(name: str) -> bool:
            kinds = [f"{name}.{kind}" for kind in session.space.kinds]
            found = {not torch.equal(before[key], after[key]) for key in kinds if key in before}
            assert len(found) <= 1
            return True in found

        return changed("alpha"), changed("beta")

    def test_da2s(self, make_session: MakeSession, epochs: int, warmup: int) -> None:
        session = make_session(epochs=epochs, warmup=warmup)
        for epoch in range(1, epochs + 1):
            assert self.learned(session, epoch) == (epoch >= warmup, True)
            assert session.learns(epoch) == (epoch >= warmup, True)

    def test_pc_darts(self, make_session: MakeSession, epochs: int, warmup: int) -> None:
        session = make_session(method="pc-darts", epochs=epochs, warmup=warmup, partial_channels=2)
        for epoch in range(1, epochs + 1):
            assert self.learned(session, epoch) == (epoch > warmup, epoch > warmup)

    def test_darts(self, make_session: MakeSession, epochs: int, warmup: int) -> None:
        session = make_session(method="darts", epochs=epochs, warmup=warmup)
        for epoch in range(1, epochs + 1):
            assert self.learned(session, epoch) == (epoch > warmup, False)

    def test_nas_bench_201(self, make_session: MakeSession, epochs: int, warmup: int) -> None:
        session = make_session(
            space="nas-bench-201",
            operations=["none", "skip_connect", "nor_conv_1x1"],
            cells=1,
            epochs=epochs,
            warmup=warmup,
        )
        for epoch in range(1, epochs + 1):
            assert self.learned(session, epoch) == (epoch >= warmup, False)


def test_learning_rates(make_session: MakeSession) -> None:
    session = make_session(
        epochs=7, learning_rate=0.2, learning_rate_min=0.01, arch_learning_rate=0.03
    )
    for epoch in range(1, 8):
        session.begin_epoch(epoch)
        step(session)
        cosine = 0.01 + 0.19 * (1 + math.cos(math.pi * (epoch - 1) / 7)) / 2
        assert session.weight_optimizer.param_groups[0]["lr"] == pytest.approx(cosine)
        assert session.learning_rate(epoch) == pytest.approx(cosine)
        assert [group["lr"] for group in session.arch_optimizer.param_groups] == [0.03, 0.03]
    assert session.learning_rate(1) == 0.2


def test_optimizers_are_those_of_the_papers(make_session: MakeSession) -> None:
    session = make_session(momentum=0.8, weight_decay=0.01, arch_weight_decay=0.02)
    (group,) = session.weight_optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.8, 0.01, False)
    assert len(group["params"]) == len(list(session.network.parameters()))
    for group in session.arch_optimizer.param_groups:
        assert (group["betas"], group["weight_decay"]) == ((0.5, 0.999), 0.02)
    assert isinstance(session.arch_optimizer, torch.optim.Adam)


def test_weight_step_is_clipped_sgd(make_session: MakeSession) -> None:
    session = make_session(grad_clip=0.01)
    session.begin_epoch(1)
    twin = copy.deepcopy(session.network)
    images, labels = session.weight_loader.next_batch()
    scores = twin(images)
    loss = torch.nn.functional.cross_entropy(scores, labels)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    assert norm > 0.01
    result, hits = session.weight_step((images, labels))
    assert result.item() == pytest.approx(loss.item(), rel=1e-5)
    assert hits.item() == (scores.argmax(1) == labels).sum()
    for mine, other in zip(session.network.parameters(), twin.parameters(), strict=True):
        gradient = other.grad * 0.01 / norm + 3e-4 * other.detach()
        torch.testing.assert_close(
            mine.detach(), other.detach() - 0.025 * gradient, rtol=1e-4, atol=1e-7
        )
    assert all(p.grad is None for p in session.network.arch_parameters())


@pytest.mark.parametrize("loss_control", ["linear", "const", "step"])
@pytest.mark.parametrize("operation_control", ["log", "exp"])
def test_loss_weights(make_session: MakeSession, loss_control: str, operation_control: str) -> None:
    session = make_session(
        epochs=9,
        warmup=2,
        loss_weight=0.3,
        edge_loss_weight=2.5,
        loss_control=loss_control,
        operation_control=operation_control,
    )
    for epoch in range(1, 10):
        session.begin_epoch(epoch)
        common = 0.3 * control(loss_control, epoch, 9)
        operations = common * control(operation_control, epoch, 9, 2)
        assert session.loss_weights() == pytest.approx((operations, common * 2.5))


@pytest.mark.parametrize("method", METHODS)
def test_arch_loss_is_cross_entropy_and_for_da2s_the_discretization_loss(
    make_session: MakeSession, method: str
) -> None:
    session = make_session(method=method, partial_channels=1, keep_normal=[1, 2])
    session.begin_epoch(3)
    twin = copy.deepcopy(session.network)
    images, labels = session.arch_loader.next_batch()
    expected = torch.nn.functional.cross_entropy(twin(images), labels)
    if method == "da2s":
        operation_weight, edge_weight = session.loss_weights()
        assert min(operation_weight, edge_weight) > 0
        expected = (
            expected
            + discretization_loss(
                list(twin.architecture.alphas.values()),
                list(twin.architecture.betas.values()),
                edges_per_node=(2, 3),
                keep=[(1, 2), (1, 2)],
                operation_weight=operation_weight,
                edge_weight=edge_weight,
                backend="reference",
            ).total
        )
    weights = [weight.detach().clone() for weight in session.network.weights()]
    result = session.arch_step((images, labels), (images, labels))
    assert result.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(map(torch.equal, weights, session.network.weights()))


def test_halves_of_the_training_set_do_not_overlap(
    make_session: MakeSession, digits: ImageData
) -> None:
    session = make_session()
    everything = digits.train_images.flatten(1)
    halves = [loader._images for loader in (session.weight_loader, session.arch_loader)]
    assert [len(half) for half in halves] == [100, 100]
    together = torch.cat(halves).flatten(1)
    assert torch.equal(together.sort(0).values, everything.sort(0).values)
    parts = torch.cat([session._weight_part, session._arch_part])
    assert torch.equal(parts.sort().values, torch.arange(200))
    assert torch.equal(
        digits.train_images[session._arch_part].flatten(1).sort(0).values,
        halves[1].flatten(1).sort(0).values,
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_stays_near_float32(
    make_session: MakeSession, precision: str, method: str
) -> None:
    settings = {
        "method": method,
        "partial_channels": 1,
        "epochs": 6,
        "warmup": 0,
        # Slow enough that three steps compare the precisions, not where alpha has gone.
        "arch_learning_rate": 0.01,
    }
    sessions = [make_session(**settings, precision=name) for name in ("float32", precision)]
    for session in sessions:
        session.begin_epoch(1)
    for _ in range(3):
        exact, mixed = (step(session) for session in sessions)
        assert mixed == pytest.approx(exact, rel=0.05)
        assert mixed != exact
    assert all(p.dtype == torch.float32 for p in sessions[1].network.parameters())
    # With loss scaling undone, alpha moves by about as much.
    moved = [
        session.architecture.alphas["normal"]
        - make_session(**settings).architecture.alphas["normal"]
        for session in sessions
    ]
    assert moved[1].norm().item() == pytest.approx(moved[0].norm().item(), rel=0.5)


@compiled
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_cell_is_one_operator(make_session: MakeSession, precision: str) -> None:
    session = make_session(precision=precision)
    session.begin_epoch(3)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(session)
    calls = [event.name for event in seen.events()]
    for name in ("cell", "cell_backward", "cell_update_running"):
        assert calls.count(f"da2s_fast::{name}") == 2 * session.settings.cells
    assert "da2s_fast::mixed_sum" not in calls


def test_float16_during_warmup(make_session: MakeSession) -> None:
    """Nothing of the architecture learns: the scaler must not miss its gradients."""
    settings: dict[str, Any]
    for settings in (
        {"space": "nas-bench-201", "operations": ["skip_connect", "nor_conv_1x1"], "cells": 1},
        {"method": "pc-darts", "partial_channels": 2},
        {},
    ):
        session = make_session(**settings, warmup=2, precision="float16")
        session.begin_epoch(1)
        assert math.isfinite(step(session)[1])


@pytest.mark.parametrize("method", METHODS)
def test_colour_images_of_another_size(cifar10_npz: Any, method: str) -> None:
    data = load_data(str(cifar10_npz), limit=60, image_size=12)
    session = SearchSession(
        SearchSettings(**TINY | {"method": method, "partial_channels": 2}).resolved(data), data
    )
    session.begin_epoch(3)
    assert all(math.isfinite(loss) for loss in step(session))
