"""Everything a training from scratch holds between steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from da2s_fast.data import Augmentation, EndlessLoader, ImageData
from da2s_fast.nn.derived_network import TrainingOutput
from da2s_fast.spaces import Genotype
from da2s_fast.train.settings import RetrainSettings, given
from da2s_fast.train.size import build_model, model_info


class RetrainSession:
    """Model, optimizer, data order and random states of one training.

    Args:
        genotype: the architecture.
        settings: resolved settings.
        data: the images.
    """

    def __init__(self, genotype: Genotype, settings: RetrainSettings, data: ImageData) -> None:
        self.settings, self.data = settings, data
        self.epochs = given(settings.epochs)
        self.device = torch.device(given(settings.device))
        self.info = model_info(genotype, settings, data)
        self.model = build_model(self.info, settings.seed).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.loader = EndlessLoader(
            data.train_images,
            data.train_labels,
            given(settings.batch_size),
            mean=data.mean,
            std=data.std,
            augmentation=Augmentation.for_size(data.image_size, data.kind, given(settings.cutout)),
            seed=settings.seed,
            device=self.device,
        )
        # What drop-path draws from: one state for the CPU, one for the GPU where there is one.
        self._random = {
            name: torch.Generator(name).manual_seed(settings.seed).get_state()
            for name in {"cpu", str(self.device)}
        }

    def begin_epoch(self, epoch: int) -> None:
        """Set learning rate and drop-path probability for an epoch, counted from 1."""
        done = (epoch - 1) / self.epochs
        rate = self.settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.drop_path_prob = self.settings.drop_path * done
        self.model.train()

    @property
    def learning_rate(self) -> float:
        """Of the current epoch."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self) -> tuple[Tensor, Tensor, int]:
        """One update: loss without the auxiliary head's, hits (not synchronized), images."""
        images, labels = self.loader.next_batch()
        if self.device.type == "cpu":
            # Depthwise convolutions on CPUs run several times faster with channels last.
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        output = self.model(images)
        logits = output.logits if isinstance(output, TrainingOutput) else output
        loss = F.cross_entropy(logits, labels)
        total = loss
        if isinstance(output, TrainingOutput):
            auxiliary_loss = F.cross_entropy(output.auxiliary_logits, labels)
            total = loss + (self.settings.auxiliary_weight or 0.0) * auxiliary_loss
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        return loss.detach(), hits, len(labels)

    @contextmanager
    def random_states(self) -> Iterator[None]:
        """Inside, torch's global generators are this training's; afterwards they are as before."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._random["cpu"])
            for device in devices:
                torch.cuda.set_rng_state(self._random[str(device)], device)
            try:
                yield
            finally:
                self._random["cpu"] = torch.get_rng_state()
                for device in devices:
                    self._random[str(device)] = torch.cuda.get_rng_state(device)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on; taken outside of `random_states`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "random": dict(self._random),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, to the same bits."""
        for name in ("model", "optimizer", "loader"):
            getattr(self, name).load_state_dict(state[name])
        self._random = dict(state["random"])
