"""Bring batches of images to one square size."""

from __future__ import annotations

import torch
from torch import Tensor

from da2s_fast.data.image_data import check_image_size

_BLOCK = 1024


def resize_square(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side to ``size`` (bilinear, antialiased) and cut out the centre.

    Args:
        images: uint8 (N, C, H, W).
        size: wanted height and width.

    Returns:
        uint8 (N, C, size, size); ``images`` itself if it has that size already.

    Raises:
        UserError: ``size`` is too small.
    """
    check_image_size(size)
    if images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.v2 import functional  # noqa: PLC0415 - slow to import

    resized = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    # In blocks: the interpolation needs working memory in proportion to its batch.
    for source, target in zip(
        torch.split(images, _BLOCK), torch.split(resized, _BLOCK), strict=True
    ):
        shrunk = functional.resize(source, [size], antialias=True)
        target.copy_(functional.center_crop(shrunk, [size, size]))
    return resized
