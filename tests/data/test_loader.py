import io

import pytest
import torch
from torchvision.transforms import v2

from da2s_fast.data import Augmentation, EndlessLoader, evaluation_batches, load_data
from da2s_fast.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def make_loader(data, batch_size=64, seed=0, augmentation=None, images=None, **options):
    images = data.train_images if images is None else images
    return EndlessLoader(
        images,
        data.train_labels[: len(images)],
        batch_size,
        mean=data.mean,
        std=data.std,
        augmentation=augmentation,
        seed=seed,
        device="cpu",
        **options,
    )


def of_the_test(data, batch_size):
    return evaluation_batches(
        data.test_images,
        data.test_labels,
        batch_size,
        mean=data.mean,
        std=data.std,
        device="cpu",
    )


def numbered(data, count):
    """Images that carry their own number in the first two pixels."""
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) % 256
    images[:, 0, 0, 1] = torch.arange(count) // 256
    return images


def numbers(data, batch):
    pixels = (batch * data.std[0] + data.mean[0]) * 255
    return (pixels[:, 0, 0, 0].round() + 256 * pixels[:, 0, 0, 1].round()).long()


def test_normalization_is_that_of_torchvision_to_the_bit(digits):
    x, y = next(of_the_test(digits, 400))
    expected = v2.functional.normalize(
        digits.test_images.float() / 255, list(digits.mean), list(digits.std)
    )
    assert torch.equal(x, expected)
    assert torch.equal(y, digits.test_labels)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_evaluation_keeps_the_order_and_the_last_images(digits):
    batches = list(of_the_test(digits, 100))
    assert [len(x) for x, _ in batches] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([y for _, y in batches]), digits.test_labels)


def test_training_images_come_out_with_mean_zero_and_variance_one(digits):
    loader = make_loader(digits, batch_size=1438)
    x, _ = loader.next_batch()
    assert abs(x.double().mean()) < 1e-5
    assert abs(x.double().var(correction=0) - 1) < 1e-5


def test_every_epoch_visits_each_image_at_most_once_in_a_new_order(digits):
    loader = make_loader(digits, batch_size=100, images=numbered(digits, 1030))
    assert loader.steps_per_epoch == 10
    epochs = []
    for _ in range(3):
        seen = torch.cat([numbers(digits, loader.next_batch()[0]) for _ in range(10)])
        assert len(seen.unique()) == 1000
        assert int(seen.max()) < 1030
        epochs.append(seen)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_labels_stay_with_their_images(digits):
    loader = make_loader(digits, batch_size=50, images=numbered(digits, 500))
    for _ in range(25):
        x, y = loader.next_batch()
        assert torch.equal(y, digits.train_labels[numbers(digits, x)])


def test_fewer_images_than_a_batch_are_one_batch(digits):
    loader = make_loader(digits, batch_size=64, images=numbered(digits, 30))
    assert (loader.steps_per_epoch, loader.batch_size) == (1, 30)
    for _ in range(3):
        x, _ = loader.next_batch()
        assert numbers(digits, x).sort().values.tolist() == list(range(30))


def test_reshuffling_every_batch_draws_from_all_images_without_repeats(digits):
    loader = make_loader(
        digits, batch_size=100, images=numbered(digits, 200), reshuffle_every_batch=True
    )
    assert loader.steps_per_epoch == 2
    batches = [numbers(digits, loader.next_batch()[0]) for _ in range(40)]
    assert all(len(batch.unique()) == 100 for batch in batches)
    # Two consecutive batches of one permutation would share nothing.
    shared = [
        len(set(a.tolist()) & set(b.tolist()))
        for a, b in zip(batches[::2], batches[1::2], strict=True)
    ]
    assert min(shared) > 20
    counts = torch.bincount(torch.cat(batches), minlength=200)
    assert int(counts.min()) > 5


def test_seed_decides_the_batches(digits):
    augmentation = Augmentation(1, True, 4)
    first, same, other = (
        make_loader(digits, seed=seed, augmentation=augmentation).next_batch()[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("reshuffle", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 21, 22, 23, 50])  # 22 batches are one epoch
def test_restored_loader_continues_to_the_same_bits(digits, steps, reshuffle):
    augmentation = Augmentation(1, True, 4)
    loader = make_loader(digits, augmentation=augmentation, reshuffle_every_batch=reshuffle)
    assert loader.steps_per_epoch == 22
    for _ in range(steps):
        loader.next_batch()
    stored = io.BytesIO()
    torch.save(loader.state_dict(), stored)
    expected = [loader.next_batch() for _ in range(30)]
    stored.seek(0)
    restored = make_loader(
        digits, seed=99, augmentation=augmentation, reshuffle_every_batch=reshuffle
    )
    restored.load_state_dict(torch.load(stored, weights_only=True))
    for x, y in expected:
        again_x, again_y = restored.next_batch()
        assert torch.equal(again_x, x)
        assert torch.equal(again_y, y)


def test_a_stored_state_does_not_change_when_the_loader_goes_on(digits):
    loader = make_loader(digits)
    state = loader.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    for _ in range(30):
        loader.next_batch()
    assert all(torch.equal(before[key], value) for key, value in state.items())


def test_state_of_other_data_is_refused(digits):
    state = make_loader(digits, images=digits.train_images[:100]).state_dict()
    with pytest.raises(UserError, match="100 images but the data set has 1438"):
        make_loader(digits).load_state_dict(state)
    with pytest.raises(UserError, match="no loader's"):
        make_loader(digits).load_state_dict({"weights": torch.zeros(1)})


def test_batches_are_the_augmented_normalized_images(digits):
    loader = make_loader(digits, batch_size=32, augmentation=Augmentation(1, True, 4), seed=7)
    x, y = loader.next_batch()
    generator = torch.Generator().manual_seed(7)
    rows = torch.randperm(1438, generator=generator)[:32]
    augmentation = Augmentation(1, True, 4)
    draws = augmentation.draw(32, 8, generator)
    moved = augmentation.move(digits.train_images[rows], draws)
    normal = v2.functional.normalize(moved.float() / 255, list(digits.mean), list(digits.std))
    assert torch.equal(x, augmentation.cut(normal, draws))
    assert torch.equal(y, digits.train_labels[rows])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_gpu_gets_the_same_batches_without_being_waited_for(digits):
    options = {"mean": digits.mean, "std": digits.std, "augmentation": Augmentation(1, True, 4)}
    cpu, gpu = (
        EndlessLoader(digits.train_images, digits.train_labels, 64, seed=5, device=d, **options)
        for d in ("cpu", "cuda")
    )
    for _ in range(30):
        torch.cuda.set_sync_debug_mode("error")
        try:
            x, y = gpu.next_batch()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected_x, expected_y = cpu.next_batch()
        torch.testing.assert_close(x.cpu(), expected_x, rtol=0, atol=1e-6)
        assert torch.equal(y.cpu(), expected_y)


def test_impossible_batches_are_refused(digits):
    with pytest.raises(UserError, match="batch of 0"):
        make_loader(digits, batch_size=0)
    with pytest.raises(UserError, match="no images"):
        make_loader(digits, images=digits.train_images[:0])
    with pytest.raises(UserError, match="batch of -1"):
        next(of_the_test(digits, -1))
