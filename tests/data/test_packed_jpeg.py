import io

import numpy as np
import pytest
import torch
from PIL import Image

from da2s_fast.data import decode, load_data
from da2s_fast.errors import UserError


def pack(files, labels):
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), np.uint8), offsets, np.array(labels, np.uint8)


@pytest.fixture
def arrays(cifar_train, cifar_test):
    """Four training images and one test image of each CIFAR-10 class."""
    rows, test_rows = cifar_train.first_of_each(4), cifar_test.first_of_each(1)
    train = pack([cifar_train.jpeg(i) for i in rows], cifar_train.labels[rows])
    test = pack([cifar_test.jpeg(i) for i in test_rows], cifar_test.labels[test_rows])
    keys = [f"{part}_{key}" for part in ("train", "test") for key in ("bytes", "off", "y")]
    names = np.array([f"class {k}" for k in range(10)])
    return dict(zip(keys, (*train, *test), strict=True)) | {"classes": names}


@pytest.fixture
def save(tmp_path):
    def save(arrays):
        path = tmp_path / "packed.npz"
        np.savez(path, **arrays)
        return path

    return save


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DA2S_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def decoded_counts(monkeypatch):
    """How many images each call of the decoder is asked for."""
    counts = []
    original = decode.decode_all

    def counting(images, indices, *others):
        counts.append(len(indices))
        return original(images, indices, *others)

    monkeypatch.setattr("da2s_fast.data.encoded_source.decode_all", counting)
    return counts


def test_slice_of_cifar_is_decoded_as_pillow_does(data_root, cifar_train):
    data = load_data("cifar10", root=data_root, limit=300)
    assert (data.name, data.num_classes) == ("cifar10", 10)
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.train_images.shape == (300, 3, 32, 32)
    assert data.test_images.shape == (60, 3, 32, 32)
    assert torch.bincount(data.train_labels).tolist() == [30] * 10
    every = {cifar_train.pixels(i).tobytes() for i in np.flatnonzero(cifar_train.labels == 0)}
    planes = data.train_images[data.train_labels == 0]
    assert all(image.numpy().tobytes() in every for image in planes)


def test_environment_names_the_folder(data_root, monkeypatch):
    monkeypatch.setenv("DA2S_DATA", str(data_root))
    assert len(load_data("cifar10", limit=10).train_images) == 10


def test_pixels_labels_and_names(arrays, save, cifar_train, cifar_test):
    data = load_data(save(arrays))
    rows = cifar_train.first_of_each(4)
    expected = np.stack([cifar_train.pixels(i) for i in rows])
    assert np.array_equal(data.train_images.numpy(), expected)
    assert np.array_equal(data.train_labels.numpy(), cifar_train.labels[rows])
    expected = np.stack([cifar_test.pixels(i) for i in cifar_test.first_of_each(1)])
    assert np.array_equal(data.test_images.numpy(), expected)
    assert data.classes == tuple(f"class {k}" for k in range(10))


def test_tiny_imagenet_form(tiny_imagenet_npz, tiny_imagenet):
    data = load_data(tiny_imagenet_npz, limit=200)
    assert data.train_images.shape == (200, 3, 64, 64)
    assert data.test_images.shape == (100, 3, 64, 64)  # one per class at least
    assert data.classes[0] == "goldfish, Carassius auratus"
    with np.load(tiny_imagenet_npz) as file:
        train = np.flatnonzero((file["is_val"] == 0) & (file["y"] == 0))
        test = np.flatnonzero((file["is_val"] == 1) & (file["y"] == 0))
    for images, labels, rows in (
        (data.train_images, data.train_labels, train),
        (data.test_images, data.test_labels, test),
    ):
        own = {tiny_imagenet.pixels(i).tobytes() for i in rows}
        assert all(image.numpy().tobytes() in own for image in images[labels == 0])


def test_grey_files_among_colour_become_rgb_and_alone_stay_grey(arrays, save, cifar_train):
    def grey(index):
        buffer = io.BytesIO()
        pixels = cifar_train.pixels(index).transpose(1, 2, 0)
        Image.fromarray(pixels).convert("L").save(buffer, "JPEG", quality=100)
        return buffer.getvalue()

    def packed(files):
        parts = pack(files, cifar_train.labels[rows])
        return arrays | dict(zip(("train_bytes", "train_off", "train_y"), parts, strict=True))

    rows = cifar_train.first_of_each(2)
    mixed = packed([grey(rows[0]), *(cifar_train.jpeg(i) for i in rows[1:])])
    first = load_data(save(mixed)).train_images[0]
    assert first.shape[0] == 3
    assert torch.equal(first[0], first[2])
    data = load_data(save(packed([grey(i) for i in rows])))
    assert data.channels == 1
    assert torch.equal(data.train_images[0, 0], first[0])


