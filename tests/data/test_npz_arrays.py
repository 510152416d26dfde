import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from da2s_fast.data import load_data
from da2s_fast.errors import UserError


@pytest.fixture(scope="module")
def usps(usps_npz):
    """40 training and 20 test images of USPS."""
    with np.load(usps_npz) as file:
        chosen = [np.flatnonzero(file["y_train"] == k)[:4] for k in range(10)]
        rows = np.concatenate(chosen)
        return {
            "x_train": file["x_train"][rows],
            "y_train": file["y_train"][rows],
            "x_test": file["x_test"][:20],
            "y_test": file["y_test"][:20],
        }


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        path = tmp_path / "some.npz"
        np.savez_compressed(path, **arrays)
        return path

    return save


def test_all_of_usps(usps_npz):
    data = load_data(str(usps_npz))
    assert (data.name, data.channels, data.image_size, data.num_classes) == ("usps", 1, 16, 10)
    counts = [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
    assert torch.bincount(data.train_labels).tolist() == counts
    with np.load(usps_npz) as file:
        assert np.array_equal(data.train_images[:, 0].numpy(), file["x_train"])
        assert np.array_equal(data.test_labels.numpy(), file["y_test"])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[..., None],
        lambda x: x[:, None],
        lambda x: x.astype(np.int64),
        lambda x: x.astype(">u2"),
        lambda x: x.astype(np.float32),
        lambda x: x / 255,
        lambda x: (x / 255).astype(np.float16),
        np.asfortranarray,
    ],
    ids=["NHWC", "NCHW", "int64", "big-endian", "0..255", "0..1", "float16", "fortran"],
)
def test_layouts_and_types_mean_the_same_images(usps, save, change):
    expected = load_data(save(**usps))
    data = load_data(
        save(**{**usps, "x_train": change(usps["x_train"]), "x_test": change(usps["x_test"])})
    )
    assert torch.equal(data.train_images, expected.train_images)
    assert torch.equal(data.test_images, expected.test_images)
    assert (data.mean, data.std) == (expected.mean, expected.std)


