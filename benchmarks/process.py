"""A process per row: its own memory, its own end, and a time limit where one is needed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import psutil

_LEAST_FREE = 1 << 28
"""Bytes of memory below which a row is ended before the system ends anything else."""

_parent: Connection | None = None


class RowFailed(Exception):
    """A row cannot be measured; the message says why."""


def announce(progress: str) -> None:
    """Tell the parent how far this process has come, in case that its time runs out."""
    if _parent is not None:
        _parent.send(("progress", progress))


def _serve(connection: Connection, build: Callable[[], Any]) -> None:
    """In the new process: build, then call the methods that the parent names."""
    global _parent  # noqa: PLW0603 - one parent per process
    _parent = connection
    os.setsid()  # compilers that this process starts end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        subject = build()
        while (request := connection.recv()) is not None:
            name, arguments = request
            connection.send(("done", getattr(subject, name)(*arguments)))
    except EOFError:
        return
    except Exception as error:  # whatever it is, it is the result
        first = str(error).strip().splitlines()
        connection.send(("failed", f"{type(error).__name__}: {first[0] if first else ''}"))


class Process:
    """Something built in a process of its own, whose methods are called from here.

    Args:
        build: returns it; called in the new process.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build))
        self._process.start()
        theirs.close()

    def call(self, name: str, *arguments: Any, limit: float | None = None) -> Any:
        """Call a method there and return its result.

        Raises:
            RowFailed: it raised an error, ended, used up the machine's memory, or took longer
                than `limit` seconds.
        """
        end = None if limit is None else time.monotonic() + limit
        progress = ""
        try:
            self._connection.send((name, arguments))
            while True:
                if self._connection.poll(0.1):
                    kind, value = self._connection.recv()
                    if kind == "done":
                        return value
                    if kind == "failed":
                        raise RowFailed(value)
                    progress = f" ({value})"
                elif psutil.virtual_memory().available < _LEAST_FREE:
                    self.close()
                    raise RowFailed(f"stopped, the machine's memory was full{progress}")
                elif end is not None and time.monotonic() > end:
                    self.close()
                    raise RowFailed(f"not finished after {limit:.0f} s{progress}")
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise RowFailed(f"its process ended with exit code {code}{progress}") from None

    def close(self) -> None:
        """End the process and what it has started."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(0.5)
        pid = self._process.pid
        if self._process.is_alive() and pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()
        self._connection.close()
