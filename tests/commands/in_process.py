"""Commands run in this process, where starting them takes no time."""

from __future__ import annotations

import pytest

from da2s_fast.cli import main

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
