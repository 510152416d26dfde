"""The run folder: settings that come back as they were, and folders that are no runs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from da2s_fast.errors import UserError
from da2s_fast.search import RunFolder
from tests.search.conftest import MakeSession


def create(path: Path, make_session: MakeSession, **settings: Any) -> RunFolder:
    return RunFolder.create(path, make_session(**settings).settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep_normal": [1, 3], "keep_reduce": [2, 1], "partial_channels": 2},
        {"space": "nas-bench-201", "operations": ["none", "nor_conv_1x1"], "cells": 1},
        {"method": "darts", "second_order": True, "precision": "bfloat16", "seed": 7},
    ],
    ids=str,
)
def test_settings_come_back(
    make_session: MakeSession, tmp_path: Path, settings: dict[str, Any]
) -> None:
    session = make_session(**settings)
    RunFolder.create(tmp_path / "a" / "run", session.settings)
    again = RunFolder(tmp_path / "a" / "run").settings()
    assert again.resolved(session.data) == session.settings
    config = yaml.safe_load((tmp_path / "a" / "run" / "config.yaml").read_text())
    assert config["keep"] == {kind: list(kept) for kind, kept in session.settings.keep().items()}
    assert config["operations"] == session.settings.operations


def test_a_run_is_not_overwritten(make_session: MakeSession, tmp_path: Path) -> None:
    create(tmp_path, make_session)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="holds a run already; continue it with --resume"):
        create(tmp_path, make_session, seed=1)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_file_in_its_place(make_session: MakeSession, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot create the run folder"):
            create(path, make_session)


def test_no_run_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"holds no run: there is no config\.yaml"):
            RunFolder(path).settings()
    with pytest.raises(UserError, match="there is no checkpoint"):
        RunFolder(tmp_path).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as the settings of a run"),
        (b"- 1\n- 2\n", "cannot be read as the settings of a run"),
        (b"a: [", "cannot be read as the settings of a run"),
        (b"epochs: 3\n", "cannot be read as the settings of a run: 'keep'"),
        (b"keep: {normal: [2]}\ncolour: red\n", "unexpected keyword argument 'colour'"),
        (b"keep: {normal: two}\n", "keep_normal='two' cannot be used"),
        (b"keep: [2]\n", "cannot be read as the settings of a run"),
        (b"keep: {normal: [2]}\nepochs: ten\n", "epochs='ten' cannot be used"),
        (b"\xff\xfe\x00", "cannot be read as the settings of a run"),
        (b"!!python/object/apply:os.getcwd []", "cannot be read as the settings of a run"),
    ],
)
def test_damaged_settings(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        RunFolder(tmp_path).settings()
    assert "\n" not in str(caught.value)


def test_log(tmp_path: Path) -> None:
    logger = logging.getLogger("da2s_fast")
    level, handlers = logger.level, list(logger.handlers)
    folder = RunFolder(tmp_path)
    with folder.logging():
        logger.info("one")
    logger.error("not this one")
    with folder.logging():
        logger.warning("two")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO one", "WARNING two"]
    assert (logger.level, logger.handlers) == (level, handlers)


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot write the log"), folder.logging():
        pass
