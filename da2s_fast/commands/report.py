"""Write the report page of a search anew, also of one that has not finished.

Example:
  da2s report runs/digits-da2s-seed0-1
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from da2s_fast.commands.output import result_console
from da2s_fast.report import write_report


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the run folder."""
    parser.add_argument("run", metavar="RUN", help="run folder of a search.")


def run(arguments: Namespace) -> None:
    """Write report.html and say where it is."""
    result_console().print(str(write_report(arguments.run)), soft_wrap=True)
