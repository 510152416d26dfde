"""Progress bars and the console they share with the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@cache
def console() -> Console:
    """The console on standard error.

    Log lines and progress bars must go through the same one, or they tear each other apart.
    """
    return Console(stderr=True)


@contextmanager
def progress_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Inside, a bar with the time left; yields what to call with (steps done, steps in all).

    Nothing is shown where standard error is no terminal (a pipe, a file): a bar there is noise.
    """
    columns = (
        TextColumn(f"[bold]{title}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    screen = console()
    visible = shown and (screen.is_interactive or screen.is_jupyter)
    with Progress(*columns, console=screen, disable=not visible) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
