"""Random augmentation of whole batches on their device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from da2s_fast.data.image_data import Kind
from da2s_fast.errors import UserError


class Draws(NamedTuple):
    """The random numbers for one batch, each int64 (B,)."""

    top: Tensor
    left: Tensor
    flip: Tensor
    cutout_y: Tensor
    cutout_x: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip and cutout, as in the DARTS recipe.

    Attributes:
        crop_padding: black pixels added on every side before a crop of the original size is
            taken at a uniformly drawn place; 0 for no crop.
        flip: mirror each image left to right with probability 1/2.
        cutout: side of a square set to zero after normalization (the mean colour); its centre is
            a uniformly drawn pixel, and what falls outside the image is cut off, so an odd side
            counts as the even one below. 0 for none.
            Source: T. DeVries, G. Taylor, Improved Regularization of CNNs with Cutout, 2017.

    Raises:
        UserError: a negative padding, or a negative cutout or one of 1, which would cut nothing.
    """

    crop_padding: int
    flip: bool
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise UserError(f"crop_padding={self.crop_padding} is negative; give 0 for no crop")
        if self.cutout < 0 or self.cutout == 1:
            raise UserError(f"cutout={self.cutout} cuts nothing; give 0 for none, or 2 or more")

    @classmethod
    def for_size(cls, image_size: int, kind: Kind, cutout: int = 0) -> Augmentation:
        """The usual choice: padding image_size // 8, flips for natural images only."""
        return cls(image_size // 8, kind == "natural", cutout)

    def draw(self, batch_size: int, image_size: int, generator: torch.Generator) -> Tensor:
        """Draw for one batch: int64 (5, B) on the generator's device, the rows of `Draws`.

        All five rows are drawn whatever is switched on, in one tensor that crosses to a GPU in
        one copy.
        """
        below = (2 * self.crop_padding + 1,) * 2 + (2,) + (image_size,) * 2
        return torch.stack(
            [
                torch.randint(limit, (batch_size,), generator=generator, device=generator.device)
                for limit in below
            ]
        )

    def move(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip.

        Args:
            images: (N, C, H, W) with H = W, not normalized (0 is black).
            draws: int64 (5, N) on the same device, from `draw`.

        Returns:
            (N, C, H, W), the same type.
        """
        top, left, flip, _, _ = Draws(*draws)
        if self.crop_padding > 0:
            size = images.shape[-1]
            padded = functional.pad(images, (self.crop_padding,) * 4)
            # A view of every possible crop, (N, C, 2P+1, 2P+1, H, W); one gather picks from it.
            crops = padded.unfold(2, size, 1).unfold(3, size, 1)
            images = crops[torch.arange(len(images), device=images.device), :, top, left]
        if self.flip:
            images = torch.where(flip.view(-1, 1, 1, 1) == 1, images.flip(-1), images)
        return images

    def cut(self, images: Tensor, draws: Tensor) -> Tensor:
        """Cutout.

        Args:
            images: normalized (N, C, H, W).
            draws: int64 (5, N) on the same device, from `draw`.

        Returns:
            (N, C, H, W) with zeros in one square of each image.
        """
        if self.cutout == 0:
            return images
        _, _, _, center_y, center_x = Draws(*draws)
        rows = self._inside(center_y, images.shape[-2])
        columns = self._inside(center_x, images.shape[-1])
        hole = rows[:, None, :, None] & columns[:, None, None, :]
        return images.masked_fill(hole, 0)

    def _inside(self, center: Tensor, size: int) -> Tensor:
        """Which of ``size`` positions the square covers: bool (N, size)."""
        offset = torch.arange(size, device=center.device) - center[:, None]
        half = self.cutout // 2
        return (offset >= -half) & (offset < half)
