"""Nothing is lost: searches killed without warning end as if they had not been, to the bit.

Real processes, killed with SIGKILL, all with one thread.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from da2s_fast.search.checkpoint import load_checkpoint
from tests.processes import TINY, assert_one_line_error, da2s, start

EPOCHS = 3


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = da2s("search", *TINY, "--out=run", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def history(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without the time they took."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def assert_same_end(run: Path, expected: Path) -> None:
    assert history(run) == history(expected)
    assert (run / "genotype.txt").read_bytes() == (expected / "genotype.txt").read_bytes()
    mine, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, expected))
    assert {**mine, "seconds": None} == {**theirs, "seconds": None}
    # Weights, optimizers, random states and data order: everything there is.
    assert_equal(*(load_checkpoint(r / "checkpoint.pt")["state"] for r in (run, expected)))


def assert_equal(mine: Any, theirs: Any) -> None:
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert_equal(mine[key], theirs[key])
    elif isinstance(mine, list):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert_equal(a, b)
    elif hasattr(mine, "numpy"):
        assert mine.numpy().tobytes() == theirs.numpy().tobytes()
    else:
        assert mine == theirs


def kill_search(folder: Path, epochs_done: int, delay: float) -> Path:
    """Start a search, kill it `delay` seconds after so many epochs were recorded."""
    process = start("search", *TINY, "--out=run", folder=folder)
    metrics = folder / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= epochs_done):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "the search ended before it was killed"
    assert not (folder / "run" / "genotype.txt").exists()
    return folder / "run"


def test_killed_in_a_later_epoch(tmp_path: Path, uninterrupted: Path) -> None:
    shortest = min(json.loads(s)["seconds"] for s in (uninterrupted / "metrics.jsonl").open())
    delay = random.uniform(0, 0.8 * shortest)
    run = kill_search(tmp_path, 1, delay)
    assert 1 <= len(history(run)) < EPOCHS
    done = da2s("search", "--resume=run", folder=tmp_path)
    assert done.returncode == 0, (delay, done.stderr)
    assert "epoch 1/3" not in done.stderr  # what was done is not done again
    assert_same_end(run, uninterrupted)


def test_killed_in_the_first_epoch_and_again_after_the_resume(
    tmp_path: Path, uninterrupted: Path
) -> None:
    delay = random.uniform(0, 0.2)  # the first epoch takes longer than that everywhere
    run = kill_search(tmp_path, 0, delay)
    assert history(run) == [], delay
    process = start("search", "--resume=run", folder=tmp_path)
    while not history(run):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert len(history(run)) < EPOCHS
    done = da2s("search", "--resume=run", folder=tmp_path)
    assert done.returncode == 0, (delay, done.stderr)
    assert_same_end(run, uninterrupted)


def test_killed_before_the_first_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(uninterrupted / "config.yaml", run)
    done = da2s("search", "--resume=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(run, uninterrupted)


def test_killed_between_the_checkpoint_and_its_metrics(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "checkpoint.pt"):
        shutil.copy(uninterrupted / name, run)
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    done = da2s("search", "--resume=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(run, uninterrupted)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    content = bytearray((run / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(content)
    before = (run / "metrics.jsonl").read_bytes()
    assert_one_line_error(da2s("search", "--resume=run", folder=tmp_path), "checkpoint.pt")
    assert (run / "metrics.jsonl").read_bytes() == before
