"""Everything a search holds between steps: network, optimizers, data order, random states."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from da2s_fast.data import Augmentation, EndlessLoader, ImageData, split_train
from da2s_fast.ops import DiscretizationLoss, discretization_loss
from da2s_fast.search.architect import (
    Architect,
    Batch,
    classification_loss,
    only_gradients_of,
)
from da2s_fast.search.build import build_super_network
from da2s_fast.search.control import control
from da2s_fast.search.discretize import Discretization, discretize
from da2s_fast.search.flat import clip_gradients
from da2s_fast.search.graph import StepResult
from da2s_fast.search.measure import GapMeter
from da2s_fast.search.settings import AUTHORS_EPOCHS, AUTHORS_WARMUP, ResolvedSettings

ARCH_BETAS = (0.5, 0.999)
"""Adam's moment decays for the architecture parameters (DARTS, sec. 3.1.1)."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class SearchSession:
    """The state of one search and the two kinds of step that change it.

    Args:
        settings: resolved settings.
        data: the images; one half of the training set teaches the weights, the other alpha and
            beta, as in all searches of the DARTS family.

    Raises:
        UserError: sizes of the network that do not fit together.
    """

    def __init__(self, settings: ResolvedSettings, data: ImageData) -> None:
        self.settings = settings
        self.data = data
        self.space = settings.search_space()
        self.device = torch.device(settings.device)
        self.network = build_super_network(settings, data).to(self.device)
        self.architecture = self.network.architecture
        self.architect = Architect(self.network, self._autocast)
        self.weight_optimizer = torch.optim.SGD(
            self.architect.weights,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,  # one call instead of several for each of more than a thousand weights
        )
        groups = [{"params": list(self.architecture.alphas.values()), "name": "alpha"}]
        if self.architecture.betas:
            groups.append({"params": list(self.architecture.betas.values()), "name": "beta"})
        self.arch_optimizer = torch.optim.Adam(
            groups,
            lr=settings.arch_learning_rate,
            betas=ARCH_BETAS,
            weight_decay=settings.arch_weight_decay,
            capturable=self._counts_on_device,
        )
        # With a CUDA graph or without, Adam is to round alike: no advice to choose another form.
        self.arch_optimizer._warned_capturable_if_run_uncaptured = True
        # Only float16 has too narrow a range for gradients.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=settings.precision == "float16"
        )
        self._split_data()

    def _split_data(self) -> None:
        settings, data = self.settings, self.data
        weight_part, arch_part = split_train(data, 0.5, settings.seed)
        augmentation = Augmentation.for_size(data.image_size, data.kind)

        def loader(part: Tensor, seed: int, fresh: bool = False) -> EndlessLoader:
            return EndlessLoader(
                data.train_images[part],
                data.train_labels[part],
                settings.batch_size,
                mean=data.mean,
                std=data.std,
                augmentation=augmentation,
                seed=seed,
                device=self.device,
                reshuffle_every_batch=fresh,
            )

        self.weight_loader = loader(weight_part, 2 * settings.seed)
        # The authors' code asks a fresh iterator for one batch at every step.
        self.arch_loader = loader(arch_part, 2 * settings.seed + 1, settings.compat == "daas")
        order = torch.Generator().manual_seed(settings.seed)
        self._weight_part = weight_part[torch.randperm(len(weight_part), generator=order)]
        self._arch_part = arch_part[torch.randperm(len(arch_part), generator=order)]

    def gap_meter(self, part: str, images: int | None = None) -> GapMeter:
        """Measures the gap on the "search" (architecture) or the "test" images.

        Args:
            part: which images.
            images: at most this many, drawn once by the seed; all by default.
        """
        data = self.data
        if part == "test":
            x, y = data.test_images, data.test_labels
        else:
            chosen = self._arch_part[:images]
            x, y = data.train_images[chosen], data.train_labels[chosen]
        return GapMeter(
            x,
            y,
            data.train_images[self._weight_part],
            data.train_labels[self._weight_part],
            batch_size=max(self.settings.batch_size, 64),
            mean=data.mean,
            std=data.std,
            device=self.device,
        )

    def learning_rate(self, epoch: int) -> float:
        """Cosine from learning_rate in epoch 1 towards learning_rate_min."""
        settings = self.settings
        high, low = settings.learning_rate, settings.learning_rate_min
        return low + (high - low) * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2

    def learns(self, epoch: int) -> tuple[bool, bool]:
        """Whether alpha and beta learn in an epoch (from 1)."""
        warmup = self.settings.warmup
        # DA2S's alpha starts in epoch E itself, PC-DARTS's parameters after it.
        if self.settings.method != "da2s":
            return epoch > warmup, epoch > warmup and bool(self.architecture.betas)
        return epoch >= warmup, bool(self.architecture.betas)

    def begin_epoch(self, epoch: int) -> None:
        """Set learning rates for an epoch (from 1), and which architecture parameters learn."""
        settings = self.settings
        self.epoch = epoch
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        self.alpha_learns, self.beta_learns = self.learns(epoch)
        if settings.compat == "daas":
            rate = settings.arch_learning_rate if self.alpha_learns else 0.0
            self.arch_optimizer.param_groups[0]["lr"] = rate

    def loss_weights(self) -> tuple[float, float]:
        """Weights of the operation and the edge entropy in this epoch (DA2S, eq. 5 and 6)."""
        settings = self.settings
        if settings.method != "da2s":
            return 0.0, 0.0
        epochs, warmup, clamp = settings.epochs, settings.warmup, True
        if settings.compat == "daas":
            epochs, warmup, clamp = AUTHORS_EPOCHS, AUTHORS_WARMUP, False
        common = settings.loss_weight * control(
            settings.loss_control, self.epoch, epochs, clamp=clamp
        )
        operations = control(settings.operation_control, self.epoch, epochs, warmup, clamp=clamp)
        return common * operations, common * settings.edge_loss_weight

    def discretization_loss(self) -> DiscretizationLoss:
        """The discretization loss of alpha and beta with this epoch's weights."""
        operation_weight, edge_weight = self.loss_weights()
        architecture = self.architecture
        return discretization_loss(
            list(architecture.alphas.values()),
            list(architecture.betas.values()),
            edges_per_node=architecture.edges_per_node,
            keep=[architecture.keep[kind] for kind in architecture.kinds],
            operation_weight=operation_weight,
            edge_weight=edge_weight,
        )

    def arch_step(self, train: Batch, valid: Batch) -> Tensor:
        """One update of alpha and beta; returns the loss, 0-dim, not synchronized."""
        self.arch_optimizer.zero_grad()
        if self.settings.second_order:
            loss = self.architect.second_order(
                train, valid, self._regularizer, self.weight_optimizer
            )
        else:
            loss = self.architect.first_order(valid, self._regularizer, self.scaler.scale)
        # The authors' Adam sees alpha's gradients during the warm-up, at learning rate 0.
        if not self.alpha_learns and self.settings.compat != "daas":
            for alpha in self.architecture.alphas.values():
                alpha.grad = None
        self.scaler.step(self.arch_optimizer)
        return loss

    def weight_step(self, train: Batch) -> tuple[Tensor, Tensor]:
        """One update of the weights; returns loss and number of hits, 0-dim, not synchronized."""
        images, labels = train
        weights = self.architect.weights
        self.weight_optimizer.zero_grad()
        with only_gradients_of(weights, self.network.arch_parameters()):
            with self._autocast():
                scores = self.network(images)
            loss = classification_loss(scores, labels)
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.weight_optimizer)
        clip_gradients(weights, self.settings.grad_clip)
        self.scaler.step(self.weight_optimizer)
        return loss.detach(), (scores.detach().argmax(dim=1) == labels).sum()

    def step(self, train: Batch, valid: Batch | None) -> StepResult:
        """An architecture step, if there is a batch for it, and a weight step; not synchronized."""
        arch_loss = torch.zeros((), device=self.device)
        if valid is not None:
            arch_loss = self.arch_step(train, valid)
        loss, hits = self.weight_step(train)
        self.scaler.update()
        return StepResult(arch_loss, loss, hits)

    def discretize(self) -> Discretization:
        """Cut the current super-network."""
        return discretize(self.architecture, self.space)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, without objects that need unpickling."""
        return {
            "network": self.network.state_dict(),
            "architecture": self.architecture.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "weight_loader": self.weight_loader.state_dict(),
            "arch_loader": self.arch_loader.state_dict(),
            # Operations that users register may draw from torch's own generators.
            "random": torch.get_rng_state(),
            "device_random": _device_random(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, to the same bits."""
        groups = state["arch_optimizer"]["param_groups"]
        # The state may come from another kind of device.
        groups = [group | {"capturable": self._counts_on_device} for group in groups]
        state = state | {"arch_optimizer": state["arch_optimizer"] | {"param_groups": groups}}
        for name in ("network", "architecture", "weight_optimizer", "arch_optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.weight_loader.load_state_dict(state["weight_loader"])
        self.arch_loader.load_state_dict(state["arch_loader"])
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"], self.device)

    @property
    def _counts_on_device(self) -> bool:
        """Whether Adam counts its steps on the device, so that CUDA graphs count them too."""
        return self.device.type == "cuda"

    def _regularizer(self) -> Tensor:
        if self.settings.method != "da2s":
            return torch.zeros((), device=self.device)
        return self.discretization_loss().total

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = DTYPES.get(self.settings.precision)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)


def _device_random(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
