"""Whatever is given, the command line ends with exit code 0 or 2, one line and no traceback."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from da2s_fast import api
from da2s_fast.cli import main
from da2s_fast.commands.output import shown_log
from da2s_fast.search.settings import SearchSettings
from tests.processes import TINY, assert_one_line_error, da2s

# As small as a search can be: these tests care for what happens before the first step.
SMALLEST = {
    "cells": 3,
    "channels": 2,
    "nodes": 1,
    "limit": 40,
    "epochs": 1,
    "operations": ["skip_connect", "max_pool_3x3"],
}
FLAGS = [
    f"--{name}={'skip_connect,max_pool_3x3' if name == 'operations' else value}"
    for name, value in SMALLEST.items()
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own for every test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capfd: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    """Exit code and the last line of standard error of a command in this process."""
    capfd.readouterr()
    code = main([str(argument) for argument in arguments])
    err = capfd.readouterr().err
    assert "Traceback" not in err
    return code, err.splitlines()[-1] if err else ""


def refused(capfd: pytest.CaptureFixture, *arguments: object) -> str:
    """The one-line error of a command that must be refused."""
    code, line = run(capfd, *arguments)
    assert code == 2, line
    assert line.startswith("da2s: error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serach"], "no command 'serach'"),
        (["search", "--epoch=3"], "'--epoch'; did you mean --epochs?"),
        (["search", "--quite-unknown"], "'--quite_unknown'; --help"),
        (["search", "digits"], "no argument 'digits'"),
        (["search", "--epochs"], "--epochs: expected one argument"),
        (["search", "--epochs=x"], "epochs=x must be a whole number"),
        (["search", "--epochs=1.5"], "epochs=1.5 must be a whole number"),
        (["search", "--epochs=0"], "epochs=0 must be at least 1"),
        (["search", "--epochs=-3"], "epochs=-3 must be at least 1"),
        (["search", "--method=random"], "one of 'da2s', 'darts', 'pc-darts'"),
        (["search", "--learning-rate=fast"], "learning_rate=fast must be a number"),
        (["search", "--learning-rate=-1"], "learning_rate=-1.0 must be positive"),
        (["search", "--second-order=maybe"], "second_order=maybe must be true or false"),
        (["search", "--channels=6", "--partial-channels=4"], "channels=6"),
        (["search", "--keep-normal=1,2,3,9"], "node 4 of normal cells; this node can keep 1 to 5"),
        (["search", "--keep-normal=1,2"], "4"),
        (["search", "--keep-reduce=0,1,1,1"], "reduce"),
        (["search", "--keep-normal=1,x"], "keep_normal=[1, 'x'] must be a list of whole numbers"),
        (["search", "--warmup=50", "--epochs=10"], "warmup=50 leaves no time"),
        (["search", "--operations=skip_connect,conv_9x9"], "unknown operation 'conv_9x9'"),
        (["search", "--operations="], "operations"),
        (["search", "--space=nasnet"], "nasnet"),
        (["search", "--batch-size=100000"], "batch_size=100000 is larger than half"),
        (["search", "--device=cuda:99"], "device='cuda:99'"),
        (["search", "--device=tpu"], "device='tpu'"),
        (["search", "--seed=-1"], "seed=-1"),
        (["search", "--seed=99999999999999999999"], "seed=99999999999999999999"),
        (["search", "--limit=0"], "limit=0"),
        (["search", "--image-size=3"], "3"),
        (["search", "--data=nowhere"], "no data set 'nowhere'"),
        (["search", "--data=nowhere.npz"], "no data set 'nowhere.npz'"),
        (["search", "--data=."], "."),
        (["search", "--compat=daas", "--method=darts"], "compat='daas'"),
        (["search", "--config=nowhere.yaml"], "cannot read the settings file nowhere.yaml"),
        (["search", "--config=."], "cannot read the settings file ."),
        (["search", "--resume=nowhere"], "nowhere holds no search"),
        (["search", "--resume=nowhere", "--epochs=3"], "leave out epochs"),
        (["search", "--resume=nowhere", "--out=x"], "leave out out"),
        (["retrain"], "give the run folder of a search"),
        (["retrain", "nowhere"], "nowhere"),
        (["retrain", "--resume=nowhere"], "nowhere holds no training"),
        (["retrain", "nowhere", "--resume=nowhere"], "leave out nowhere"),
        (["evaluate", "nowhere"], "no model nowhere"),
        (["predict", "nowhere", "image.png"], "no model nowhere"),
        (["predict", "nowhere"], "required"),
        (["export", "nowhere", "model.onnx"], "no model nowhere"),
        (["export", "nowhere", "model.tflite"], "choose from .pt, .pt2, .onnx"),
        (["compare"], "required"),
        (["compare", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["info", "--verbose"], "'--verbose'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture, elsewhere: Path
) -> None:
    assert words in refused(capfd, *arguments)
    assert [p for p in elsewhere.rglob("*") if p.is_file()] == []
    assert not list(elsewhere.glob("runs/*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [", "not a YAML file at line 1"),
        (b"epochs: 3\n\tcells: 2", "not a YAML file at line 2"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"2026-99-99", "not a YAML file"),
        (b"[" * 5000, "not a YAML file"),
        (b"just text", "holds 'just text'"),
        (b"- epochs", "holds ['epochs']"),
        (b"epochz: 3", "no setting 'epochz'; did you mean epochs?"),
        (b"epochs: many", "epochs=many must be a whole number"),
        (b"epochs: true", "epochs=True must be a whole number"),
        (b"3: 4", "3"),
        (b"data: [digits]", "data=['digits'] must be text"),
        (b"keep: 3", "keep=3 must give a list per kind of cell"),
        (b"keep: {normal: 3}", "keep_normal=3 must be a list"),
        (b"keep: {sideways: [2]}", "no setting 'keep_sideways'"),
        (b"operations: [1]", "operations=[1] must be a list of names"),
        (b"a: !!python/object/apply:os.system ['touch owned']", "not a YAML file"),
    ],
)
def test_wrong_settings_files(
    content: bytes, words: str, capfd: pytest.CaptureFixture, elsewhere: Path
) -> None:
    Path("s.yaml").write_bytes(content)
    assert words in refused(capfd, "search", "--config=s.yaml")
    assert not Path("owned").exists()


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
    refused(capfd, "search", *FLAGS, "--data=images")
    Path("images/only").mkdir()
    Image.new("RGB", (8, 8)).save("images/only/0.png")
    refused(capfd, "search", *FLAGS, "--data=images")
    Path("images/other").mkdir()
    Path("images/other/1.png").write_bytes(b"no image")
    refused(capfd, "search", *FLAGS, "--data=images")


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


@pytest.mark.parametrize("keep", [0, 1, 100, 10_000])
@pytest.mark.parametrize("name", ["config.yaml", "checkpoint.pt"])
def test_a_damaged_run_is_not_resumed(
    name: str, keep: int, finished: Path, capfd: pytest.CaptureFixture
) -> None:
    shutil.copytree(finished, "run")
    content = Path("run", name).read_bytes()
    Path("run", name).write_bytes(content[:keep])
    if len(content) > keep:
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


def test_a_full_disk_ends_a_search_with_one_line(elsewhere: Path) -> None:
    # No file may grow beyond the limit, in blocks of 512 bytes; the checkpoint is larger.
    done = da2s("search", *TINY, "--out=run", folder=elsewhere, ulimit="-f 64")
    assert_one_line_error(done, "checkpoint.pt", "unchanged")
    assert not list(Path("run").glob(".checkpoint*"))


def test_a_full_disk_prints_no_traceback_through_logs_and_threads(
    capfd: pytest.CaptureFixture,
) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    logger = logging.getLogger("da2s_fast")
    handler = logging.FileHandler("/dev/full", delay=True)
    with shown_log():
        logger.addHandler(handler)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        logger.info("said on the terminal, whatever becomes of the file")
        logger.removeHandler(handler)
    with contextlib.suppress(OSError):
        handler.close()
    assert capfd.readouterr().err == "said on the terminal, whatever becomes of the file\n"


def test_a_full_standard_output_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        for arguments in (["info"], ["--help"]):
            done = subprocess.run(
                [sys.executable, "-m", "da2s_fast", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert_one_line_error(done, "No space left on device")


def test_too_little_memory_says_what_to_lower(elsewhere: Path) -> None:
    done = da2s("search", *TINY, "--channels=300000", folder=elsewhere, ulimit="-v 16000000")
    assert_one_line_error(done, "out of memory: lower batch_size, channels or cells")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_every_kind_of_exhausted_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "run_search", fail)
    assert "out of memory" in refused(capfd, "search", *FLAGS)


NAMES = sorted(SearchSettings.__dataclass_fields__)
# Few that work, and those small, so that an example that is accepted takes no time.
NUMBERS = st.sampled_from(
    ["-1", "0", "1", "2", "3", "4", "8", "0.5", "1e-3", "1e400", "nan", "inf"]
)
WORDS = (
    st.sampled_from(["", "null", "true", "none", "[1]", "1,1", "[", "{a: 1}", "10000000000"])
    | st.sampled_from(["99999999999999999999999", "digits", "darts", "da2s", "pc-darts", "linear"])
    | st.sampled_from(["nas-bench-201", "bfloat16", "float16", "daas", "cpu", "cuda", "meta"])
    | st.just("skip_connect,none")
)
NOISE = st.text(st.characters(exclude_characters="/\0"), max_size=5)
ANYTHING = NUMBERS | WORDS | NOISE
# What may take long when it is large; everything else may be anything.
COSTLY = {"epochs", "cells", "nodes", "limit", "image_size"}
SMALL = st.sampled_from(["-1", "0", "1", "2", "3", "4", "x", "", "null", "1.5", "[1]"])


def flag(name: str) -> st.SearchStrategy[str]:
    return (SMALL if name in COSTLY else ANYTHING).map(lambda value: f"--{name}={value}")


def assert_0_or_2(capfd: pytest.CaptureFixture, *arguments: str) -> None:
    code, line = run(capfd, *arguments)
    if "became NaN or infinite" in line:  # settings that can be used, but not to learn
        assert code == 1
        code = 2
    assert code in (0, 2)
    assert line.startswith("da2s: error: ") == (code == 2)
    shutil.rmtree("runs", ignore_errors=True)


RARELY_SLOW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@RARELY_SLOW
@given(flags=st.lists(st.sampled_from(NAMES).flatmap(flag), min_size=1, max_size=2))
def test_any_flags(capfd: pytest.CaptureFixture, flags: list[str]) -> None:
    assert_0_or_2(capfd, "search", *FLAGS, *flags)


@RARELY_SLOW
@given(words=st.lists(ANYTHING | st.sampled_from(["--", "-x", "--out", "--resume"]), max_size=3))
def test_any_words(capfd: pytest.CaptureFixture, words: list[str]) -> None:
    for command in ("search", "retrain", "report", "export"):
        given_words = [word for word in words if word not in ("digits", "-h", "--help")]
        code, _ = run(capfd, command, *given_words, "--unknown")
        assert code == 2


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.floats()
    | ANYTHING
    | st.dates()
    | st.binary(max_size=3)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(ANYTHING, SCALARS, max_size=2)


@RARELY_SLOW
@given(values=st.dictionaries(st.sampled_from([*NAMES, "keep"]) | ANYTHING, VALUES, max_size=3))
def test_any_settings_file(capfd: pytest.CaptureFixture, values: dict) -> None:
    text = yaml.safe_dump(SMALLEST | values, allow_unicode=True)
    Path("s.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert_0_or_2(capfd, "search", "--config=s.yaml")


@RARELY_SLOW
@given(content=st.binary(max_size=30) | st.text("{}[]:-&*!|>'\"#,? \n\tae1", max_size=12))
def test_any_bytes_as_settings_file(capfd: pytest.CaptureFixture, content: bytes | str) -> None:
    Path("s.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    # The file may well be empty of settings: the rest makes such a search impossible.
    assert run(capfd, "search", "--data=nowhere", "--config=s.yaml")[0] == 2
