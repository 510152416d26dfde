"""The command line from a search to a prediction, each step a real process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import da2s_fast
from da2s_fast.cli import COMMANDS, main
from da2s_fast.report.formatting import quantity
from da2s_fast.spaces import Genotype
from tests.conditions import threads
from tests.processes import ENVIRONMENT, TINY, assert_one_line_error, da2s, start

RUN = Path("runs/digits-da2s-seed0-1")
TRAINED = Path("runs/digits-da2s-seed0-1-retrain-seed0-1")
TINY_TRAINING = ["--limit=200", "--epochs=2", "--channels=4", "--cells=3", "--batch-size=20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def searched(folder: Path) -> subprocess.CompletedProcess:
    done = da2s("search", *TINY, folder=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(folder: Path, searched: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    done = da2s("retrain", RUN, *TINY_TRAINING, folder=folder)
    assert done.returncode == 0, done.stderr
    return done


def run_here(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """What a command that succeeds in this process prints."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_search_leaves_a_complete_run_folder(
    folder: Path, searched: subprocess.CompletedProcess
) -> None:
    run = folder / RUN
    for name in ("checkpoint.pt", "config.yaml", "log.txt", "report.html", "tensorboard"):
        assert (run / name).exists()
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["cells"] == 3
    assert config["keep"] == {"normal": [2, 2], "reduce": [2, 2]}


def test_search_shows_forecast_epochs_and_result_without_control_characters(
    folder: Path, searched: subprocess.CompletedProcess
) -> None:
    log, shown = searched.stderr.splitlines(), searched.stdout
    before_epochs = log[: next(i for i, line in enumerate(log) if line.startswith("epoch 1/3"))]
    assert before_epochs[0].startswith("da2s on digits (200 images of 8x8) in the da2s space: 3 ")
    assert any(line.startswith("forecast: about ") for line in before_epochs)
    summary = json.loads((folder / RUN / "summary.json").read_text())
    last = next(line for line in log if line.startswith("epoch 3/3"))
    history = [json.loads(line) for line in (folder / RUN / "metrics.jsonl").open()]
    assert f"super {history[-1]['accuracy_super']:.1%}" in last
    assert f"gap {history[-1]['gap']:+6.1%}" in last
    assert summary["genotype"] in shown.splitlines()
    for part in ("search", "test"):
        for name in ("super", "cut", "super_bn", "cut_bn"):
            assert f" {100 * summary[part][name]:.1f}" in shown
    for warning in summary["warnings"]:
        assert f"warning: {warning}" in log
    assert f"da2s retrain {RUN}" in shown
    assert str(RUN / "report.html") in shown
    control = {character for character in shown + searched.stderr if ord(character) < 32}
    assert control == {"\n"}
    for line in log:
        text = line.removeprefix("warning: ")
        assert text in (folder / RUN / "log.txt").read_text() or line in before_epochs[:3]


def test_a_terminal_gets_a_progress_bar_above_which_lines_stay_whole(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "da2s_fast", "search", *TINY, "--out=run"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    # Linux reports the end of a terminal's last writer as an error.
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"search [━╸╺ ]+ 36/36 steps \d:\d\d:\d\d left 0:00:00", text)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    logged = [
        line.split(" INFO ")[1].strip()
        for line in (tmp_path / "run/log.txt").open()
        if " INFO epoch " in line
    ]
    assert len(logged) == 3
    for line in logged:
        assert line in lines


