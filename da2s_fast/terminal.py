"""Progress bars and the console they share with the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def console() -> Console:
    """The console of all log lines and progress bars: through two, they tear each other apart.

    It is rich's own, so that a program that has set up rich has set up these, too.
    """
    return rich.get_console()


@contextmanager
def progress_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Inside, a bar with the time left; yields what to call with (steps done, steps in all).

    Nothing is shown where the console is no terminal (a pipe, a file): a bar there is noise.
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
