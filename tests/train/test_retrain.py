"""Training from scratch: learning, the recipe, the run folder, resuming."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from da2s_fast.data import load_data
from da2s_fast.errors import DivergedError, UserError
from da2s_fast.spaces import Genotype
from da2s_fast.train import RetrainSettings, resume_retraining, retrain
from da2s_fast.train.session import RetrainSession

from .conftest import GENOTYPE, NAS_BENCH_201

TINY = {"channels": 4, "cells": 2, "epochs": 3, "batch_size": 64, "limit": 300}


@pytest.fixture(scope="module")
def few_digits():
    return load_data("digits", limit=300)


def session(data, genotype: str = GENOTYPE, **values) -> RetrainSession:
    parsed = Genotype.parse(genotype)
    return RetrainSession(parsed, RetrainSettings(**TINY | values).resolved(parsed, data), data)


def without_seconds(history):
    return [{k: v for k, v in metrics.items() if k != "seconds"} for metrics in history]


def assert_same_weights(first, second):
    for (name, value), (other_name, other) in zip(
        first.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(value, other), name


def test_learns_the_digits(trained):
    # A tenth of the test images would be right by chance.
    assert trained.summary["test_accuracy"] > 0.9
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]


def test_run_folder_holds_everything(trained):
    folder = trained.run_dir
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trained.history
    assert json.loads((folder / "summary.json").read_text()) == trained.summary
    assert Genotype.parse((folder / "genotype.txt").read_text()) == Genotype.parse(GENOTYPE)
    assert "epoch 6/6" in (folder / "log.txt").read_text()
    assert list((folder / "tensorboard").glob("events.*"))
    assert {"checkpoint.pt", "config.yaml", "model.pt"} <= {file.name for file in folder.iterdir()}


def test_learning_rate_is_a_cosine_and_drop_path_grows_linearly(few_digits):
    training = session(few_digits, epochs=4, learning_rate=0.1, drop_path=0.2)
    rates, probabilities = [], []
    for epoch in range(1, 5):
        training.begin_epoch(epoch)
        rates.append(training.learning_rate)
        probabilities.append(training.model.drop_path_prob)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 4)) for e in range(4)])
    assert probabilities == pytest.approx([0, 0.05, 0.1, 0.15])


def test_a_step_is_sgd_on_main_and_weighted_auxiliary_loss(few_digits):
    values = {"drop_path": 0.0, "grad_clip": 1e9, "auxiliary_weight": 0.7}
    training, reference = (session(few_digits, **values) for _ in range(2))
    for one in (training, reference):
        one.begin_epoch(1)
    training.step()
    images, labels = reference.loader.next_batch()
    logits, auxiliary = reference.model(images)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = cross_entropy(logits, labels) + 0.7 * cross_entropy(auxiliary, labels)
    parameters = list(reference.model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    for new, old, gradient in zip(training.model.parameters(), parameters, gradients, strict=True):
        torch.testing.assert_close(new, old - 0.025 * (gradient + 3e-4 * old))


def test_gradients_are_clipped(few_digits):
    training = session(few_digits, grad_clip=1e-3)
    training.begin_epoch(1)
    training.step()
    norm = torch.stack([p.grad.norm() for p in training.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_without_auxiliary_head(few_digits):
    training = session(few_digits, auxiliary_weight=0.0)
    assert not any("auxiliary" in name for name in training.model.state_dict())


def test_nas_bench_201_genotype_trains(few_digits):
    settings = RetrainSettings(**TINY | {"cells": 1})
    result = retrain(NAS_BENCH_201, settings, data=few_digits, progress=False)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.info.genotype == NAS_BENCH_201


def test_color_images_of_another_size_train(cifar10_npz):
    settings = RetrainSettings(data=str(cifar10_npz), **TINY | {"limit": 128, "epochs": 1})
    result = retrain(GENOTYPE, settings, progress=False)
    assert result.info.input_shape == (3, 32, 32)
    assert math.isfinite(result.summary["test_loss"])


def test_large_images_get_the_imagenet_stem(tiny_imagenet_npz):
    # batch_size 2 and one epoch: only that it works at this size is at stake.
    settings = RetrainSettings(
        data=str(tiny_imagenet_npz), **TINY | {"limit": 100, "epochs": 1, "image_size": 128}
    )
    result = retrain(GENOTYPE, settings, progress=False)
    assert result.info.stem == "imagenet"
    assert result.info.input_shape == (3, 128, 128)


def test_same_seed_same_bits_and_global_random_state_untouched(few_digits):
    settings = RetrainSettings(**TINY, seed=3)
    first = retrain(GENOTYPE, settings, data=few_digits, progress=False)
    torch.rand(5)
    before = torch.get_rng_state()
    second = retrain(GENOTYPE, settings, data=few_digits, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert without_seconds(first.history) == without_seconds(second.history)
    assert_same_weights(first.model, second.model)
    other = retrain(GENOTYPE, RetrainSettings(**TINY, seed=4), data=few_digits, progress=False)
    assert without_seconds(other.history) != without_seconds(first.history)


KILLED = """
import os, signal, sys, torch
from da2s_fast.train import RetrainSettings, retrain
from da2s_fast.train.session import RetrainSession

