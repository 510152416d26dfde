"""Batches from tensors that live on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from da2s_fast.data.augment import Augmentation
from da2s_fast.errors import UserError


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std, rounded as torchvision's ToTensor and Normalize do.

    Args:
        images: uint8 (N, C, H, W).
        mean: float32 (C,) on the same device, on the scale 0..1.
        std: float32 (C,) likewise.

    Returns:
        float32 (N, C, H, W).
    """
    shape = (-1, 1, 1)
    return images.float().div_(255).sub_(mean.view(shape)).div_(std.view(shape))


def evaluation_batches(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, normalized and not augmented; the last batch may be smaller.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images per batch.
        mean: mean of each channel on the scale 0..1.
        std: standard deviation of each channel.
        device: where the batches are wanted.

    Yields:
        float32 (B, C, H, W) and int64 (B,).

    Raises:
        UserError: the batch size is below 1.
    """
    _check_batch_size(batch_size)
    mean_tensor, std_tensor = _statistics(mean, std, device)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        batch = images[rows].to(device, non_blocking=True)
        yield normalize(batch, mean_tensor, std_tensor), labels[rows].to(device, non_blocking=True)


class EndlessLoader:
    """Random, normalized, augmented training batches without end.

    Images and labels are kept on the device as they are (uint8); a batch costs one gather and no
    worker process. Every epoch goes through a new permutation; images left over that do not fill
    a batch are not seen in that epoch. A data set smaller than the batch size is one batch.

    All random numbers come from one CPU generator, so that a seed gives the same batches on every
    device, and a loader restored by `load_state_dict` goes on with the same bits.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images per batch.
        mean: mean of each channel on the scale 0..1.
        std: standard deviation of each channel.
        augmentation: applied to every batch, or None.
        seed: of the generator.
        device: where images are kept and batches are made.
        reshuffle_every_batch: draw each batch from all images anew, without replacement within
            the batch, as ``next(iter(loader))`` does at each step in the authors' DA2S code.

    Raises:
        UserError: no images, or a batch size below 1.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None,
        seed: int,
        device: torch.device | str,
        reshuffle_every_batch: bool = False,
    ) -> None:
        _check_batch_size(batch_size)
        if len(images) == 0:
            raise UserError("there are no images to make batches of; use a larger part")
        self.batch_size = min(batch_size, len(images))
        self._device = torch.device(device)
        self._images = images.to(self._device)
        self._labels = labels.to(self._device)
        self._mean, self._std = _statistics(mean, std, self._device)
        self._augmentation = augmentation
        self._reshuffle_every_batch = reshuffle_every_batch
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle()

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the data set, at least 1."""
        return len(self._images) // self.batch_size

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The next batch: float32 (B, C, H, W) and int64 (B,), on the device."""
        if self._position + self.batch_size > len(self._images):
            self._shuffle()
        rows = self._order[self._position : self._position + self.batch_size]
        # One batch per permutation when each is to be drawn from all images.
        step = len(self._images) if self._reshuffle_every_batch else self.batch_size
        self._position += step
        images, labels = self._images[rows], self._labels[rows]
        if self._augmentation is None:
            return normalize(images, self._mean, self._std), labels
        draws = self._augmentation.draw(self.batch_size, images.shape[-1], self._generator)
        draws = draws.to(self._device, non_blocking=True)
        moved = self._augmentation.move(images, draws)
        batch = self._augmentation.cut(normalize(moved, self._mean, self._std), draws)
        return batch, labels

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the batches to come, as CPU tensors."""
        return {
            "generator": self._generator.get_state(),
            "permutation": self._order.cpu().clone(),
            "position": torch.tensor(self._position),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the loader that gave ``state`` was.

        Raises:
            UserError: the state is of another kind or of a data set of another size.
        """
        if set(state) != {"generator", "permutation", "position"}:
            raise UserError(
                f"the state holds {sorted(state)}, which is no loader's; use a checkpoint of "
                "this program"
            )
        if len(state["permutation"]) != len(self._images):
            raise UserError(
                f"the checkpoint was made with {len(state['permutation'])} images but the data "
                f"set has {len(self._images)}; use the same data"
            )
        self._generator.set_state(state["generator"])
        self._order = state["permutation"].to(self._device)
        self._position = int(state["position"])

    def _shuffle(self) -> None:
        order = torch.randperm(len(self._images), generator=self._generator)
        self._order = order.to(self._device, non_blocking=True)
        self._position = 0


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} images is impossible; give 1 or more")


def _statistics(
    mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)
