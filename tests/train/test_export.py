"""Exported models give the scores of the original."""

import json

import onnx
import onnxruntime
import pytest
import torch

from da2s_fast.errors import UserError
from da2s_fast.train import ModelInfo, export_onnx, export_torch

from .conftest import NAS_BENCH_201


def batches(info):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7):
        yield torch.randn(size, *info.input_shape, generator=generator)


@pytest.fixture(scope="module")
def dense():
    """A network in the NAS-Bench-201 layout with odd image sizes."""
    info = ModelInfo(NAS_BENCH_201, 4, 1, False, "cifar", 3, 11, ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    return info.build().eval(), info


@pytest.fixture(params=["trained", "dense"])
def model_and_info(request):
    if request.param == "dense":
        return request.getfixturevalue("dense")
    result = request.getfixturevalue("trained")
    return result.model, result.info


def test_torch_export(model_and_info, tmp_path):
    model, info = model_and_info
    export_torch((model, info), tmp_path / "model.pt2")
    extra = {"da2s_fast.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert ModelInfo.from_json(extra["da2s_fast.json"]) == info
    for x in batches(info):
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x))


def test_onnx(model_and_info, tmp_path):
    model, info = model_and_info
    export_onnx((model, info), tmp_path / "model.onnx")
    exported = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(exported, full_check=True)
    metadata = {entry.key: entry.value for entry in exported.metadata_props}
    assert json.loads(metadata["da2s_fast.json"])["classes"] == list(info.classes)
    runtime = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for x in batches(info):
        (scores,) = runtime.run(["scores"], {"images": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(scores), model(x), rtol=1e-4, atol=1e-4)
    # Weights are inside, not in a second file beside it.
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_exporting_a_model_in_training_mode_leaves_it_so(dense, tmp_path):
    model, info = dense
    model.train()
    export_torch((model, info), tmp_path / "model.pt2")
    assert model.training
    model.eval()


def test_a_run_folder_can_be_exported(trained, tmp_path):
    export_torch(trained.run_dir, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = next(batches(trained.info))
    with torch.no_grad():
        torch.testing.assert_close(program(x), trained.model(x))


def test_wrong_places_are_refused(dense, tmp_path):
    for export in (export_torch, export_onnx):
        with pytest.raises(UserError, match="cannot write"):
            export(dense, tmp_path / "none" / "model")
        with pytest.raises(UserError, match="there is no model"):
            export(tmp_path / "none.pt", tmp_path / "model")
