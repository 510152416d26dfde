import hashlib
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from da2s_fast.data import load_data
from da2s_fast.errors import UserError


@pytest.fixture
def official(tmp_path, cifar_train, monkeypatch):
    """A few real images in the official batch format, with their sums made known."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    rows = cifar_train.first_of_each(4)
    pixels = np.stack([cifar_train.pixels(i) for i in rows])
    labels = cifar_train.labels[rows].tolist()
    batch = {"data": pixels.reshape(40, -1), "labels": labels}
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", batch)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch)])
    names = [f"class {k}" for k in range(10)]
    filename, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    return tmp_path, torch.from_numpy(pixels), labels


def test_official_cifar_files(official):
    root, pixels, labels = official
    data = load_data("cifar10", root=root, download=False)
    assert torch.equal(data.train_images, pixels)
    assert data.train_labels.tolist() == labels
    assert data.classes[3] == "class 3"
    assert load_data("cifar10", root=root, limit=20, image_size=16).train_images.shape == (
        20,
        3,
        16,
        16,
    )


def test_official_files_are_found_in_the_cache_behind_da2s_data(official, tmp_path, monkeypatch):
    root, pixels, _ = official
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("DA2S_DATA", str(tmp_path / "other"))
    monkeypatch.setenv("DA2S_CACHE", str(root))
    assert torch.equal(load_data("cifar10", download=False).train_images, pixels)


def test_damaged_official_files_are_not_unpickled(official):
    root, _, _ = official
    batch = root / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"could not be fetched \(Dataset not found or corrupted"):
        load_data("cifar10", root=root, download=False)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_data_set_says_what_to_do(tmp_path, name):
    with pytest.raises(UserError, match=r"unpack https://.*\.tar\.gz there, or name its folder"):
        load_data(name, root=tmp_path, download=False)


def test_failing_download_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match=r"no route to host.*check the connection"):
        load_data("cifar10", root=tmp_path)


def test_da2s_data_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DA2S_DATA", str(tmp_path / "typo"))
    with pytest.raises(UserError, match=r"DA2S_DATA is .*typo, which is no folder"):
        load_data("cifar10")
