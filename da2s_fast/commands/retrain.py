"""Train a found architecture from scratch and measure it on the test images.

The size of the network and the length of the training follow from the number of images; for large
data sets they are DARTS's (36 channels, 20 cells, 600 epochs). Data and image size are those of the
search. The run folder that is made holds log, metrics, checkpoint and the trained model.pt.

Examples:
  da2s retrain runs/digits-da2s-seed0-1
  da2s retrain runs/photos --epochs 100 --channels 24 --out runs/photos-trained
  da2s retrain genotype.txt --data cifar10
  da2s retrain --resume runs/photos-trained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from da2s_fast.commands.output import (
    in_shell,
    new_run_folder,
    on_interrupt,
    result_console,
    show_facts,
    shown_log,
)
from da2s_fast.commands.runs import refuse_besides_resume, run_settings
from da2s_fast.errors import UserError
from da2s_fast.report.formatting import percent, quantity
from da2s_fast.terminal import console
from da2s_fast.train import (
    RetrainResult,
    RetrainSettings,
    read_genotype,
    resume_retraining,
    retrain,
)

SETTINGS = RetrainSettings
USAGE = """da2s retrain RUN [--config FILE] [--out NEW_RUN] [--SETTING VALUE ...]
       da2s retrain --resume RUN"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what is not a setting."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder of a search, or a file.")
    parser.add_argument("--out", metavar="NEW_RUN", help="by default RUN-retrain-seedSEED-NUMBER.")
    parser.add_argument("--resume", metavar="RUN", help="continue an interrupted training.")


def run(arguments: Namespace) -> None:
    """Train or go on training, then show the result."""
    with shown_log():
        if "resume" in arguments:
            result = _resume(arguments)
        elif arguments.run is not None:
            result = _retrain(Path(arguments.run), arguments)
        else:
            raise UserError("give the run folder of a search, or a file with a genotype")
    _show(result)


def _retrain(source: Path, arguments: Namespace) -> RetrainResult:
    settings = RetrainSettings(**_of_the_search(source) | arguments.settings)
    genotype = read_genotype(source)
    stem = f"{source.stem}-retrain-seed{settings.seed}"
    with new_run_folder(arguments.get("out"), stem) as folder, on_interrupt("retrain", folder):
        return retrain(genotype, settings, run_dir=folder, progress=console().is_terminal)


def _resume(arguments: Namespace) -> RetrainResult:
    folder = Path(arguments.resume)
    refuse_besides_resume(arguments)
    if arguments.run is not None:
        raise UserError(f"--resume goes on with {folder}: leave out {arguments.run}")
    run_settings(folder, "training")
    with on_interrupt("retrain", folder):
        return resume_retraining(folder, progress=console().is_terminal)


def _of_the_search(source: Path) -> dict[str, Any]:
    """Settings that the training shares with the search whose run folder `source` is."""
    if not source.is_dir():
        return {}
    settings = run_settings(source, "search")
    if not (source / "genotype.txt").exists():
        raise UserError(
            f"the search in {source} has not finished; go on with it by da2s search --resume "
            f"{in_shell(source)}"
        )
    return {name: settings[name] for name in ("data", "image_size") if name in settings}


def _show(result: RetrainResult) -> None:
    assert result.run_dir is not None
    folder, summary = in_shell(result.run_dir), result.summary
    screen = result_console()
    screen.print()
    screen.print(f"test accuracy {percent(summary['test_accuracy'])}", style="bold")
    show_facts(
        screen,
        {
            "parameters": quantity(summary["parameters"]),
            "multiply-adds": quantity(summary["multiply_adds"]),
            "run folder": str(result.run_dir),
            "model": str(result.run_dir / "model.pt"),
            "use it with": f"da2s predict {folder} IMAGE ...",
            "export it with": f"da2s export {folder} model.onnx",
        },
    )