def test_next_search_takes_the_next_number(
    folder: Path,
    searched: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    # The settings of the first run, read from its folder; a flag wins over them.
    out = run_here(capsys, "search", "--epochs=2", "--config", RUN / "config.yaml")
    assert "runs/digits-da2s-seed0-2" in out
    first, second = (
        yaml.safe_load(Path(f"runs/digits-da2s-seed0-{n}/config.yaml").read_text()) for n in (1, 2)
    )
    assert second["epochs"] == 2
    assert first | {"epochs": 2} == second


def test_flags_win_over_the_file_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        "epochs: 9\nseed: 5\nlimit: 60\ncells: 3\nchannels: 2\nnodes: 2\nlearning_rate: 1e-3\n"
        "operations: [skip_connect, sep_conv_3x3]\nkeep_normal: [1, 2]\nwarmup: null\n"
    )
    for number, flags in enumerate(
        (["--epochs=1", "--config=s.yaml"], ["--config", "s.yaml", "--epochs", "1"]), 1
    ):
        run_here(capsys, "search", *flags, "--keep-reduce", "2,1", "--out", f"out{number}")
        config = yaml.safe_load(Path(f"out{number}/config.yaml").read_text())
        assert (config["epochs"], config["seed"], config["learning_rate"]) == (1, 5, 0.001)
        assert config["operations"] == ["skip_connect", "sep_conv_3x3"]
        assert config["keep"] == {"normal": [1, 2], "reduce": [2, 1]}


