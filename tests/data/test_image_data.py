import numpy as np
import pytest
import torch

from da2s_fast.data import ImageData, load_data
from da2s_fast.data.image_data import channel_statistics
from da2s_fast.data.resize import resize_square
from da2s_fast.errors import UserError


def images(count=4, channels=3, height=8, width=8):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def build(train=None, test=None, labels=(0, 1, 0, 1), classes=("a", "b"), **given):
    train = images() if train is None else train
    test = images(2) if test is None else test
    parts = (train, torch.tensor(labels)), (test, torch.tensor([0, 1]))
    data = ImageData.from_tensors("made", *parts, classes)
    return data if not given else ImageData(**{**vars(data), **given})


def test_statistics_are_those_of_numpy():
    pixels = images(5000, 2)
    mean, std = channel_statistics(pixels)
    scaled = pixels.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_constant_channel_is_normalized_to_zero():
    pixels = images()
    pixels[:, 1] = 51
    mean, std = channel_statistics(pixels)
    assert (mean[1], std[1]) == (pytest.approx(0.2, abs=1e-15), 1.0)


def test_digits():
    data = load_data("digits")
    assert (data.name, data.channels, data.image_size, data.num_classes) == ("digits", 1, 8, 10)
    assert (len(data.train_images), len(data.test_images)) == (1438, 359)
    assert data.kind == "symbols"
    assert sorted(data.train_images.unique().tolist()) == [round(i * 255 / 16) for i in range(17)]
    assert torch.equal(data.test_images, load_data("digits").test_images)
    # All 1,797 images differ, so none can be in both parts.
    both = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 1797


def test_resized_digits_keep_their_brightness():
    small, large = load_data("digits"), load_data("digits", image_size=24)
    assert large.train_images.shape == (1438, 1, 24, 24)
    assert torch.equal(small.train_labels, large.train_labels)
    difference = small.train_images.double().mean((1, 2, 3)) - large.train_images.double().mean(
        (1, 2, 3)
    )
    assert difference.abs().max() < 4


def test_resizing_in_blocks_equals_resizing_at_once():
    pixels = images(1100, 1, 12, 12)
    resized = resize_square(pixels, 8)
    assert torch.equal(resized[1020:1030], resize_square(pixels[1020:1030], 8))


def test_resizing_averages_the_area_and_takes_the_centre():
    stripes = torch.zeros(1, 1, 16, 48, dtype=torch.uint8)
    stripes[..., ::2] = 200  # one-pixel stripes: without antialiasing they stay 0 or 200
    stripes[..., :16] = 255  # cut away on both sides
    stripes[..., 32:] = 255
    resized = resize_square(stripes, 8)
    assert resized.shape == (1, 1, 8, 8)
    assert resized[..., 1:-1].double().sub(100).abs().max() < 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": images(4, 3, 8, 9)}, "8x9; they must be square"),
        ({"train": images(4, 3, 7, 7)}, "7x7; they must be square and at least 8x8"),
        ({"train": images().float()}, "torch.float32"),
        ({"train": images()[0]}, r"\(3, 8, 8\)"),
        ({"train": images(3)}, r"labels are torch.int64 \(4,\) for 3 images"),
        ({"train": images(4, 0)}, "no channels"),
        ({"train": images(0), "labels": []}, "labels are torch.float32"),
        ({"test": images(2, 1)}, r"test images are \(1, 8, 8\)"),
        ({"test": images(2, 3, 16, 16)}, r"test images are \(3, 16, 16\)"),
        ({"classes": ("a",), "labels": (0, 0, 0, 0)}, "at least two"),
        ({"classes": ()}, "at least two"),
        ({"labels": (0, 1, 0, 2)}, r"0 to 2, outside 0\.\.1"),
        ({"labels": (0, -1, 0, 1)}, "-1 to 1"),
        ({"classes": ("a", "b", "c")}, "class 'c' has no training image"),
        ({"train": torch.full((4, 3, 8, 8), 7, dtype=torch.uint8)}, "nothing to learn"),
        ({"mean": (0.5,)}, "mean and std have 1 and 3 values for 3 channels"),
    ],
)
def test_unsuitable_tensors_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build(**change)


def test_no_test_images_are_refused():
    with pytest.raises(UserError, match="no test images"):
        ImageData.from_tensors(
            "made",
            (images(), torch.tensor([0, 1, 0, 1])),
            (images(0), torch.zeros(0, dtype=torch.int64)),
            ("a", "b"),
        )


@pytest.mark.parametrize("size", [7, 0, -3])
def test_small_image_size_is_refused(size):
    with pytest.raises(UserError, match=f"image size {size} is too small"):
        load_data("digits", image_size=size)
