"""Measure a trained model on the test images of a data set.

Without --data the images are those that its training measured it on.

Examples:
  da2s evaluate runs/photos-trained
  da2s evaluate model.pt --data other_photos/
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from da2s_fast.commands.output import result_console, show_facts, shown_log
from da2s_fast.commands.runs import run_settings, trained_model
from da2s_fast.data import ImageData, load_data
from da2s_fast.errors import UserError
from da2s_fast.report.formatting import decimal, percent, quantity
from da2s_fast.train import (
    RetrainSettings,
    count_multiply_adds,
    count_parameters,
    evaluate,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare model and data."""
    parser.add_argument("run", metavar="RUN", help="run folder of a training, or a model file.")
    parser.add_argument(
        "--data", help="digits, cifar10, cifar100, a folder of images or an .npz file."
    )


def run(arguments: Namespace) -> None:
    """Show accuracy, loss, size and cost."""
    with shown_log():
        source = Path(arguments.run)
        model, info = trained_model(source)
        data = arguments.get("data") or _data_of_the_training(source)
        result = evaluate((model, info), data)
    screen = result_console()
    screen.print(f"test accuracy {percent(result.accuracy)}", style="bold")
    show_facts(
        screen,
        {
            "cross entropy": decimal(result.loss),
            "images": str(result.images),
            "parameters": quantity(count_parameters(model)),
            "multiply-adds": quantity(count_multiply_adds(model, info.input_shape)),
        },
    )


def _data_of_the_training(source: Path) -> ImageData:
    folder = source if source.is_dir() else source.parent
    if not (folder / "config.yaml").exists():
        raise UserError(f"what {source} was trained on is not recorded beside it; give --data")
    settings = RetrainSettings(**run_settings(folder, "training"))
    return load_data(settings.data, image_size=settings.image_size, limit=settings.limit)