def test_second_load_comes_from_the_cache(arrays, save, fresh_cache, decoded_counts):
    path = save(arrays)
    first = load_data(path)
    assert decoded_counts == [40, 10]
    second = load_data(path)
    part = load_data(path, limit=20)
    assert decoded_counts == [40, 10]
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.test_images, second.test_images)
    second.train_images.zero_()  # a copy: the file stays as it is
    assert torch.equal(load_data(path).train_images, first.train_images)
    kept = {image.numpy().tobytes() for image in first.train_images}
    assert all(image.numpy().tobytes() in kept for image in part.train_images)
    assert len(list(fresh_cache.iterdir())) == 2


def test_changed_file_is_decoded_again_and_replaces_the_old(arrays, save, fresh_cache):
    load_data(save(arrays))
    shorter = arrays | {"train_off": arrays["train_off"][:-1], "train_y": arrays["train_y"][:-1]}
    assert len(load_data(save(shorter)).train_images) == 39
    assert len(list(fresh_cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "emptied", "scribbled"])
def test_damaged_cache_is_decoded_again(arrays, save, fresh_cache, decoded_counts, damage):
    path = save(arrays)
    expected = load_data(path)
    for file in fresh_cache.iterdir():
        content = file.read_bytes()
        new = {"cut": content[:500], "emptied": b"", "scribbled": b"x" * len(content)}[damage]
        file.write_bytes(new)
    assert torch.equal(load_data(path).train_images, expected.train_images)
    assert decoded_counts == [40, 10, 40, 10]


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    arrays, save, tmp_path, monkeypatch, caplog
):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("DA2S_CACHE", str(blocked))
    assert len(load_data(save(arrays)).train_images) == 40
    assert "not kept for the next run" in caplog.text


def test_full_disk_leaves_no_half_file(arrays, save, fresh_cache, monkeypatch, caplog):
    def full(stream, array):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    path = save(arrays)
    assert len(load_data(path).train_images) == 40
    assert "No space left" in caplog.text
    assert list(fresh_cache.iterdir()) == []


def test_limit_decodes_only_what_it_needs(arrays, save, fresh_cache, decoded_counts):
    load_data(save(arrays), limit=20)
    assert decoded_counts == [20, 10]
    assert len(list(fresh_cache.iterdir())) == 1  # the whole test part; half a part is not kept


def test_damaged_image_is_named(arrays, save):
    data, offsets = arrays["train_bytes"], arrays["train_off"].copy()
    offsets[18] = offsets[17] + (offsets[18] - offsets[17]) // 2  # 17 loses its end, 18 its start
    with pytest.raises(UserError, match=r"number 1[78] of train_bytes in .*packed\.npz"):
        load_data(save(arrays | {"train_off": offsets}))
    noise = data.copy()
    noise[offsets[5] : offsets[6]] = 0
    with pytest.raises(UserError, match=r"number 5 of train_bytes.*not an image"):
        load_data(save(arrays | {"train_bytes": noise}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"train_bytes": a["train_bytes"].astype(int)}, "train_bytes is int64"),
        (lambda a: {"train_bytes": a["train_bytes"][None]}, r"train_bytes is uint8 \(1, "),
        (lambda a: {"train_bytes": a["train_bytes"][:-1]}, "train_off must rise"),
        (lambda a: {"train_off": a["train_off"][::-1]}, "train_off must rise"),
        (lambda a: {"train_off": a["train_off"] - 1}, "train_off must rise"),
        (lambda a: {"train_off": a["train_off"] * 1.0}, "train_off is float64"),
        (lambda a: {"train_y": a["train_y"][:-1]}, "for 39 labels"),
        (lambda a: {"train_y": a["train_y"] + 1}, "label 10 in train_y has no name"),
        (lambda a: {"train_y": a["train_y"] * 0}, "class 'class 1' has no training image"),
        (lambda a: {"test_y": a["test_y"][:0], "test_off": a["test_off"][:1]}, "no test images"),
        (lambda a: {"test_y": a["test_y"] * 1.5}, "must be integers"),
    ],
)
def test_wrong_arrays_get_one_sentence(arrays, save, change, message):
    with pytest.raises(UserError, match=message):
        load_data(save(arrays | change(arrays)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_val": np.zeros(39)}, r"y has shape \(40,\) and is_val is float64 \(39,\)"),
        ({"is_val": np.zeros(40)}, "is_val is float64"),
        ({"is_val": np.zeros(40, bool)}, "no test images"),
        ({"is_val": np.ones(40, bool)}, "does not occur in the training labels"),
        ({"y": np.array(3), "is_val": np.array(0)}, r"y has shape \(\)"),
    ],
)
def test_wrong_whole_form_gets_one_sentence(arrays, save, change, message):
    whole = {key: arrays[f"train_{key}"] for key in ("bytes", "off", "y")}
    with pytest.raises(UserError, match=message):
        load_data(save(whole | change))
