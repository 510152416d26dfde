"""Set several searches side by side; runs that differ only in the seed give a mean and a spread.

Where an architecture was trained from scratch (da2s retrain) in a folder beside that of its search
or among the given ones, its test accuracy stands there, too; of several, the longest trainings'.

Examples:
  da2s compare runs/digits-darts-seed0-1 runs/digits-da2s-seed0-1
  da2s compare runs/* --html comparison.html
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from da2s_fast.commands.output import logger, result_console
from da2s_fast.report import compare_runs


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the run folders and the page."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of searches.")
    parser.add_argument("--html", metavar="FILE", help="write the comparison as a page, too.")


def run(arguments: Namespace) -> None:
    """Show the table; write the page if one is wanted."""
    comparison = compare_runs(arguments.runs)
    screen = result_console()
    screen.print(comparison.table())
    for note in comparison.notes:
        logger.warning(note)
    if "html" in arguments:
        screen.print(str(comparison.write_html(arguments.html)), soft_wrap=True)
