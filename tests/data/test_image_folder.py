import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from da2s_fast.data import load_data, read_image
from da2s_fast.errors import UserError


@pytest.fixture(scope="module")
def pictures(cifar_train):
    """Six real images of each of three classes: {class name: [uint8 (32, 32, 3)]}."""
    rows = cifar_train.first_of_each(6)
    return {
        name: [cifar_train.pixels(rows[6 * k + i]).transpose(1, 2, 0) for i in range(6)]
        for k, name in enumerate(("cat", "bird", "auto"))
    }


def write(folder, pictures, count=6, *, mode="RGB", size=None, suffix=".png"):
    for name, images in pictures.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images[:count]):
            image = Image.fromarray(pixels).convert(mode)
            image = image.resize(size) if size else image
            image.save(folder / name / f"{number}{suffix}")
    return folder


def expected(pictures, numbers=range(6)):
    names = sorted(pictures)
    pixels = [pictures[name][i].transpose(2, 0, 1) for name in names for i in numbers]
    labels = [k for k in range(len(names)) for _ in numbers]
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_train_and_test_folders(tmp_path, pictures, test_folder):
    write(tmp_path / "train", pictures)
    write(tmp_path / test_folder, {"bird": pictures["cat"]}, count=2)
    data = load_data(tmp_path)
    images, labels = expected(pictures)
    assert (data.name, data.classes, data.kind) == (
        tmp_path.name,
        ("auto", "bird", "cat"),
        "natural",
    )
    assert torch.equal(data.train_images, images)
    assert torch.equal(data.train_labels, labels)
    assert data.test_labels.tolist() == [1, 1]
    assert torch.equal(data.test_images, expected({"cat": pictures["cat"]}, range(2))[0])


def test_unlabelled_test_folder_gives_way_to_val(tmp_path, pictures):
    write(tmp_path / "train", pictures)
    write(tmp_path / "val", pictures, count=1)
    (tmp_path / "test").mkdir()
    shutil.copy(tmp_path / "val" / "cat" / "0.png", tmp_path / "test")
    assert len(load_data(tmp_path).test_images) == 3


@pytest.mark.parametrize("inner", ["", "train"])
def test_without_a_test_folder_a_fifth_is_held_out(tmp_path, pictures, inner):
    write(tmp_path / inner, pictures)
    data = load_data(tmp_path)
    assert (len(data.train_images), len(data.test_images)) == (14, 4)
    assert torch.bincount(data.test_labels, minlength=3).min() >= 1
    both = torch.cat([data.train_images, data.test_images]).flatten(1).unique(dim=0)
    assert torch.equal(both, expected(pictures)[0].flatten(1).unique(dim=0))
    assert torch.equal(load_data(tmp_path).train_images, data.train_images)


def test_hidden_files_and_other_files_are_passed_over(tmp_path, pictures):
    write(tmp_path, pictures)
    write(tmp_path, {".git": pictures["cat"]})
    write(tmp_path / "cat", {".thumbnails": pictures["cat"]})
    (tmp_path / "cat" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "cat" / "readme.txt").write_text("not an image")
    data = load_data(tmp_path)
    assert (data.num_classes, len(data.train_images) + len(data.test_images)) == (3, 18)


def test_grey_files_are_one_channel(tmp_path, pictures):
    data = load_data(write(tmp_path, pictures, mode="L"))
    assert (data.channels, data.kind) == (1, "symbols")
    luma = np.asarray(Image.fromarray(pictures["auto"][0]).convert("L"))
    images = torch.cat([data.train_images, data.test_images])
    assert any(np.array_equal(image[0].numpy(), luma) for image in images)


def test_one_colour_image_makes_all_rgb(tmp_path, pictures):
    write(tmp_path / "train", pictures, mode="L")
    write(tmp_path / "test", pictures, mode="L")
    assert load_data(tmp_path).channels == 1
    Image.fromarray(pictures["cat"][0]).save(tmp_path / "train" / "cat" / "7.png")
    data = load_data(tmp_path)
    assert (data.channels, data.test_images.shape[1]) == (3, 3)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("P", ".gif"), ("P", ".png"), ("RGBA", ".png"), ("CMYK", ".jpg"), ("1", ".png")],
)
def test_other_modes(tmp_path, pictures, mode, suffix):
    folder = write(tmp_path, pictures, mode=mode, suffix=suffix)
    if suffix == ".gif":  # not among the image suffixes
        with pytest.raises(UserError, match="holds no image files"):
            load_data(folder)
        return
    data = load_data(folder)
    assert data.channels == (1 if mode == "1" else 3)
    with Image.open(folder / "auto" / f"0{suffix}") as image:
        pixels = np.asarray(image.convert("L" if mode == "1" else "RGB")).reshape(32, 32, -1)
    images = torch.cat([data.train_images, data.test_images])
    assert any(np.array_equal(image.numpy(), pixels.transpose(2, 0, 1)) for image in images)


def test_transparent_pixels_show_white(tmp_path, pictures):
    pixels = np.dstack([pictures["cat"][0], np.full((32, 32), 255, np.uint8)])
    pixels[:16, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "half.png")
    image = read_image(tmp_path / "half.png", 3, 32)
    assert (image[:, :16] == 255).all()
    assert np.array_equal(image[:, 16:].numpy(), pictures["cat"][0][16:].transpose(2, 0, 1))


