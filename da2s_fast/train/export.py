"""Models for other programs: torch.export and ONNX.

Both take normalized images, float32 (N, C, H, W) with any N, and give class scores. The model's
information (classes, mean and std of the normalization, genotype) travels along as JSON.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from torch import Tensor

from da2s_fast.search.checkpoint import write_atomically
from da2s_fast.train.evaluate import ModelSource, open_model
from da2s_fast.train.model_file import DerivedModel, ModelInfo

INFO_KEY = "da2s_fast.json"
"""Name under which the information is stored: an extra file in .pt2, a metadata entry in ONNX."""


def export_torch(source: ModelSource, path: str | Path) -> None:
    """Write a .pt2 file for ``torch.export.load``.

    Raises:
        UserError: no model, or the file cannot be written.
    """
    model, info, example = _prepared(source)
    program = torch.export.export(model, (example,), dynamic_shapes=_dynamic_batch())
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={INFO_KEY: info.to_json()})
    write_atomically(Path(path), lambda file: file.write(buffer.getvalue()))


def export_onnx(source: ModelSource, path: str | Path) -> None:
    """Write an ONNX file with the input "images" and the output "scores".

    Raises:
        UserError: no model, or the file cannot be written.
    """
    model, info, example = _prepared(source)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        dynamic_shapes=_dynamic_batch(),
        input_names=["images"],
        output_names=["scores"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[INFO_KEY] = info.to_json()
    serialized = program.model_proto.SerializeToString()
    write_atomically(Path(path), lambda file: file.write(serialized))


def _prepared(source: ModelSource) -> tuple[DerivedModel, ModelInfo, Tensor]:
    """A copy of the model on the CPU in evaluation mode, and an example batch.

    Two images, because torch.export takes a batch of one for a constant.
    """
    model, info = open_model(source, device="cpu")
    return copy.deepcopy(model).cpu().eval(), info, torch.zeros(2, *info.input_shape)


def _dynamic_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)
