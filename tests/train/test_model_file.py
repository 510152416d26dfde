"""Model files: the same logits to the bit, and damaged files."""

import dataclasses

import pytest
import torch

from da2s_fast.data import normalize
from da2s_fast.errors import UserError
from da2s_fast.nn.operations import OPERATIONS, ReLUConvBN, register_operation
from da2s_fast.train import ModelInfo, load_model, save_model

from .conftest import GENOTYPE, NAS_BENCH_201


def images(info, data):
    mean, std = torch.tensor(info.mean), torch.tensor(info.std)
    return normalize(data.test_images[:50], mean, std)


def test_reloaded_model_gives_the_same_bits(trained, digits):
    model, info = load_model(trained.run_dir / "model.pt")
    assert info == trained.info
    assert not model.training
    x = images(info, digits)
    with torch.no_grad():
        assert torch.equal(model(x), trained.model(x))


@pytest.mark.parametrize("genotype", [GENOTYPE, NAS_BENCH_201])
@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_every_layout_survives(genotype, auxiliary, stem, tmp_path):
    info = ModelInfo(
        genotype=genotype,
        channels=4,
        cells=2,
        auxiliary=auxiliary,
        stem=stem,
        in_channels=2,
        image_size=40,
        classes=("a", "b", "ö"),
        mean=(0.1, 0.2),
        std=(1 / 3, 0.4),
    )
    model = info.build()
    save_model(tmp_path / "model.pt", model, info)
    reloaded, known = load_model(tmp_path / "model.pt")
    assert known == info
    x = torch.randn(3, *info.input_shape)
    with torch.no_grad():
        assert torch.equal(reloaded(x), model.eval()(x))


def test_file_is_plain_data_with_keys_as_in_darts(trained):
    content = torch.load(trained.run_dir / "model.pt", weights_only=True)
    assert content["state_dict"].keys() == trained.model.state_dict().keys()
    assert "cells.0.preprocess0.op.1.weight" in content["state_dict"]
    assert GENOTYPE in content["info"]


def test_missing_foreign_and_damaged_files_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="there is no model"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(UserError, match="cannot read the model"):
        load_model(tmp_path)
    file = tmp_path / "model.pt"
    file.write_text("no model")
    with pytest.raises(UserError, match="not a model of this program"):
        load_model(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(UserError, match="not a model of this program"):
        load_model(file)
    content = torch.load(trained.run_dir / "model.pt", weights_only=True)
    torch.save(content | {"format": "da2s_fast model 99"}, file)
    with pytest.raises(UserError, match="its format is 'da2s_fast model 99'"):
        load_model(file)
    weight = content["state_dict"]["classifier.bias"]
    weight[0] += 1
    torch.save(content, file)
    with pytest.raises(UserError, match="checksum"):
        load_model(file)


def test_truncated_and_altered_bytes_are_refused(trained, tmp_path):
    whole = (trained.run_dir / "model.pt").read_bytes()
    file = tmp_path / "model.pt"
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a model of this program"):
            load_model(file)
    place = whole.index(trained.model.state_dict()["classifier.weight"].numpy().tobytes())
    altered = bytearray(whole)
    altered[place] ^= 1
    file.write_bytes(altered)
    with pytest.raises(UserError, match="not a model of this program"):
        load_model(file)


def test_operation_that_is_not_registered_is_named(trained, tmp_path):
    register_operation("train_test_conv", lambda C, stride, affine: ReLUConvBN(C, C, 1, stride, 0))
    try:
        info = dataclasses.replace(
            trained.info, genotype=GENOTYPE.replace("dil_conv_3x3", "train_test_conv")
        )
        save_model(tmp_path / "model.pt", info.build(), info)
        load_model(tmp_path / "model.pt")
    finally:
        del OPERATIONS["train_test_conv"]
    with pytest.raises(UserError, match="unknown operation 'train_test_conv'"):
        load_model(tmp_path / "model.pt")
