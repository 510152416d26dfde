"""What commands show: the log on standard error, results on standard output."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import rich
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text

from da2s_fast.terminal import console

logger = logging.getLogger("da2s_fast")


class _TerminalHandler(RichHandler):
    """Log lines above the progress bar, without time and level: log.txt has them."""

    def __init__(self) -> None:
        super().__init__(
            console=console(),
            show_time=False,
            show_level=False,
            show_path=False,
            highlighter=NullHighlighter(),
        )

    def render_message(self, record: logging.LogRecord, message: str) -> Text:
        text = super().render_message(record, message)
        assert isinstance(text, Text)
        if record.levelno >= logging.WARNING:
            return Text.assemble(("warning: ", "bold yellow"), text)
        return text


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return prefix + super().format(record)


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """Inside, a full disk does not make log.txt and TensorBoard's thread print tracebacks.

    It ends the run with one sentence, at the next checkpoint or when TensorBoard flushes.
    """
    loud, hook = logging.raiseExceptions, threading.excepthook

    def in_thread(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            hook(failure)

    logging.raiseExceptions, threading.excepthook = False, in_thread
    try:
        yield
    finally:
        logging.raiseExceptions, threading.excepthook = loud, hook


@contextmanager
def shown_log() -> Iterator[None]:
    """Inside, the package's log is shown on standard error, one plain line each in a pipe."""
    rich.reconfigure(stderr=True)
    handler: logging.Handler = _TerminalHandler()
    if not console().is_terminal:
        handler = logging.StreamHandler()
        handler.setFormatter(_PlainFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with _quiet_writers():
            yield
    finally:
        logger.removeHandler(handler)
        rich.reconfigure()
        logger.setLevel(level)


def result_console() -> Console:
    """The console on standard output."""
    return Console(highlight=False, markup=False)


def in_shell(path: Path) -> str:
    """The path as it is typed in a shell."""
    return shlex.quote(str(path))


def show_facts(screen: Console, facts: Mapping[str, str]) -> None:
    """One line per fact: its name and its value, not broken, so that it can be copied."""
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        screen.print(f"{name:<{width}}{value}", soft_wrap=True)


@contextmanager
def on_interrupt(command: str, folder: Path) -> Iterator[None]:
    """Inside, an interruption gets a message that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        advice = f"go on with da2s {command} --resume {in_shell(folder)}"
        begun = (folder / "config.yaml").exists()
        raise KeyboardInterrupt(advice if begun else "nothing was written yet") from None


@contextmanager
def new_run_folder(given: str | None, stem: str) -> Iterator[Path]:
    """The folder `given`, or else a new one, runs/STEM-1 or the next number that is free.

    A folder that is made here and still empty in the end is removed.
    """
    if given is not None:
        yield Path(given)
        return
    for number in count(1):
        path = Path("runs", f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if not path.is_dir():
                raise
    try:
        yield path
    finally:
        if not any(path.iterdir()):
            path.rmdir()
