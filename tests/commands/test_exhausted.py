"""A full disk or too little memory ends a command with one line that says so."""

from __future__ import annotations

import contextlib
import errno
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from da2s_fast import api
from da2s_fast.commands.output import shown_log
from tests.commands.in_process import FLAGS, refused
from tests.processes import TINY, assert_one_line_error, da2s


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