def test_colour_is_told_from_sides_in_both_layouts(usps, save):
    colours = {
        key: np.stack([usps[key], usps[key] // 2, usps[key] // 3], 1)
        for key in ("x_train", "x_test")
    }
    first = load_data(save(**{**usps, **colours}))
    last = load_data(
        save(**{**usps, **{key: x.transpose(0, 2, 3, 1) for key, x in colours.items()}})
    )
    assert first.channels == 3
    assert torch.equal(first.train_images, torch.from_numpy(colours["x_train"]))
    assert torch.equal(first.train_images, last.train_images)


def test_many_channels(usps, save):
    hyper = {key: np.stack([usps[key]] * 30, 1) for key in ("x_train", "x_test")}
    assert load_data(save(**{**usps, **hyper})).channels == 30


def test_masks_are_black_and_white(usps, save):
    masks = {key: usps[key] > 100 for key in ("x_train", "x_test")}
    data = load_data(save(**{**usps, **masks}))
    assert torch.equal(data.train_images[:, 0], torch.from_numpy(masks["x_train"]) * 255)


def test_any_integers_can_be_labels(usps, save):
    strange = {key: usps[key].astype(np.int32) * 7 - 20 for key in ("y_train", "y_test")}
    data = load_data(
        save(**{**usps, "y_train": strange["y_train"][:, None], "y_test": strange["y_test"]})
    )
    assert data.classes == tuple(str(7 * k - 20) for k in range(10))
    assert np.array_equal(data.train_labels.numpy(), usps["y_train"])
    assert np.array_equal(data.test_labels.numpy(), usps["y_test"])


def test_wide_images_are_refused_or_resized(usps, save):
    wide = {key: np.concatenate([usps[key], usps[key]], 2) for key in ("x_train", "x_test")}
    path = save(**{**usps, **wide})
    with pytest.raises(UserError, match=r"16x32; they must be square.*give image_size"):
        load_data(path)
    assert load_data(path, image_size=12).train_images.shape == (40, 1, 12, 12)


def test_small_images_are_refused_or_resized(usps, save):
    small = {key: usps[key][:, 4:10, 4:10] for key in ("x_train", "x_test")}
    path = save(**{**usps, **small})
    with pytest.raises(UserError, match="6x6; they must be square and at least 8x8"):
        load_data(path)
    assert load_data(path, image_size=8).image_size == 8


def test_limit(usps_npz):
    data = load_data(usps_npz, limit=100)
    assert len(data.train_labels) == 100
    assert len(data.test_labels) == round(100 * 2007 / 7291)
    again = load_data(usps_npz, limit=100)
    assert torch.equal(data.train_images, again.train_images)


def load_or_message(path, **options):
    """The data, or the message of the UserError; any other error goes through."""
    try:
        return load_data(path, **options)
    except UserError as error:
        return str(error)


def replaced(key, change):
    return lambda arrays: {**arrays, key: change(arrays[key])}


def with_nan(x):
    x = x / 255
    x[3, 2, 1] = np.nan
    return x


def both(change):
    return lambda arrays: {
        **arrays,
        "x_train": change(arrays["x_train"]),
        "x_test": change(arrays["x_test"]),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (both(with_nan), "NaN or infinity"),
        (both(lambda x: np.where(x > 9, np.inf, 0)), "NaN or infinity"),
        (both(lambda x: x / 127.5 - 1), "run from -1 to 1 "),
        (both(lambda x: x / 255 * 16), "to 16 "),
        (both(lambda x: x * 257.0), "no known scale"),
        (both(lambda x: x.astype(np.int64) * 257), "no known scale"),
        (both(lambda x: x.astype(np.int64) - 1), "run from -1"),
        (both(lambda x: x // 255), "run from 0 to 1 "),
        (both(lambda x: x.astype(complex)), "complex128"),
        (both(lambda x: x.astype(str)), "<U"),
        (both(lambda x: x[:, :, 0]), r"x_train has shape \(40, 16\)"),
        (both(lambda x: x[:, None, None]), r"x_train has shape \(40, 1, 1, 16, 16\)"),
        (both(lambda x: np.stack([x] * 16, 3)), "cannot be told from the sides"),
        (both(lambda x: np.stack([x] * 5, 3)[:, :, 2:]), "cannot be told from the sides"),
        (both(lambda x: x[:, :0]), "x_train is empty"),
        (both(lambda x: x * 0), "run from 0 to 0 "),
        (both(lambda x: x * 0 + 7), "nothing to learn"),
        (replaced("x_train", lambda x: x[:0]), "x_train is empty"),
        (replaced("x_test", lambda x: x[:0]), "x_test is empty"),
        (replaced("x_test", lambda x: x[:, 2:]), r"\(16, 16\) but x_test of \(14, 16\)"),
        (replaced("x_test", lambda x: x / 255), "types uint8 and float64"),
        (replaced("y_train", lambda y: y[:-1]), "40 images but y_train has 39 labels"),
        (replaced("y_test", lambda y: np.append(y, 1)), "20 images but y_test has 21 labels"),
        (replaced("y_train", lambda y: y[0]), r"y_train has shape \(\)"),
        (replaced("y_train", lambda y: np.eye(10, dtype=int)[y]), "not one-hot"),
        (replaced("y_train", lambda y: y.astype(float)), "must be integers"),
        (replaced("y_train", lambda y: y.astype(str)), "must be integers"),
        (replaced("y_train", lambda y: y + np.uint64(2**64 - 99)), "64 bits"),
        (replaced("y_test", lambda y: y + 1), "label 10 in y_test does not occur"),
        (lambda a: {**a, "y_train": a["y_train"] * 0, "y_test": a["y_test"] * 0}, r"1 class\(es\)"),
        (replaced("x_train", lambda x: x.astype(object)), "x_train holds Python objects"),
        (replaced("y_train", lambda y: np.array([{}] * 40)), "y_train holds Python objects"),
        (lambda a: {key: a[key] for key in ("x_train", "y_train")}, "must hold x_test, x_train"),
        (lambda a: {}, "holds nothing"),
    ],
)
def test_wrong_arrays_get_one_sentence(usps, save, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(save(**change(usps)))
    assert "\n" not in str(caught.value)
    assert "some.npz" in str(caught.value) or "learn" in message or "class" in message


class Explosive:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_nothing_is_unpickled(usps, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(**{**usps, "y_train": np.array([Explosive()] * 40, dtype=object)})
    with pytest.raises(UserError, match="can run code"):
        load_data(path)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(UserError, match=r"not an \.npz file"):
        load_data(bare)
    assert not (tmp_path / "exploded").exists()


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no data set 'cifar11'; give digits, cifar10, cifar100"):
        load_data("cifar11")
    with pytest.raises(UserError, match="no data set"):
        load_data(tmp_path / "nothing.npz")
    text = tmp_path / "notes.txt"
    text.write_text("not data")
    with pytest.raises(UserError, match=r"not \.npz"):
        load_data(text)
    empty = tmp_path / "empty.npz"
    empty.touch()
    with pytest.raises(UserError, match=r"not an \.npz file or is cut off"):
        load_data(empty)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_right(usps, save, data):
    path = save(**usps)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut off"):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
    loaded = load_or_message(path)
    if isinstance(loaded, str):
        assert "\n" not in loaded
    else:  # a byte that means nothing, such as a time stamp
        assert np.array_equal(loaded.train_images[:, 0].numpy(), usps["x_train"])
        assert np.array_equal(loaded.test_labels.numpy(), usps["y_test"])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.integers(8, 14),
    channels=st.integers(1, 20),
    layout=st.sampled_from(["NHW", "NHWC", "NCHW"]),
    dtype=st.sampled_from(["u1", "<i2", ">i4", "u8", "<f2", ">f4", "f8", "f8 to 1"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_images_of_any_size_and_type_come_out_unchanged(
    save, *, size, channels, layout, dtype, seed
):
    assume(layout == "NHW" or channels != size)  # the one that cannot be told
    channels = 1 if layout == "NHW" else channels
    pixels = np.random.default_rng(seed).integers(0, 256, (5, channels, size, size))
    pixels[0, 0, 0, :2] = 0, 255
    given = pixels / 255 if dtype == "f8 to 1" else pixels.astype(dtype)
    given = {"NHW": given[:, 0], "NHWC": given.transpose(0, 2, 3, 1), "NCHW": given}[layout]
    labels = np.array([0, 1, 0])
    path = save(x_train=given[:3], y_train=labels, x_test=given[3:], y_test=labels[:2])
    data = load_data(path)
    assert np.array_equal(data.train_images.numpy(), pixels[:3])
    assert np.array_equal(data.test_images.numpy(), pixels[3:])


DTYPES = st.one_of(
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.boolean_dtypes(),
    hnp.complex_number_dtypes(),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=11)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_arrays_load_or_get_a_user_error(save, data):
    shape = data.draw(
        st.one_of(SHAPES, st.tuples(st.integers(0, 9), *[st.sampled_from([1, 3, 8, 9])] * 3))
    )
    images = data.draw(hnp.arrays(data.draw(DTYPES), shape))
    other = data.draw(st.one_of(st.just(images), hnp.arrays(images.dtype, SHAPES)))
    labels = st.one_of(st.just(np.arange(shape[0] if shape else 0) % 2), hnp.arrays(DTYPES, SHAPES))
    path = save(x_train=images, y_train=data.draw(labels), x_test=other, y_test=data.draw(labels))
    loaded = load_or_message(path, image_size=data.draw(st.sampled_from([None, 8])))
    if isinstance(loaded, str):
        assert "\n" not in loaded
    else:
        assert len(loaded.train_images) == len(images)
