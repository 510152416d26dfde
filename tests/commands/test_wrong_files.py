"""Data, run folders and models that cannot be used end a command with one line and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from da2s_fast.cli import main
from tests.commands.in_process import FLAGS, refused, run


def save_images(**changes: np.ndarray) -> str:
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 256, (40, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 2,
        "x_test": random.integers(0, 256, (10, 8, 8), dtype=np.uint8),
        "y_test": np.arange(10) % 2,
    }
    np.savez("data.npz", **(arrays | changes))
    return "--data=data.npz"


@pytest.mark.parametrize(
    "changes",
    [
        {"y_train": np.zeros(40, dtype=int)},
        {"y_train": np.array([], dtype=int), "x_train": np.zeros((0, 8, 8), dtype=np.uint8)},
        {"y_train": np.arange(39) % 2},
        {"y_train": -np.ones(40, dtype=int)},
        {"y_train": np.full(40, np.nan)},
        {"x_train": np.full((40, 8, 8), np.nan)},
        {"x_train": np.zeros((40, 8, 8), dtype=np.uint8)},
        {"x_train": np.zeros((40, 8), dtype=np.uint8)},
        {"x_train": np.zeros((40, 4, 4), dtype=np.uint8)},
        {"x_train": np.zeros((40, 8, 9), dtype=np.uint8)},
        {"x_train": np.array(["x"] * 40)},
        {"x_train": np.array([{}] * 40)},
        {"y_test": np.full(10, 7)},
        {"x_test": np.zeros((0, 8, 8), dtype=np.uint8), "y_test": np.array([], dtype=int)},
    ],
)
def test_unsuitable_arrays(changes: dict, capfd: pytest.CaptureFixture) -> None:
    refused(capfd, "search", *FLAGS, save_images(**changes), "--out=run")
    assert not Path("run").exists()


def test_damaged_data_files(capfd: pytest.CaptureFixture) -> None:
    flag = save_images()
    content = Path("data.npz").read_bytes()
    for damaged in (b"", b"text", content[:100], content[:-30], content[:200] + b"\0" * 400):
        Path("data.npz").write_bytes(damaged)
        assert "data.npz" in refused(capfd, "search", *FLAGS, flag)


def test_unsuitable_image_folders(capfd: pytest.CaptureFixture) -> None:
    Path("images").mkdir()
    assert "images has no class folders" in refused(capfd, "search", *FLAGS, "--data=images")
    Path("images/only").mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(f"images/only/{number}.png")
    assert "images has 1 class(es)" in refused(capfd, "search", *FLAGS, "--data=images")
    Path("images/other").mkdir()
    assert "images/other holds no image" in refused(capfd, "search", *FLAGS, "--data=images")
    Path("images/other/1.png").write_bytes(b"no image")
    assert "images/other/1.png" in refused(capfd, "search", *FLAGS, "--data=images")


def test_an_existing_run_is_left_alone(capfd: pytest.CaptureFixture) -> None:
    assert run(capfd, "search", *FLAGS, "--out=run")[0] == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert "run holds a run already" in refused(capfd, "search", *FLAGS, "--out=run")
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_folders_that_cannot_be_written(capfd: pytest.CaptureFixture) -> None:
    Path("file").write_text("")
    assert "file" in refused(capfd, "search", *FLAGS, "--out=file")
    assert "file/run" in refused(capfd, "search", *FLAGS, "--out=file/run")
    # Root may write everywhere but there.
    assert "/proc/run" in refused(capfd, "search", *FLAGS, "--out=/proc/run")
    Path("runs").write_text("")
    assert "runs" in refused(capfd, "search", *FLAGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["search", *FLAGS, f"--out={folder}"]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        *(("config.yaml", keep) for keep in (0, 1, 100)),
        *(("checkpoint.pt", keep) for keep in (0, 1, 100, 10_000)),
    ],
)
def test_a_damaged_run_is_not_resumed(
    name: str, keep: int, finished: Path, capfd: pytest.CaptureFixture
) -> None:
    shutil.copytree(finished, "run")
    content = Path("run", name).read_bytes()
    assert len(content) > keep
    Path("run", name).write_bytes(content[:keep])
    assert name in refused(capfd, "search", "--resume=run")


def test_a_run_with_other_settings_than_its_checkpoint_is_not_resumed(
    finished: Path, capfd: pytest.CaptureFixture
) -> None:
    for setting in ("channels: 4", "cells: 4", "limit: 60", "nodes: 2", "epochs: x", "seed: -1"):
        shutil.copytree(finished, "run")
        config = yaml.safe_load(Path("run/config.yaml").read_text())
        config |= yaml.safe_load(setting)
        Path("run/config.yaml").write_text(yaml.safe_dump(config))
        refused(capfd, "search", "--resume=run")
        shutil.rmtree("run")
    shutil.copytree(finished, "run")
    Path("run/checkpoint.pt").unlink()
    assert "checkpoint" in refused(capfd, "search", "--resume=run")


@pytest.fixture(scope="module")
def trained(finished: Path) -> Path:
    folder = finished.parent / "trained"
    size = ["--epochs=1", "--cells=3", "--channels=2", "--limit=40"]
    assert main(["retrain", str(finished), *size, f"--out={folder}"]) == 0
    return folder


def test_run_folders_of_the_other_kind(
    finished: Path, trained: Path, capfd: pytest.CaptureFixture
) -> None:
    is_training = "holds no search: it is the run folder of a training; give that of a search"
    assert is_training in refused(capfd, "search", f"--resume={trained}")
    assert is_training in refused(capfd, "retrain", trained)
    is_search = "holds no training: it is the run folder of a search; give that of a training"
    assert is_search in refused(capfd, "retrain", f"--resume={finished}")


@pytest.mark.parametrize(
    "command", [["evaluate"], ["predict", "image.png"], ["export", "model.onnx"]], ids=str
)
def test_run_folders_without_a_model(
    command: list[str], finished: Path, trained: Path, capfd: pytest.CaptureFixture
) -> None:
    name, *rest = command
    advice = f"holds a search: train what it found, da2s retrain {finished}"
    assert advice in refused(capfd, name, finished, *rest)
    shutil.copytree(trained, "my training")
    Path("my training/model.pt").unlink()
    advice = "has not finished; go on with it by da2s retrain --resume 'my training'"
    assert advice in refused(capfd, name, "my training", *rest)
    Path("my training/config.yaml").unlink()
    assert "holds no model.pt" in refused(capfd, name, "my training", *rest)


def test_files_that_are_no_model_and_folders_that_are_not_there(
    trained: Path, capfd: pytest.CaptureFixture
) -> None:
    for name in ("model.pt2", "model.onnx"):
        assert run(capfd, "export", trained, name)[0] == 0
        assert f"{name} is not a model of this program" in refused(capfd, "evaluate", name)
    missing = "cannot write none/model.pt: there is no folder none; make it"
    assert missing in refused(capfd, "export", trained, "none/model.pt")
