"""How long a search will take and how much memory it needs, measured on one step before it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from da2s_fast.data import evaluation_batches
from da2s_fast.search.architect import Architect, only_gradients_of
from da2s_fast.search.session import SearchSession


@dataclass(frozen=True)
class Forecast:
    """What to expect of a search."""

    seconds: float
    """Of the whole search, its measurements included."""
    activation_bytes: int
    """Bytes of the tensors kept for the backward pass of one step: the peak above parameters and
    data."""

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        length = f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
        if hours:
            length = f"{hours} h {minutes:02d} min"
        return f"about {length} and {self.activation_bytes / 1e6:,.0f} MB for activations"


def forecast(session: SearchSession) -> Forecast:
    """Run forward and backward on a copy of the network and extrapolate; changes nothing."""
    settings, data = session.settings, session.data
    on_gpu = session.device.type == "cuda"
    network = copy.deepcopy(session.network)
    images, labels = next(
        evaluation_batches(
            data.train_images[: settings.batch_size],
            data.train_labels[: settings.batch_size],
            settings.batch_size,
            mean=data.mean,
            std=data.std,
            device=session.device,
        )
    )
    architect = Architect(network, session.architect.autocast)
    weights, arch = network.weights(), network.arch_parameters()
    there_anyway = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*weights, *arch, *network.buffers(), images, labels)
    }
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there_anyway:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(wanted: Sequence[Tensor], others: Sequence[Tensor]) -> float:
        start = time.perf_counter()
        with only_gradients_of(wanted, others):
            loss = architect.loss((images, labels))
            torch.autograd.grad(loss, wanted, allow_unused=True)
        return elapsed(start)

    def evaluate() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            network(images)
        return elapsed(start)

    def elapsed(start: float) -> float:
        if on_gpu:
            torch.cuda.synchronize(session.device)
        return time.perf_counter() - start

    with torch.random.fork_rng(devices=[session.device] if on_gpu else []):
        # The first step pays for allocations and is not counted; it is where memory is noted.
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            step(weights, arch)
        per_step = step(weights, arch)
        orders = 4 if settings.second_order else 1
        per_arch_step = orders * step(arch, weights)
        per_evaluation = evaluate()
    steps = session.weight_loader.steps_per_epoch
    arch_epochs = sum(any(session.learns(epoch)) for epoch in range(1, settings.epochs + 1))
    measured = min(settings.measure_images, len(data.train_images) // 2)
    # Super-network as it is and with re-estimated norms; the cut network costs next to nothing.
    batches = 2.5 * measured / settings.batch_size
    seconds = steps * (settings.epochs * per_step + arch_epochs * per_arch_step)
    seconds += settings.epochs * batches * per_evaluation
    return Forecast(seconds, sum(saved.values()))
