"""Show which backends can run here and, for each that cannot, why.

Example:
  da2s info
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from da2s_fast import __version__
from da2s_fast.backends import backend_report, build_info
from da2s_fast.commands.output import result_console
from da2s_fast.ops import workspace_bytes


def add_arguments(parser: ArgumentParser) -> None:
    """There is nothing to set."""


def run(arguments: Namespace) -> None:
    """Show a table of the backends and one of the build."""
    screen = result_console()
    screen.print(f"da2s_fast {__version__}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("backend", "runs here", "on what, or why not"):
        table.add_column(title)
    for status in backend_report():
        mark = Text("yes", "green") if status.available else Text("no", "red")
        table.add_row(status.name, mark, status.detail)
    screen.print(table)
    build = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("build", ""):
        build.add_column(title)
    for name, value in {**build_info(), "workspace_bytes": workspace_bytes()}.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        build.add_row(name.replace("_", " "), text)
    screen.print(build)
