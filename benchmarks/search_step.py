"""A complete step of `da2s search`, taken apart: what each part of it costs.

The search's own session runs its two steps as the search loop does. Functions are wrapped in
clocks, not modules in hooks: hooks would keep fused operators from running.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.subject import FusedOperators
from da2s_fast.data import ImageData
from da2s_fast.search import architect
from da2s_fast.search import session as sessions
from da2s_fast.search.session import SearchSession
from da2s_fast.search.settings import SearchSettings

PARTS = (
    "data",
    "p and g, forward",
    "stem, forward",
    "cells, forward",
    "pooling and classifier, forward",
    "loss, forward",
    "discretization loss, forward",
    "loss and classifier, backward",
    "cells, backward",
    "stem, backward",
    "gradient clipping",
    "weight optimizer",
    "architecture optimizer",
    "zeroing gradients",
    "everything else",
)
STEPS = ("architecture", "weights")
_CLASSES, _EPOCHS = 10, 50


class SearchStep:
    """A search on images of CIFAR-10's size, in the middle of its epochs.

    Args:
        device: "cpu" or "cuda".
        batch: images per step.
        settings: replaces settings of the search.
    """

    def __init__(self, device: str, batch: int, memory: str | None = None, **settings: Any) -> None:
        generator = torch.Generator().manual_seed(0)

        def part(count: int) -> tuple[Tensor, Tensor]:
            images = torch.randint(256, (count, 3, 32, 32), generator=generator)
            return images.to(torch.uint8), torch.arange(count) % _CLASSES

        names = tuple(map(str, range(_CLASSES)))
        data = ImageData.from_tensors("random", part(8 * batch), part(batch), names)
        given: dict[str, Any] = {"cells": 8, "channels": 16, "epochs": _EPOCHS} | settings
        wanted = SearchSettings(method="da2s", batch_size=batch, device=device, **given)
        self.session = SearchSession(wanted.resolved(data), data)
        self.session.begin_epoch(_EPOCHS // 2)
        self.session.network.train()
        with FusedOperators() as seen:
            self.measure()
        self._operators = tuple(sorted(seen.names))

    def operators(self) -> tuple[str, ...]:
        """Fused operators that both steps call."""
        return self._operators

    def measure(self) -> dict[str, dict[str, float]]:
        """Seconds of every part, for the architecture step and the weight step."""
        session = self.session
        found: dict[str, dict[str, float]] = {}
        clock = _Clock(session.device)
        with ExitStack() as stack:
            for context in _wrapped(session, clock):
                stack.enter_context(context)
            with clock.step() as parts:
                # The search draws the batch of the weight step first, for the second order.
                train = session.weight_loader.next_batch()
                session.arch_step(train, session.arch_loader.next_batch())
            found["architecture"] = dict(parts)
            with clock.step() as parts:
                session.weight_step(train)
                session.scaler.update()
            found["weights"] = dict(parts)
        return found


class _Clock:
    """Adds up the time of named parts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: defaultdict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def step(self) -> Iterator[dict[str, float]]:
        """A whole step: what no part accounts for is everything else."""
        self.parts = defaultdict(float)
        start = self.now()
        yield self.parts
        self.parts["everything else"] = self.now() - start - sum(self.parts.values())

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            start = self.now()
            try:
                return function(*arguments, **keywords)
            finally:
                self.parts[name] += self.now() - start

        return run


class _Backward:
    """Splits a backward pass where gradients cross the border of the cells."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        self.crossed: list[float] = []

    def watch(self, tensor: Tensor) -> None:
        """Note when the gradient of a tensor on the border is complete."""
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self.crossed.append(self.clock.now()))

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            self.crossed.clear()
            start = self.clock.now()
            result = function(*arguments, **keywords)
            end = self.clock.now()
            # Behind the last cell, and in front of the first unless the stem learns nothing.
            last, *rest = self.crossed
            first = rest[-1] if rest else end
            parts = self.clock.parts
            parts["loss and classifier, backward"] += last - start
            parts["cells, backward"] += first - last
            parts["stem, backward"] += end - first
            return result

        return run


def _wrapped(session: SearchSession, clock: _Clock) -> list[Any]:
    """Context managers that put clocks around every part of both steps."""
    network, backward = session.network, _Backward(clock)
    clocks: list[tuple[object, str, str]] = [
        (session.weight_loader, "next_batch", "data"),
        (session.arch_loader, "next_batch", "data"),
        (sessions, "classification_loss", "loss, forward"),
        (architect, "classification_loss", "loss, forward"),
        (session, "discretization_loss", "discretization loss, forward"),
        (sessions, "clip_gradients", "gradient clipping"),
        (session.weight_optimizer, "step", "weight optimizer"),
        (session.arch_optimizer, "step", "architecture optimizer"),
        (session.weight_optimizer, "zero_grad", "zeroing gradients"),
        (session.arch_optimizer, "zero_grad", "zeroing gradients"),
        (network, "mixtures", "p and g, forward"),
        (network.stem, "forward", "stem, forward"),
        (network.classifier, "forward", "pooling and classifier, forward"),
        (network.global_pooling, "forward", "pooling and classifier, forward"),
    ]
    contexts = [patch.object(o, n, clock.timed(part, getattr(o, n))) for o, n, part in clocks]
    contexts += [
        patch.object(torch.autograd, "grad", backward.timed(torch.autograd.grad)),
        patch.object(Tensor, "backward", backward.timed(Tensor.backward)),
    ]
    cells = list(network.cells)
    kind = type(cells[0])
    forward = kind.forward

    def cell_forward(cell: nn.Module, *inputs: Any, **keywords: Any) -> Tensor:
        if cell is cells[0]:
            backward.watch(inputs[0])
        start = clock.now()
        output = forward(cell, *inputs, **keywords)
        clock.parts["cells, forward"] += clock.now() - start
        if cell is cells[-1]:
            backward.watch(output)
        return output

    return [*contexts, patch.object(kind, "forward", cell_forward)]