def test_report_and_compare(
    folder: Path,
    searched: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    page = RUN / "report.html"
    before = page.read_text()
    page.unlink()
    assert run_here(capsys, "report", RUN).strip() == str(page)
    assert page.read_text() == before
    out = run_here(capsys, "compare", RUN, RUN, "--html", "compare.html")
    summary = json.loads((RUN / "summary.json").read_text())
    assert f"{100 * summary['search']['super']:.1f}" in out
    assert RUN.name in Path("compare.html").read_text()


def test_compare_shows_what_the_architecture_reached_and_costs(
    folder: Path,
    trained: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    accuracy = json.loads((TRAINED / "summary.json").read_text())["test_accuracy"]
    derived = json.loads((RUN / "summary.json").read_text())["derived"]
    shown = run_here(capsys, "compare", RUN, TRAINED, "--html", "retrained.html")
    assert f" {100 * accuracy:.1f} " in shown
    assert f" {quantity(derived['multiply_adds'])}" in shown
    page = Path("retrained.html").read_text()
    assert f">{quantity(derived['parameters'])}<" in page
    assert f">{quantity(derived['parameters'])}<" in (RUN / "report.html").read_text()


def test_retrain_learns_the_found_network_and_says_how_to_use_it(
    folder: Path, trained: subprocess.CompletedProcess
) -> None:
    summary = json.loads((folder / TRAINED / "summary.json").read_text())
    assert f"test accuracy {100 * summary['test_accuracy']:.1f} %" in trained.stdout
    assert summary["genotype"] == (folder / RUN / "genotype.txt").read_text().strip()
    assert f"da2s predict {TRAINED}" in trained.stdout
    first, *_ = trained.stderr.splitlines()
    size = "2 epochs, 20 images a step, 3 cells, 4 channels"
    assert first == f"training on digits (200 images of 8x8): {size}, seed 0, cpu"
    assert "epoch 2/2" in trained.stderr
    assert {c for c in trained.stdout + trained.stderr if ord(c) < 32} == {"\n"}


def test_evaluate_finds_the_accuracy_of_the_training(
    folder: Path,
    trained: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    summary = json.loads((TRAINED / "summary.json").read_text())
    out = run_here(capsys, "evaluate", TRAINED)
    assert f"test accuracy {100 * summary['test_accuracy']:.1f} %" in out
    everything = run_here(capsys, "evaluate", TRAINED / "model.pt", "--data", "digits")
    assert "images         359" in everything


def test_predict_ranks_the_classes_of_image_files(
    folder: Path, trained: subprocess.CompletedProcess
) -> None:
    for number in range(2):
        pixels = np.clip(load_digits().images[number] * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    done = da2s("predict", TRAINED, "0.png", "1.png", "--topk=10", folder=folder)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["0.png", "1.png"]
    for _, *ranked in lines:
        names, shares, _ = zip(*(entry.split() for entry in ranked), strict=True)
        assert sorted(names) == [str(digit) for digit in range(10)]
        assert [float(s) for s in shares] == sorted(map(float, shares), reverse=True)
        assert sum(map(float, shares)) == pytest.approx(100, abs=0.5)


def test_export_writes_what_other_programs_read(
    folder: Path,
    trained: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    for name in ("model.pt2", "model.onnx", "copy.pt"):
        assert run_here(capsys, "export", TRAINED, name).strip() == name
    images = torch.zeros(3, 1, 8, 8)
    assert torch.export.load("model.pt2").module()(images).shape == (3, 10)
    onnx.checker.check_model("model.onnx")
    weights = [
        torch.load(p, weights_only=True)["state_dict"] for p in (TRAINED / "model.pt", "copy.pt")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_retrain_reads_a_genotype_file_and_goes_on_with_a_training(
    folder: Path,
    trained: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    model = (TRAINED / "model.pt").read_bytes()
    (TRAINED / "model.pt").unlink()
    assert main(["retrain", "--resume", str(TRAINED)]) == 0
    assert "2 of 2 epochs done" in capsys.readouterr().err
    assert len((TRAINED / "model.pt").read_bytes()) == len(model)
    genotype = RUN / "genotype.txt"
    out = run_here(capsys, "retrain", genotype, *TINY_TRAINING, "--epochs=1", "--seed=3")
    assert "runs/genotype-retrain-seed3-1" in out


def test_interrupted_search_says_how_to_go_on(tmp_path: Path) -> None:
    process = start("search", *TINY, "--epochs=200", "--out", "my run", folder=tmp_path)
    metrics = tmp_path / "my run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    done = subprocess.CompletedProcess([], process.returncode, out, err)
    assert_one_line_error(done, "interrupted", "da2s search --resume 'my run'", code=130)


def test_diverging_search_names_the_last_checkpoint(tmp_path: Path) -> None:
    done = da2s("search", *TINY, "--learning-rate=1e30", "--out=run", folder=tmp_path)
    assert_one_line_error(done, "NaN or infinite in epoch 1", "run/checkpoint.pt", code=1)


def test_info_tells_of_every_backend(capsys: pytest.CaptureFixture) -> None:
    out = run_here(capsys, "info")
    for name in ("reference", "cpu", "cuda", "triton"):
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert line.split()[1] in ("yes", "no")
        assert len(line.split()) > 3
    assert "instruction set" in out or "problem" in out
    assert "workspace bytes" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture) -> None:
    out = run_here(capsys, command, "--help")
    assert f"usage: da2s {command}" in out
    assert f"  da2s {command}" in out  # an example
    if command in ("search", "retrain"):
        assert "--learning_rate" in out
        assert "of everything random" in out  # from the docstring of the settings


def test_help_and_version(capsys: pytest.CaptureFixture) -> None:
    assert run_here(capsys, "--version").strip() == f"da2s_fast {version('da2s_fast')}"
    assert run_here(capsys) == run_here(capsys, "--help")
    shown = run_here(capsys, "-h")
    for command in COMMANDS:
        assert f"\n  {command} " in shown


def test_the_python_function_gives_the_same_result(
    folder: Path, searched: subprocess.CompletedProcess, tmp_path: Path
) -> None:
    with threads(1):
        result = da2s_fast.search(
            "digits", epochs=3, cells=3, channels=4, nodes=2, limit=200, run_dir=tmp_path / "run"
        )
    assert isinstance(result.genotype, Genotype)
    assert str(result.genotype) == (folder / RUN / "genotype.txt").read_text().strip()
    expected = [json.loads(line) for line in (folder / RUN / "metrics.jsonl").open()]
    for mine, theirs in zip(result.history, expected, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    assert (
        result.summary["search"]
        == json.loads((folder / RUN / "summary.json").read_text())["search"]
    )
    assert result.run_dir == tmp_path / "run"
    assert (tmp_path / "run" / "report.html").exists()
    assert isinstance(result.model, da2s_fast.SuperNetwork)
