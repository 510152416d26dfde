"""Classify image files with a trained model: the most probable classes, best first.

Examples:
  da2s predict runs/photos-trained cat.jpg dog.png
  da2s predict model.pt images/* --topk 1
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from da2s_fast.commands.output import shown_log
from da2s_fast.commands.runs import trained_model
from da2s_fast.report.formatting import percent
from da2s_fast.train import predict


def add_arguments(parser: ArgumentParser) -> None:
    """Declare model and images."""
    parser.add_argument("run", metavar="RUN", help="run folder of a training, or a model file.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files.")
    parser.add_argument(
        "--topk", type=int, metavar="K", help="how many classes to show; by default at most 5."
    )


def run(arguments: Namespace) -> None:
    """One line per image: its path and, separated by tabs, classes and probabilities."""
    with shown_log():
        model = trained_model(Path(arguments.run))
        for found in predict(model, arguments.images, topk=arguments.get("topk")):
            best = zip(found.classes, found.probabilities, strict=True)
            ranked = "\t".join(f"{name} {percent(share)}" for name, share in best)
            print(f"{found.path}\t{ranked}")
