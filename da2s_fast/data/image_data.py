"""An image data set as tensors: what every later stage works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from da2s_fast.errors import UserError

MIN_IMAGE_SIZE = 8

Kind = Literal["natural", "symbols"]


@dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test images with their labels and the statistics that normalize them.

    Attributes:
        name: what the data set is called in reports.
        train_images: uint8 (N, C, H, W) with H = W >= 8, values 0..255.
        train_labels: int64 (N,), every class at least once.
        test_images: uint8 (M, C, H, W), M >= 1, the same C, H and W.
        test_labels: int64 (M,).
        classes: the class names; label k means ``classes[k]``. At least two.
        mean: mean of each channel over the training images, on the scale 0..1.
        std: standard deviation of each channel, likewise; 1 for a channel that is constant.

    Raises:
        UserError: the tensors break any of the rules above.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        size = self.image_size
        return f"{self.name} ({len(self.train_images)} images of {size}x{size})"

    @classmethod
    def from_tensors(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        classes: tuple[str, ...],
    ) -> ImageData:
        """Build from (images, labels) pairs and compute mean and std from the training images."""
        _check_images(name, "training", *train)
        mean, std = channel_statistics(train[0])
        return cls(name, *train, *test, classes=classes, mean=mean, std=std)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Channels of each image."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of each image."""
        return self.train_images.shape[2]

    @property
    def kind(self) -> Kind:
        """What the images probably show, which decides on mirroring them.

        One channel is "symbols" (digits, letters, scans), whose mirror image may mean something
        else; all others are "natural".
        """
        return "symbols" if self.channels == 1 else "natural"


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel on the scale 0..1.

    Exact whatever the size: computed from the channel's histogram of the 256 possible values.
    A constant channel gets the standard deviation 1, so that normalizing it gives zeros.

    Args:
        images: uint8 (N, C, H, W).

    Raises:
        UserError: every channel is constant: there is nothing to learn from.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds, constant = [], [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        # In blocks, because bincount widens its input to int64.
        for block in torch.split(images[:, channel], 4096):
            counts += torch.bincount(block.reshape(-1), minlength=256).cpu()
        share = counts / counts.sum()
        mean = (share * values).sum()
        variance = (share * (values - mean) ** 2).sum()
        constant.append(int((counts > 0).sum()) == 1)
        means.append(float(mean))
        stds.append(1.0 if constant[-1] else float(variance.sqrt()))
    if all(constant):
        raise UserError(
            "every pixel of the training images has the same value, so there is nothing to "
            "learn; check how the images were saved"
        )
    return tuple(means), tuple(stds)


def check_image_size(size: int) -> None:
    """Raise UserError unless images of ``size`` x ``size`` pixels can be searched on."""
    if size < MIN_IMAGE_SIZE:
        raise UserError(f"image size {size} is too small; give image_size={MIN_IMAGE_SIZE} or more")


def _check(data: ImageData) -> None:
    _check_images(data.name, "training", data.train_images, data.train_labels)
    _check_images(data.name, "test", data.test_images, data.test_labels)
    if data.train_images.shape[1:] != data.test_images.shape[1:]:
        raise UserError(
            f"{data.name}: training images are {tuple(data.train_images.shape[1:])} but test "
            f"images are {tuple(data.test_images.shape[1:])} (channels, height, width); "
            "both must be the same"
        )
    if len(data.mean) != data.channels or len(data.std) != data.channels:
        raise UserError(
            f"{data.name}: mean and std have {len(data.mean)} and {len(data.std)} values for "
            f"{data.channels} channels; give one per channel"
        )
    if data.num_classes < 2:
        raise UserError(
            f"{data.name} has {data.num_classes} class(es); a classifier needs at least two"
        )
    for part, labels in (("training", data.train_labels), ("test", data.test_labels)):
        if int(labels.min()) < 0 or int(labels.max()) >= data.num_classes:
            raise UserError(
                f"{data.name}: {part} labels run from {int(labels.min())} to {int(labels.max())}, "
                f"outside 0..{data.num_classes - 1} of its {data.num_classes} classes"
            )
    counts = torch.bincount(data.train_labels, minlength=data.num_classes)
    if int(counts.min()) == 0:
        missing = data.classes[int(counts.argmin())]
        raise UserError(
            f"{data.name}: class {missing!r} has no training image; add some or remove the class"
        )


def _check_images(name: str, part: str, images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(
            f"{name}: {part} images are {images.dtype} {tuple(images.shape)}; "
            "they must be uint8 (N, C, H, W)"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{name}: {part} labels are {labels.dtype} {tuple(labels.shape)} for "
            f"{images.shape[0]} images; they must be int64 (N,)"
        )
    if images.shape[0] == 0:
        raise UserError(f"{name} has no {part} images; add some")
    channels, height, width = images.shape[1:]
    if channels == 0:
        raise UserError(f"{name}: {part} images have no channels; one or more are needed")
    if height != width or height < MIN_IMAGE_SIZE:
        raise UserError(
            f"{name}: {part} images are {height}x{width}; they must be square and at least "
            f"{MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}: give image_size to have them resized"
        )
