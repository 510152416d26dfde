"""Searches whose loss or weights become NaN or infinite: they stop, and keep what was good."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from da2s_fast.data import ImageData
from da2s_fast.errors import DivergedError
from da2s_fast.search import RunFolder, SearchSession, SearchSettings, run_search
from da2s_fast.search.checkpoint import load_checkpoint
from tests.search.conftest import TINY, MakeSession


def assert_good(folder: RunFolder, epochs: int) -> None:
    """The checkpoint loads, holds these epochs, and all of its numbers are finite."""
    content = load_checkpoint(folder.checkpoint)
    assert len(content["history"]) == epochs
    tensors = [*content["state"]["network"].values(), *content["state"]["architecture"].values()]
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_huge_learning_rate(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session(learning_rate=1e30)
    folder = RunFolder.create(tmp_path / "run", session.settings)
    with pytest.raises(DivergedError, match="NaN or infinite in epoch 1") as caught:
        run_search(session, folder)
    message = str(caught.value)
    assert f"the last good checkpoint is {folder.checkpoint}" in message
    assert "learning_rate (now 1e+30)" in message
    assert "\n" not in message
    assert_good(folder, epochs=0)


def test_huge_architecture_learning_rate(make_session: MakeSession) -> None:
    session = make_session(arch_learning_rate=1e38)
    with pytest.raises(DivergedError, match=r"nothing was saved.*arch_learning_rate \(now 1e"):
        run_search(session)


@pytest.mark.parametrize("poisoned", ["weight", "buffer", "alpha", "beta"])
def test_last_step_of_an_epoch(
    make_session: MakeSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poisoned: str,
) -> None:
    """No loss of that epoch shows it, but a checkpoint would keep it."""
    session = make_session()
    step = session.weight_step
    calls = []

    def last_one_breaks(train: Any) -> Any:
        result = step(train)
        calls.append(1)
        if len(calls) == 12:
            tensor = {
                "weight": session.network.weights()[-1],
                "buffer": next(b for b in session.network.buffers() if b.dim()),
                "alpha": session.architecture.alphas["reduce"],
                "beta": session.architecture.betas["normal"],
            }[poisoned]
            with torch.no_grad():
                tensor.view(-1)[-1] = math.inf
        return result

    monkeypatch.setattr(session, "weight_step", last_one_breaks)
    folder = RunFolder.create(tmp_path / "run", session.settings)
    with pytest.raises(DivergedError, match="in epoch 2; the last good checkpoint"):
        run_search(session, folder)
    assert_good(folder, epochs=1)
    monkeypatch.undo()
    # Where the cause is gone, the search goes on from there.
    state, history = folder.load()
    resumed = make_session()
    resumed.load_state_dict(state)
    assert len(run_search(resumed, folder, history).history) == 4


def test_nan_within_an_epoch_is_noticed_before_its_end(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = TINY | {"batch_size": 2}
    session = SearchSession(SearchSettings(**given).resolved(digits), digits)
    original, done = session.weight_step, []

    def third_breaks(train: Any) -> Any:
        loss, hits = original(train)
        done.append(1)
        return (loss * math.nan if len(done) == 3 else loss), hits

    monkeypatch.setattr(session, "weight_step", third_breaks)
    with pytest.raises(DivergedError):
        run_search(session)
    assert session.weight_loader.steps_per_epoch == 50
    assert len(done) == 10
