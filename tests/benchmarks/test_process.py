"""Processes that measure a row: what they return, and how they end."""

from functools import partial
from importlib import import_module

import psutil
import pytest

from benchmarks.process import Process, RowFailed


@pytest.fixture
def run():
    started = []

    def start(module: str) -> Process:
        started.append(Process(partial(import_module, module)))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_calls_are_answered(run) -> None:
    process = run("operator")
    assert process.call("add", 1, 2) == 3
    assert process.call("sub", 1, 2) == -1


def test_errors_become_the_row_s_result(run) -> None:
    with pytest.raises(RowFailed, match="ZeroDivisionError: division by zero"):
        run("operator").call("truediv", 1, 0)
    with pytest.raises(RowFailed, match="No module named 'no_such_module'"):
        run("no_such_module").call("anything")


def test_a_time_limit_ends_it(run) -> None:
    process = run("time")
    with pytest.raises(RowFailed, match="not finished after 0 s"):
        process.call("sleep", 60, limit=0.1)
    with pytest.raises(RowFailed):
        process.call("sleep", 0)


def test_a_death_is_told(run) -> None:
    with pytest.raises(RowFailed, match="exit code 3"):
        run("os").call("_exit", 3)


def test_full_memory_ends_it(run, monkeypatch) -> None:
    process = run("time")
    full = type("Memory", (), {"available": 0})
    monkeypatch.setattr(psutil, "virtual_memory", full)
    with pytest.raises(RowFailed, match="memory was full"):
        process.call("sleep", 60)
