"""Search an architecture for a data set.

Trains a super-network that holds all candidate architectures, with the discretization-aware loss
(DA2S) or as DARTS and PC-DARTS do, cuts it down to one, and says what the cut costs. Everything is
kept in a run folder: settings, log, metrics, checkpoint, genotype, summary and report.html.

Settings that are not given follow from the data and the method. They come from flags, from a YAML
file (--config; the config.yaml of a run is one), or from both: flags win.

Examples:
  da2s search
  da2s search --data cifar10 --method pc-darts --device cuda
  da2s search --data photos/ --image-size 32 --epochs 50 --out runs/photos
  da2s search --keep-normal 1,2,3,3 --operations sep_conv_3x3,skip_connect,max_pool_3x3
  da2s search --config runs/photos/config.yaml --seed 1
  da2s search --resume runs/photos
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.table import Table

from da2s_fast import api
from da2s_fast.commands.output import (
    in_shell,
    new_run_folder,
    on_interrupt,
    result_console,
    show_facts,
    shown_log,
)
from da2s_fast.commands.runs import refuse_besides_resume, run_settings
from da2s_fast.report import load_run
from da2s_fast.report.formatting import points
from da2s_fast.report.verdict import judge
from da2s_fast.search.settings import SearchSettings

if TYPE_CHECKING:
    from da2s_fast.search.loop import SearchResult

SETTINGS = SearchSettings
USAGE = """da2s search [--config FILE] [--out RUN] [--SETTING VALUE ...]
       da2s search --resume RUN"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what is not a setting."""
    parser.add_argument(
        "--out",
        "--output",
        metavar="RUN",
        help="new run folder; by default runs/DATA-METHOD-seedSEED-NUMBER.",
    )
    parser.add_argument("--resume", metavar="RUN", help="continue an interrupted search.")


def run(arguments: Namespace) -> None:
    """Search or go on searching, then show the result."""
    with shown_log():
        result = _resume(arguments) if "resume" in arguments else _search(arguments)
    _show(result)


def _search(arguments: Namespace) -> SearchResult:
    settings = SearchSettings(**arguments.settings)
    stem = f"{Path(settings.data).stem or 'data'}-{settings.method}-seed{settings.seed}"
    with new_run_folder(arguments.get("out"), stem) as folder, on_interrupt("search", folder):
        return api.search(run_dir=folder, **arguments.settings)


def _resume(arguments: Namespace) -> SearchResult:
    folder = Path(arguments.resume)
    refuse_besides_resume(arguments)
    run_settings(folder, "search")
    with on_interrupt("search", folder):
        return api.resume(folder)


def _show(result: SearchResult) -> None:
    assert result.run_dir is not None
    record = load_run(result.run_dir)
    screen = result_console()
    screen.print()
    # In one line however narrow the terminal, so that it can be copied.
    screen.print(str(result.genotype), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("accuracy in %, without retraining")
    for title in ("before cutting", "after", "gap"):
        table.add_column(title, justify="right")
    for title, part in (("architecture images", "search"), ("test images", "test")):
        taken = record.accuracies(part)
        table.add_row(title, points(taken.super), points(taken.cut), points(taken.gap))
        table.add_row(
            "  BatchNorm re-estimated",
            points(taken.super_bn),
            points(taken.cut_bn),
            points(taken.gap_bn),
            style="dim",
        )
    screen.print(table)
    screen.print()
    verdict = judge(record)
    tones = {"good": "bold green", "fair": "bold yellow", "bad": "bold red"}
    screen.print(verdict.sentence, style=tones[verdict.tone])
    for check in verdict.checks:
        screen.print(f"  {check.text}", style="dim")
    screen.print()
    folder = in_shell(result.run_dir)
    show_facts(
        screen,
        {
            "run folder": str(result.run_dir),
            "report": str(result.run_dir / "report.html"),
            "train it with": f"da2s retrain {folder}",
            "compare with": f"da2s compare {folder} OTHER_RUN",
        },
    )
