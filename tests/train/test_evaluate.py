"""Evaluation and prediction of a trained model."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from da2s_fast.data import load_data, normalize
from da2s_fast.errors import UserError
from da2s_fast.train import evaluate, load_model, predict


def scores(trained, images):
    mean, std = torch.tensor(trained.info.mean), torch.tensor(trained.info.std)
    with torch.no_grad():
        return trained.model(normalize(images, mean, std))


@pytest.fixture(scope="module")
def image_files(digits, tmp_path_factory):
    """The first forty test images as PNG files."""
    folder = tmp_path_factory.mktemp("images")
    files = []
    for index, image in enumerate(digits.test_images[:40]):
        files.append(folder / f"{index}.png")
        Image.fromarray(image[0].numpy()).save(files[-1])
    return files


def test_evaluation_of_folder_file_and_pair_agree_with_training(trained, digits):
    expected = (trained.summary["test_loss"], trained.summary["test_accuracy"])
    sources = (
        trained.run_dir,
        trained.run_dir / "model.pt",
        load_model(trained.run_dir / "model.pt"),
    )
    for source in sources:
        for data in (digits, "digits"):
            result = evaluate(source, data)
            assert (result.loss, result.accuracy) == expected
    assert result.images == len(digits.test_images)


def test_evaluation_is_the_plain_formula(trained, digits):
    logits = scores(trained, digits.test_images)
    result = evaluate(trained.run_dir, digits)
    assert result.accuracy == (logits.argmax(1) == digits.test_labels).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits.double(), digits.test_labels)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)


def test_evaluation_leaves_the_mode_of_the_model(trained, digits):
    model, info = load_model(trained.run_dir / "model.pt")
    model.train()
    model.cells[0].eval()
    evaluate((model, info), digits)
    assert model.training
    assert not model.cells[0].training


def test_predictions_on_png_files_are_those_on_the_tensors(trained, digits, image_files):
    probabilities = scores(trained, digits.test_images[:40]).softmax(1)
    predictions = list(predict(trained.run_dir, image_files, topk=3))
    assert [prediction.path for prediction in predictions] == image_files
    for prediction, expected in zip(predictions, probabilities, strict=True):
        best = expected.topk(3)
        assert prediction.probabilities == tuple(best.values.tolist())
        assert prediction.classes == tuple(digits.classes[k] for k in best.indices)


def test_predictions_on_large_color_jpeg_files(trained, digits, tmp_path):
    for index, image in enumerate(digits.test_images[:40]):
        pixels = np.kron(image[0].numpy(), np.ones((10, 10), dtype=np.uint8))
        large = Image.fromarray(pixels)
        large.save(tmp_path / f"{index:02}.png")
        large.convert("RGB").save(tmp_path / f"{index:02}.jpg", quality=95)
    predicted = [
        [prediction.classes[0] for prediction in predict(trained.run_dir, files)]
        for files in (sorted(tmp_path.glob("*.png")), sorted(tmp_path.glob("*.jpg")))
    ]
    labels = [digits.classes[label] for label in digits.test_labels[:40]]
    # Resizing blurs the digits, compression changes them by little more than rounding.
    assert sum(map(str.__eq__, *predicted)) >= 37
    assert sum(map(str.__eq__, predicted[1], labels)) >= 20


def test_default_is_five_classes_or_all(trained, image_files):
    (prediction,) = predict(trained.run_dir, image_files[:1])
    assert len(prediction.classes) == 5
    (prediction,) = predict(trained.run_dir, image_files[:1], topk=10)
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(predict(trained.run_dir, [])) == []


def test_wrong_inputs_to_predict_are_refused(trained, image_files, tmp_path):
    for topk in (0, 11):
        with pytest.raises(UserError, match=f"topk={topk} must lie between 1 and the 10 classes"):
            list(predict(trained.run_dir, image_files, topk=topk))
    with pytest.raises(UserError, match=r"none\.png"):
        list(predict(trained.run_dir, [tmp_path / "none.png"]))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png"):
        list(predict(trained.run_dir, [tmp_path / "text.png"]))
    with pytest.raises(UserError, match=r"holds no model\.pt"):
        list(predict(tmp_path, image_files))


def test_data_that_do_not_fit_are_refused(trained, digits):
    with pytest.raises(UserError, match="1x16x16, but the model was trained on 1x8x8"):
        evaluate(trained.run_dir, load_data("digits", image_size=16))
    renamed = dataclasses.replace(digits, classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match=r"classes a, b, c, d, e, ... \(10\), but the model knows"):
        evaluate(trained.run_dir, renamed)
