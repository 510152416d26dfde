"""cuDNN's flags during searches and trainings on GPUs, and that they are put back."""

from __future__ import annotations

import contextlib

import pytest
import torch

from da2s_fast.data import load_data
from da2s_fast.determinism import deterministic
from da2s_fast.search import SearchSession, SearchSettings, loop
from da2s_fast.search.measure import GapMeter
from da2s_fast.train import RetrainSettings, retrain
from da2s_fast.train.session import RetrainSession
from tests.search.conftest import TINY
from tests.train.conftest import GENOTYPE

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


@pytest.fixture(params=[(False, False), (False, True), (True, False), (True, True)])
def before(request):
    """What a user may have chosen."""
    cudnn, own = torch.backends.cudnn, flags()
    cudnn.deterministic, cudnn.benchmark = request.param
    yield request.param
    cudnn.deterministic, cudnn.benchmark = own


def test_set_and_put_back(before):
    with deterministic(CUDA):
        assert flags() == (True, False)
    assert flags() == before


def test_put_back_after_errors(before):
    with pytest.raises(KeyError), deterministic(CUDA):
        raise KeyError
    assert flags() == before


def test_nothing_changes_on_cpus(before):
    with deterministic(CPU):
        assert flags() == before
    assert flags() == before


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Loops believe to run on a GPU as far as flags go; lists the devices that they named."""
    asked = []

    def on_cuda(device):
        asked.append(device)
        return deterministic(CUDA)

    for function in (loop.run_search, retrain):
        monkeypatch.setitem(function.__globals__, "deterministic", on_cuda)
    return asked


def noting(monkeypatch, kind, name):
    """The flags at every call of a method."""
    seen, method = [], getattr(kind, name)

    def noted(*arguments):
        seen.append(flags())
        return method(*arguments)

    monkeypatch.setattr(kind, name, noted)
    return seen


class Stop(Exception):
    """What a progress callback, or a user, may raise."""


def stop(*_):
    raise Stop


@pytest.mark.parametrize("before", [(False, True)], indirect=True)
@pytest.mark.parametrize("stops", [False, True])
def test_steps_and_measurements_of_a_search(monkeypatch, as_on_a_gpu, before, stops):
    digits = load_data("digits", limit=64)
    settings = SearchSettings(**TINY | {"epochs": 1, "warmup": 0}).resolved(digits)
    steps = noting(monkeypatch, SearchSession, "step")
    measured = noting(monkeypatch, GapMeter, "measure")
    with pytest.raises(Stop) if stops else contextlib.nullcontext():
        loop.run_search(SearchSession(settings, digits), on_step=stop if stops else None)
    assert as_on_a_gpu == [CPU]
    assert set(steps) == {(True, False)}
    assert stops or set(measured) == {(True, False)}
    assert flags() == before


@pytest.mark.parametrize("before", [(False, True)], indirect=True)
@pytest.mark.parametrize("stops", [False, True])
def test_steps_of_a_training(monkeypatch, as_on_a_gpu, before, stops):
    digits = load_data("digits", limit=64)
    settings = RetrainSettings(channels=4, cells=2, epochs=1, batch_size=32)
    steps = noting(monkeypatch, RetrainSession, "step")
    if stops:
        monkeypatch.setattr(RetrainSession, "begin_epoch", lambda *_: stop())
    with pytest.raises(Stop) if stops else contextlib.nullcontext():
        retrain(GENOTYPE, settings, data=digits, progress=False)
    assert as_on_a_gpu == [CPU]
    assert stops or set(steps) == {(True, False)}
    assert flags() == before
