"""Write a trained model for other programs; the ending of the file's name says in which format.

  .pt    weights (state_dict) and genotype, for da2s and torch.load
  .pt2   for torch.export.load
  .onnx  for ONNX runtimes

All take normalized images, (N, C, H, W) float32: (pixel / 255 - mean) / std. Classes, mean and std
travel in the file as JSON: under "info" in .pt, as the extra file da2s_fast.json in .pt2, as the
metadata of that name in .onnx.

Examples:
  da2s export runs/photos-trained photos.onnx
  da2s export runs/photos-trained photos.pt2
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from da2s_fast.commands.output import result_console, shown_log
from da2s_fast.commands.runs import trained_model
from da2s_fast.errors import UserError
from da2s_fast.train import export_onnx, export_torch, save_model

FORMATS = (".pt", ".pt2", ".onnx")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare model and file."""
    parser.add_argument("run", metavar="RUN", help="run folder of a training, or a model file.")
    parser.add_argument("file", metavar="FILE", help="file to write: .pt, .pt2 or .onnx.")


def run(arguments: Namespace) -> None:
    """Write the file and say where it is."""
    path = Path(arguments.file)
    if path.suffix not in FORMATS:
        raise UserError(f"the format of {path} is not known; choose from {', '.join(FORMATS)}")
    with shown_log():
        model = trained_model(Path(arguments.run), device="cpu")
        if path.suffix == ".pt":
            save_model(path, *model)
        elif path.suffix == ".pt2":
            export_torch(model, path)
        else:
            export_onnx(model, path)
    result_console().print(str(path), soft_wrap=True)