def test_sixteen_bit_grey_keeps_its_scale(tmp_path, pictures):
    luma = np.asarray(Image.fromarray(pictures["cat"][0]).convert("L"))
    Image.fromarray(luma.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png", 1, 32)[0].numpy(), luma)
    assert torch.equal(*read_image(tmp_path / "deep.png", 3, 32)[:2])


def test_thirty_two_bit_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff has 32-bit pixels"):
        read_image(tmp_path / "float.tiff", 1, 32)


def test_photos_are_turned_upright(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: turn by 90 degrees clockwise
    Image.fromarray(pictures["cat"][0]).save(tmp_path / "photo.png", exif=exif)
    upright = np.rot90(pictures["cat"][0], -1).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "photo.png", 3, 32).numpy(), upright)


def test_mixed_sizes_become_the_most_common(tmp_path, pictures):
    write(tmp_path / "train", pictures)
    write(tmp_path / "test", pictures, size=(70, 50))
    Image.fromarray(pictures["cat"][0]).resize((40, 90)).save(tmp_path / "train" / "cat" / "0.png")
    data = load_data(tmp_path)
    assert data.image_size == 32
    assert data.test_images.shape == (18, 3, 32, 32)
    images, _ = expected(pictures)
    assert torch.equal(data.train_images[:12], images[:12])
    assert load_data(tmp_path, image_size=48).train_images.shape == (18, 3, 48, 48)


def test_large_images_are_shrunk_to_64_unless_asked(tmp_path, pictures):
    write(tmp_path, pictures, size=(200, 160), suffix=".jpg")
    assert load_data(tmp_path).image_size == 64
    assert load_data(tmp_path, image_size=100).image_size == 100


def test_shrinking_takes_the_centre(tmp_path):
    pixels = np.zeros((300, 900, 3), np.uint8)
    pixels[:, :300] = 255
    pixels[:, 600:] = 255
    pixels[:, 300:600] = 80
    Image.fromarray(pixels).save(tmp_path / "wide.jpg", quality=100)
    image = read_image(tmp_path / "wide.jpg", 3, 30)
    assert (image[:, :, 1:-1].int() - 80).abs().max() <= 2


def test_small_images_are_refused_or_enlarged(tmp_path, pictures):
    write(tmp_path, pictures, size=(40, 6))
    with pytest.raises(UserError, match="only 6 pixels wide or high; give image_size=8"):
        load_data(tmp_path)
    assert load_data(tmp_path, image_size=8).image_size == 8


def test_limit_takes_some_of_each_class(tmp_path, pictures):
    write(tmp_path, pictures)
    data = load_data(tmp_path, limit=6)
    assert len(data.train_images) == 6
    assert torch.bincount(data.train_labels).min() >= 1


def test_changed_file_is_read_again(tmp_path, pictures):
    write(tmp_path / "train", pictures)
    write(tmp_path / "test", pictures, count=1)
    load_data(tmp_path)
    write(tmp_path / "train", {"auto": [255 - pictures["auto"][0]]})
    changed = load_data(tmp_path).train_images[0]
    assert np.array_equal(changed.numpy(), 255 - pictures["auto"][0].transpose(2, 0, 1))


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_damaged_image_is_named(tmp_path, pictures, damage, suffix):
    write(tmp_path, pictures, suffix=suffix)
    victim = tmp_path / "bird" / f"3{suffix}"
    content = victim.read_bytes()
    victim.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "text": b"no image"}[damage]
    )
    with pytest.raises(UserError, match=rf"bird.3\{suffix} .*; replace or remove it") as caught:
        load_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_bomb_is_refused(tmp_path, pictures, monkeypatch):
    write(tmp_path, pictures)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="decompression bomb"):
        load_data(tmp_path)


def test_wrong_folders_get_one_sentence(tmp_path, pictures):
    with pytest.raises(UserError, match="no class folders"):
        load_data(tmp_path)
    write(tmp_path, {"cat": pictures["cat"]})
    with pytest.raises(UserError, match=r"1 class\(es\)"):
        load_data(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog holds no image files \(\.jpg"):
        load_data(tmp_path)


def test_one_image_per_class_leaves_none_to_test_on(tmp_path, pictures):
    with pytest.raises(UserError, match="none to test on"):
        load_data(write(tmp_path, pictures, count=1))


def test_test_folder_must_fit_the_training_folder(tmp_path, pictures):
    write(tmp_path / "train", pictures)
    write(tmp_path / "test", {"dog": pictures["cat"]})
    with pytest.raises(UserError, match="dog is a class without training images"):
        load_data(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="test holds no image files"):
        load_data(tmp_path)


def test_single_images_that_cannot_be_read(tmp_path, pictures):
    with pytest.raises(UserError, match=r"cannot read the image .*none\.png: No such file"):
        read_image(tmp_path / "none.png", 3, 32)
    with pytest.raises(UserError, match="1 or 3 channels, not 5"):
        read_image(tmp_path / "none.png", 5, 32)
