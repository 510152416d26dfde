"""Whole tiny searches on digits: what they record, when they stop, how they go on."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.data import load_data
from da2s_fast.nn.operations import OPERATIONS
from da2s_fast.search import (
    RunFolder,
    SearchResult,
    SearchSession,
    SearchSettings,
    run_search,
)
from da2s_fast.spaces import Genotype
from tests.search.conftest import TINY, MakeSession

FIELDS = {
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "arch_loss",
    "operation_entropy",
    "edge_loss",
    "accuracy_super",
    "accuracy_cut",
    "gap",
    "accuracy_super_bn",
    "accuracy_cut_bn",
    "mean_max_p",
    "kept_p",
    "kept_beta",
    "skip_fraction",
    "seconds",
    "genotype",
    "p",
    "edge_weights",
}


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in metrics.items() if k != "seconds"} for metrics in history]


def make_folder(path: Path, session: SearchSession) -> RunFolder:
    return RunFolder.create(path, session.settings)


@pytest.fixture(scope="module")
def improved() -> tuple[SearchSession, SearchResult]:
    """Long enough to learn something."""
    data = load_data("digits", limit=500)
    given = TINY | {"epochs": 9, "warmup": 2, "channels": 6, "learning_rate": 0.1}
    session = SearchSession(SearchSettings(**given).resolved(data), data)
    return session, run_search(session)


def test_a_search_on_digits_improves(improved: tuple[SearchSession, SearchResult]) -> None:
    _, result = improved
    first, last = result.history[0], result.history[-1]
    assert last["train_loss"] < 0.6 * first["train_loss"]
    assert last["train_accuracy"] > 0.75
    # Of the architecture's half of the images the weights have seen none.
    assert last["accuracy_super"] > 0.7
    assert result.summary["test"]["super"] > 0.7
    assert last["operation_entropy"] < 0.5 * first["operation_entropy"]
    assert last["edge_loss"] < first["edge_loss"]


def test_history(improved: tuple[SearchSession, SearchResult]) -> None:
    session, result = improved
    assert [metrics["epoch"] for metrics in result.history] == list(range(1, 10))
    for metrics in result.history:
        assert metrics.keys() == FIELDS
        assert metrics["lr"] == session.learning_rate(metrics["epoch"])
        assert metrics["gap"] == metrics["accuracy_super"] - metrics["accuracy_cut"]
        for name in ("train_accuracy", "accuracy_super", "accuracy_cut_bn", "skip_fraction"):
            assert 0 <= metrics[name] <= 1
        assert metrics["p"].keys() == metrics["edge_weights"].keys() == {"normal", "reduce"}
        for kind in ("normal", "reduce"):
            assert [len(row) for row in metrics["p"][kind]] == [3] * 5
            assert all(sum(row) == pytest.approx(1) for row in metrics["p"][kind])
            assert sum(metrics["edge_weights"][kind]) == pytest.approx(5, rel=1e-5)
        Genotype.parse(metrics["genotype"])
        json.dumps(metrics, allow_nan=False)


def test_last_metrics_describe_the_network_that_is_returned(
    improved: tuple[SearchSession, SearchResult],
) -> None:
    session, result = improved
    assert result.model is session.network
    cut, last = session.discretize(), result.history[-1]
    assert result.genotype == cut.genotype == Genotype.parse(last["genotype"])
    assert last["mean_max_p"] == cut.mean_max_p
    assert last["kept_p"] == cut.kept_p
    assert last["kept_beta"] == cut.kept_beta
    assert last["p"]["reduce"] == session.architecture.operation_weights("reduce").tolist()
    loss = session.discretization_loss()
    assert last["operation_entropy"] == loss.operation_entropy.item()
    assert last["edge_loss"] == loss.edge_loss.item()
    measured = session.gap_meter("search").measure(session.network, cut.mixtures)
    assert last["accuracy_super"] == measured["super"] == result.summary["search"]["super"]
    assert last["accuracy_cut_bn"] == measured["cut_bn"] == result.summary["search"]["cut_bn"]


def test_summary(improved: tuple[SearchSession, SearchResult]) -> None:
    session, result = improved
    summary = result.summary
    assert summary["method"] == "da2s"
    assert summary["data"] == "digits"
    assert summary["genotype"] == str(result.genotype)
    assert summary["seconds"] == pytest.approx(sum(m["seconds"] for m in result.history))
    assert summary["parameters"] == sum(p.numel() for p in session.network.parameters())
    for part in ("search", "test"):
        assert summary[part].keys() == {"super", "cut", "super_bn", "cut_bn"}
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("method", ["darts", "pc-darts"])
def test_other_methods_have_no_discretization_loss(make_session: MakeSession, method: str) -> None:
    session = make_session(method=method, epochs=3, warmup=1, partial_channels=2)
    result = run_search(session)
    for metrics in result.history:
        assert metrics.keys() == FIELDS
        assert metrics["operation_entropy"] is None
        assert metrics["edge_loss"] is None
        assert metrics["kept_beta"] is None
    if method == "darts":
        assert result.history[0]["edge_weights"]["normal"] == [1.0] * 5
    # No architecture step in the warm-up, so no loss of one.
    assert result.history[0]["arch_loss"] is None
    assert result.history[1]["arch_loss"] > 1


def test_progress_counts_every_step(make_session: MakeSession) -> None:
    calls = []
    run_search(make_session(epochs=2, warmup=0), on_step=lambda *call: calls.append(call))
    assert calls == [(step, 12) for step in range(1, 13)]


def test_the_log_has_a_line_per_epoch(
    make_session: MakeSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "da2s_fast"):
        result = run_search(make_session(epochs=2, warmup=0))
    lines = [record.message for record in caplog.records if record.message.startswith("epoch ")]
    for metrics, line in zip(result.history, lines, strict=True):
        words = line.split()
        following = dict(itertools.pairwise(words))
        assert following["epoch"] == f"{metrics['epoch']}/2"
        assert following["super"] == f"{metrics['accuracy_super']:.1%}"
        assert following["cut"] == f"{metrics['accuracy_cut']:.1%}"
        assert following["gap"] == f"{metrics['gap']:+.1%}"
        assert following["beta"] == f"{metrics['kept_beta']:.2f}"


def test_run_folder(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session(epochs=2, warmup=0, keep_normal=[1, 2])
    folder = make_folder(tmp_path / "run", session)
    result = run_search(session, folder)
    assert result.run_dir == tmp_path / "run"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result.summary
    text = (tmp_path / "run" / "genotype.txt").read_text()
    assert text == f"{result.genotype}\n"
    assert Genotype.parse(text) == result.genotype
    assert result.genotype.normal.edges_per_node == (1, 2)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert RunFolder(tmp_path / "run").settings().resolved(session.data) == session.settings


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "stop_at"), [("da2s", 3), ("da2s", 6), ("da2s", 8), ("pc-darts", 17)]
)
def test_interrupted_search_ends_as_if_it_had_not_been(
    make_session: MakeSession, tmp_path: Path, stop_at: int, method: str
) -> None:
    """Six steps per epoch: stopped within the first, after the first, within later ones."""
    given = {"method": method, "epochs": 3, "partial_channels": 2}

    def interrupt(done: int, total: int) -> None:
        if done == stop_at:
            raise Interrupted

    whole = make_session(**given)
    expected = run_search(whole)
    session = make_session(**given)
    with pytest.raises(Interrupted):
        run_search(session, make_folder(tmp_path / "run", session), on_step=interrupt)
    folder = RunFolder(tmp_path / "run")
    state, history = folder.load()
    assert len(history) == (stop_at - 1) // 6
    resumed = SearchSession(folder.settings().resolved(session.data), session.data)
    resumed.load_state_dict(state)
    result = run_search(resumed, folder, history)
    assert without_times(result.history) == without_times(expected.history)
    assert result.genotype == expected.genotype
    timeless = {"seconds"}
    for name in expected.summary.keys() - timeless:
        assert result.summary[name] == expected.summary[name]
    for mine, theirs in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history


def test_finished_search_can_be_resumed(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session(epochs=2, warmup=0)
    folder = make_folder(tmp_path / "run", session)
    expected = run_search(session, folder)
    state, history = folder.load()
    again = make_session(epochs=2, warmup=0)
    again.load_state_dict(state)
    result = run_search(again, folder, history)
    assert result.history == expected.history
    assert result.summary == expected.summary


class Dropout(nn.Module):
    """Draws from torch's global generator, as an operation of a user may."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


