import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from da2s_fast.data import Augmentation
from da2s_fast.errors import UserError


def augment_one_by_one(augmentation, images, draws):
    """The same, image by image and pixel rows by slices, in the order of the DARTS transforms."""
    result = []
    for image, (top, left, flip, y, x) in zip(images, draws.T.tolist(), strict=True):
        size, padding = image.shape[-1], augmentation.crop_padding
        padded = torch.zeros(image.shape[0], size + 2 * padding, size + 2 * padding)
        padded[:, padding : padding + size, padding : padding + size] = image
        one = padded[:, top : top + size, left : left + size].clone()
        if augmentation.flip and flip:
            one = one[:, :, torch.arange(size - 1, -1, -1)]
        half = augmentation.cutout // 2
        one[:, max(0, y - half) : min(size, y + half), max(0, x - half) : min(size, x + half)] = 0
        result.append(one)
    return torch.stack(result)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(8, 20),
    channels=st.integers(1, 4),
    padding=st.integers(0, 6),
    flip=st.booleans(),
    cutout=st.integers(0, 24).filter(lambda length: length != 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_equals_image_by_image(*, size, channels, padding, flip, cutout, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (7, channels, size, size), generator=generator).float()
    augmentation = Augmentation(padding, flip, cutout)
    draws = augmentation.draw(7, size, generator)
    augmented = augmentation.cut(augmentation.move(images, draws), draws)
    assert torch.equal(augmented, augment_one_by_one(augmentation, images, draws))


def test_draws_cover_their_ranges_evenly():
    augmentation = Augmentation(crop_padding=2, flip=True, cutout=4)
    draws = augmentation.draw(50_000, 8, torch.Generator().manual_seed(0))
    for row, values in zip(draws, (5, 5, 2, 8, 8), strict=True):
        counts = torch.bincount(row, minlength=values)
        assert len(counts) == values
        # Six standard deviations of a binomial count: fails by chance once in 10^8.
        expected = 50_000 / values
        assert (counts - expected).abs().max() < 6 * (expected * (1 - 1 / values)) ** 0.5


def test_draws_of_one_batch_are_independent_of_each_other():
    draws = Augmentation(4, True, 8).draw(20_000, 32, torch.Generator().manual_seed(0)).double()
    correlation = torch.corrcoef(draws) - torch.eye(5)
    assert correlation.abs().max() < 0.04  # six standard deviations of 1 / sqrt(20,000)


def test_input_is_left_alone():
    images = torch.ones(3, 1, 8, 8)
    augmentation = Augmentation(1, True, 4)
    draws = augmentation.draw(3, 8, torch.Generator().manual_seed(0))
    augmentation.cut(augmentation.move(images, draws), draws)
    assert torch.equal(images, torch.ones(3, 1, 8, 8))


def test_defaults_by_size_and_kind():
    assert Augmentation.for_size(32, "natural") == Augmentation(4, True, 0)
    assert Augmentation.for_size(8, "symbols", cutout=2) == Augmentation(1, False, 2)


@pytest.mark.parametrize(("padding", "cutout"), [(-1, 0), (0, -2), (0, 1)])
def test_impossible_settings_are_refused(padding, cutout):
    with pytest.raises(UserError, match="="):
        Augmentation(padding, True, cutout)