torch.set_num_threads(int(sys.argv[1]))
steps, step = 0, RetrainSession.step

def killed_in_the_second_epoch(self):
    global steps
    steps += 1
    if steps == self.loader.steps_per_epoch + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)

RetrainSession.step = killed_in_the_second_epoch
retrain(sys.argv[3], RetrainSettings(**{settings}), run_dir=sys.argv[2], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_training_resumes_to_the_same_bits(few_digits, tmp_path):
    whole = retrain(GENOTYPE, RetrainSettings(**TINY), data=few_digits, progress=False)
    run_dir = tmp_path / "run"
    script = KILLED.replace("{settings}", repr(TINY))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(
        [sys.executable, "-c", script, str(torch.get_num_threads()), str(run_dir), GENOTYPE],
        env=environment,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (run_dir / "model.pt").exists()
    resumed = resume_retraining(run_dir, progress=False)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    assert_same_weights(resumed.model, whole.model)
    assert (run_dir / "model.pt").exists()


def test_resuming_a_finished_training_changes_nothing(few_digits, tmp_path):
    settings = RetrainSettings(**TINY | {"epochs": 1})
    first = retrain(GENOTYPE, settings, data=few_digits, run_dir=tmp_path / "run", progress=False)
    again = resume_retraining(tmp_path / "run", data=few_digits, progress=False)
    assert again.history == first.history
    assert again.summary == first.summary
    assert_same_weights(again.model, first.model)


def test_nan_stops_the_training_with_the_last_good_checkpoint(few_digits, tmp_path):
    settings = RetrainSettings(**TINY | {"learning_rate": 1e38})
    with pytest.raises(
        DivergedError, match=r"NaN or infinite in epoch 1; .*checkpoint\.pt.*1e\+38"
    ):
        retrain(GENOTYPE, settings, data=few_digits, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.pt").exists()


def test_wrong_inputs_are_refused(few_digits, tmp_path):
    settings = RetrainSettings(**TINY)
    with pytest.raises(UserError, match="'sep_conv_9x9'"):
        retrain(GENOTYPE.replace("sep_conv_3x3", "sep_conv_9x9"), settings, data=few_digits)
    with pytest.raises(UserError, match="no data set 'digts'"):
        retrain(GENOTYPE, RetrainSettings(data="digts"))
    with pytest.raises(UserError, match="holds no run"):
        resume_retraining(tmp_path)
    (tmp_path / "config.yaml").write_text("epochs: 3\nmethod: da2s\n")
    with pytest.raises(UserError, match="settings of a retraining"):
        resume_retraining(tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        retrain(GENOTYPE, settings, data=few_digits, run_dir=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot create the run folder"):
        retrain(GENOTYPE, settings, data=few_digits, run_dir=tmp_path / "file" / "run")


def test_damaged_runs_are_refused(few_digits, tmp_path):
    settings = RetrainSettings(**TINY | {"epochs": 1})
    run_dir = tmp_path / "run"
    retrain(GENOTYPE, settings, data=few_digits, run_dir=run_dir, progress=False)
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace("channels: 4", "channels: 8"))
    with pytest.raises(UserError, match=r"checkpoint\.pt does not fit the settings"):
        resume_retraining(run_dir, data=few_digits)
    (run_dir / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be read"):
        resume_retraining(run_dir, data=few_digits)
    (run_dir / "genotype.txt").unlink()
    with pytest.raises(UserError, match="cannot read the genotype"):
        resume_retraining(run_dir, data=few_digits)