def test_seed_decides_global_randomness_too(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATIONS, "dropout", lambda C, stride, affine: Dropout())
    given = {
        "space": "nas-bench-201",
        "operations": ["dropout", "nor_conv_1x1"],
        "cells": 1,
        "epochs": 1,
        "warmup": 0,
    }
    results = []
    for _ in range(2):
        torch.rand(5)
        before = torch.get_rng_state()
        results.append(run_search(make_session(**given)))
        assert torch.equal(torch.get_rng_state(), before)
    assert without_times(results[0].history) == without_times(results[1].history)


class TestWarnings:
    def warnings(
        self, session: SearchSession, caplog: pytest.LogCaptureFixture
    ) -> tuple[list[str], list[str]]:
        """In the summary and in the log."""
        with caplog.at_level(logging.WARNING, "da2s_fast"):
            result = run_search(session)
        logged = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        return result.summary["warnings"], logged

    def prepared(
        self, make_session: MakeSession, favourite: int, strength: float, beta: float
    ) -> SearchSession:
        """A search too slow to change alpha and beta, which are set by hand."""
        session = make_session(epochs=1, warmup=0, arch_learning_rate=1e-12)
        with torch.no_grad():
            for alpha in session.architecture.alphas.values():
                alpha[:, favourite] = strength
            for value in session.architecture.betas.values():
                value.fill_(beta)
        return session

    def test_none(self, make_session: MakeSession, caplog: pytest.LogCaptureFixture) -> None:
        session = self.prepared(make_session, favourite=2, strength=5, beta=1)
        assert self.warnings(session, caplog) == ([], [])

    def test_skip_connections(
        self, make_session: MakeSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        session = self.prepared(make_session, favourite=1, strength=5, beta=1)
        found, logged = self.warnings(session, caplog)
        assert found == logged
        assert len(found) == 1
        assert found[0].startswith("skip connections make 100% of the normal cell")

    def test_operation_weights_that_are_not_discrete(
        self, make_session: MakeSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        session = self.prepared(make_session, favourite=2, strength=0.5, beta=1)
        found, logged = self.warnings(session, caplog)
        assert found == logged
        assert len(found) == 1
        assert "operation weights are not discrete (one that is kept is 0.58)" in found[0]

    def test_edge_weights_that_are_not_discrete(
        self, make_session: MakeSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        session = self.prepared(make_session, favourite=2, strength=5, beta=0.6)
        found, logged = self.warnings(session, caplog)
        assert found == logged
        assert len(found) == 1
        assert "edge weights are not discrete (mean kept beta 0.60" in found[0]
