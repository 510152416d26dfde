"""The accuracy before and after the cut, counted image by image."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.data import ImageData, evaluation_batches
from da2s_fast.search.measure import REESTIMATION_BATCHES, GapMeter, accuracy, reestimated_norms
from tests.search.conftest import MakeSession

Batches = list[tuple[Tensor, Tensor]]


def trained(make_session: MakeSession, **settings: object) -> nn.Module:
    session = make_session(**settings)
    session.begin_epoch(1)
    for _ in range(3):
        session.weight_step(session.weight_loader.next_batch())
    return session.network


def batches_of(data: ImageData, size: int, count: int | None = None) -> Batches:
    return list(
        evaluation_batches(
            data.train_images[:count],
            data.train_labels[:count],
            size,
            mean=data.mean,
            std=data.std,
            device="cpu",
        )
    )


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_unchanged(network: nn.Module, before: dict[str, Tensor]) -> None:
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("training", [True, False])
def test_accuracy(make_session: MakeSession, digits: ImageData, training: bool) -> None:
    network = trained(make_session)
    network.train(training)
    before = snapshot(network)
    batches = batches_of(digits, 7, 50)
    result = accuracy(network, lambda: iter(batches))
    assert network.training is training
    assert all(module.training is training for module in network.modules())
    assert_unchanged(network, before)
    twin = copy.deepcopy(network).eval()
    hits = 0
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            hits += int(twin(image[None]).argmax()) == int(label)
    assert result == hits / 50


def test_accuracy_restores_the_mode_after_an_error(make_session: MakeSession) -> None:
    network = trained(make_session)

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        raise KeyError

    with pytest.raises(KeyError):
        accuracy(network, broken)
    assert network.training


def test_reestimated_norms_are_averages_over_the_batches(
    make_session: MakeSession, digits: ImageData
) -> None:
    network = trained(make_session)
    before = snapshot(network)
    batches = batches_of(digits, 20, 60)
    means, variances = [], []
    twin = copy.deepcopy(network).train()
    with torch.no_grad():
        for images, _ in batches:
            features = twin.stem[0](images)
            means.append(features.mean((0, 2, 3)))
            variances.append(features.var((0, 2, 3)))
    with reestimated_norms(network, lambda: iter(batches)):
        assert network.training
        norm = network.stem[1]
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert_unchanged(network, before)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_reestimated_norms_see_the_network_through_the_mixtures(
    make_session: MakeSession, digits: ImageData
) -> None:
    session = make_session()
    network, cut = session.network, session.discretize().mixtures
    batches = batches_of(digits, 20, 40)

    def statistics(mixtures: object) -> Tensor:
        with reestimated_norms(network, lambda: iter(batches), mixtures):
            return network.cells[1].preprocess1.op[2].running_mean.clone()

    assert not torch.allclose(statistics(None), statistics(cut))


def test_norms_are_restored_after_an_error(make_session: MakeSession, digits: ImageData) -> None:
    network = trained(make_session)
    before = snapshot(network)
    batches = batches_of(digits, 20, 40)
    with pytest.raises(KeyError), reestimated_norms(network, lambda: iter(batches)):
        raise KeyError
    assert_unchanged(network, before)
    assert network.training


def test_gap_meter(make_session: MakeSession, digits: ImageData) -> None:
    """All four numbers, each by its own short way."""
    network = trained(make_session)
    session = make_session()
    session.network = network
    cut = session.discretize().mixtures
    size = 4
    meter = GapMeter(
        digits.train_images[:50],
        digits.train_labels[:50],
        digits.train_images[100:],
        digits.train_labels[100:],
        batch_size=size,
        mean=digits.mean,
        std=digits.std,
        device="cpu",
    )
    before = snapshot(network)
    result = meter.measure(network, cut)
    assert_unchanged(network, before)
    assert list(result) == ["super", "super_bn", "cut", "cut_bn"]
    images, labels = batches_of(digits, 50, 50)[0]
    norm_batches = batches_of(digits, size)[25 : 25 + REESTIMATION_BATCHES]
    for name, mixtures in (("super", None), ("cut", cut)):
        twin = copy.deepcopy(network)
        hits = (twin.eval()(images, mixtures).argmax(1) == labels).double().mean()
        assert result[name] == pytest.approx(hits.item())
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        twin.train()
        with torch.no_grad():
            for x, _ in norm_batches:
                twin(x, mixtures)
        hits = (twin.eval()(images, mixtures).argmax(1) == labels).double().mean()
        assert result[f"{name}_bn"] == pytest.approx(hits.item())
