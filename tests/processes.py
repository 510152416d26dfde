"""The command line as users start it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

TINY = ["--cells=3", "--channels=4", "--nodes=2", "--limit=200", "--epochs=3"]
"""Flags of a search on digits that takes a few seconds."""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def _interruptible() -> None:
    """Tests that run in the background ignore interrupts, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: object, folder: Path, ulimit: str = "") -> subprocess.Popen:
    """Start `python -m da2s_fast ARGUMENTS` in a folder, its outputs in pipes.

    `ulimit` takes what the shell's command of that name does, for example "-f 100".
    """
    command = [sys.executable, "-m", "da2s_fast", *map(str, arguments)]
    if ulimit:
        command = ["sh", "-c", f'ulimit {ulimit} && exec "$@"', "sh", *command]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,  # noqa: PLW1509 - tests have no threads when they start this
    )


def da2s(*arguments: object, folder: Path, ulimit: str = "") -> subprocess.CompletedProcess:
    """Run `python -m da2s_fast ARGUMENTS` in a folder to its end."""
    process = start(*arguments, folder=folder, ulimit=ulimit)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def assert_one_line_error(done: subprocess.CompletedProcess, *words: str, code: int = 2) -> None:
    """Demand the exit code and, after the log, a single line with these words on stderr."""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("da2s: ")]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[-1:] == errors, done.stderr
    for word in words:
        assert word in errors[0]
