"""What one row of a table measures: a module with its inputs, and a step of forward and backward.

A subject lives in a process of its own (see `process`), which asks for `prepare` once and for
`measure` in every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import PeakMemory, release_memory
from da2s_fast.search.graph import FIRST_STEPS, Recorder

Wanted = Literal["all", "architecture", "weights"]
"""Whose gradients a step computes."""

CLASSES = 10
_TINY = 2  # images of the warm-up
_LEAST_SECONDS = 0.25  # what one measurement lasts; shorter steps are repeated


@dataclass(frozen=True)
class Prepared:
    """What the first step at full size has shown."""

    seconds: float
    peak_bytes: int | None
    """Above the state after building the model and a tiny step; None where it cannot be told."""
    norms: dict[str, float]
    """Of the output and of all gradients, to see that all rows compute the same."""
    operators: tuple[str, ...]
    """Fused operators that the step called."""


@dataclass
class Subject:
    """A module and how to run it.

    Attributes:
        module: holds the weights.
        arch: what is learned besides: alpha and beta, or p.
        call: from (N, *image) to class scores, or to a tensor of four dimensions.
        image: shape of one input.
        wanted: whose gradients a step computes.
        input_gradient: whether the input's gradient is one of them.
        layout: of the inputs.
        warm_up: a step of the given batch that only warms up; `step` by default.
        autocast: whether a step computes in bfloat16.
        graph: whether what is measured is replayed from a CUDA graph.
    """

    module: nn.Module
    arch: Mapping[str, Tensor]
    call: Callable[[Tensor], Tensor]
    image: tuple[int, int, int]
    wanted: Wanted = "all"
    input_gradient: bool = False
    layout: torch.memory_format = torch.contiguous_format
    warm_up: Callable[[int], object] | None = None
    autocast: bool = False
    graph: bool = False
    _replays: dict[int, Callable[[], None]] = field(default_factory=dict)
    _inputs: dict[int, Tensor] = field(default_factory=dict)
    _cold: bool = False

    def __post_init__(self) -> None:
        for weight in self.module.parameters():
            weight.requires_grad_(self.wanted != "architecture")
        for tensor in self.arch.values():
            tensor.requires_grad_(self.wanted != "weights")

    @cached_property
    def _leaves(self) -> dict[str, Tensor]:
        """What is learned, by name; found once, as loops do that train."""
        leaves = {**dict(self.module.named_parameters()), **self.arch}
        return {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def wide(self) -> Subject:
        """This subject in float64."""
        self.module.double()
        for tensor in self.arch.values():
            tensor.data = tensor.data.double()
        return self

    def inputs(self, batch: int) -> Tensor:
        """The batch of this size, always the same numbers."""
        if batch not in self._inputs:
            generator = torch.Generator().manual_seed(batch)
            x = torch.randn(batch, *self.image, generator=generator)
            dtype = next(self.module.parameters()).dtype
            x = x.to(self.device, dtype, memory_format=self.layout)
            self._inputs[batch] = x.requires_grad_(self.input_gradient)
        return self._inputs[batch]

    def step(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Output of one forward pass, and the wanted gradients by name."""
        x = self.inputs(batch)
        leaves = {**self._leaves, "input": x} if self.input_gradient else self._leaves
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.call(x)
        if output.dim() == 2:
            labels = torch.arange(batch, device=output.device) % CLASSES
            value, cotangent = F.cross_entropy(output, labels), None
        else:
            value, cotangent = output, self._cotangent(output)
        gradients = torch.autograd.grad(
            value, list(leaves.values()), cotangent, materialize_grads=True
        )
        return output.detach(), dict(zip(leaves, gradients, strict=True))

    def evaluate(self, batch: int) -> dict[str, Tensor]:
        """Everything a step computes: output, gradients, buffers after it."""
        output, gradients = self.step(batch)
        buffers = {f"buffer {n}": b.to(output.dtype) for n, b in self.module.named_buffers()}
        return {"output": output, **gradients, **buffers}

    def prepare(self, batch: int) -> Prepared:
        """Run a tiny step, then the first one at full size, and note its memory."""
        warm_up = self.warm_up or self.step
        warm_up(_TINY)
        with FusedOperators() as seen:
            warm_up(_TINY)
        self.inputs(batch)
        memory = PeakMemory(self.device)
        start = self._now()
        output, gradients = self._recorded(batch) if self.graph else self.step(batch)
        seconds = self._now() - start
        peak = memory.above_start()
        squares = [gradient.double().square().sum() for gradient in gradients.values()]
        norms = {
            "output": output.double().norm().item(),
            "gradients": torch.stack(squares).sum().sqrt().item(),
        }
        del output, gradients
        self.release()
        return Prepared(seconds, peak, norms, tuple(sorted(seen.names)))

    def release(self) -> None:
        """Give back memory that allocators keep for the next step."""
        self._replays.clear()
        release_memory(self.device)
        self._cold = True

    def measure(self, batch: int) -> float:
        """Seconds of one step; the median of several if they are short.

        Steps in a row find the memory of the one before; after `release`, one is run for that.
        """
        if self._cold:
            _ = self._recorded(batch) if self.graph else self.step(batch)
            self._cold = False
        first = self._timed(batch)
        if first >= _LEAST_SECONDS:
            return first
        # The first step of a round has found cold caches and sleeping threads.
        count = max(3, min(50, round(_LEAST_SECONDS / first)))
        return median(self._timed(batch) for _ in range(count))

    def _timed(self, batch: int) -> float:
        run = self._replays[batch] if self.graph else partial(self.step, batch)
        if self.device.type == "cuda":
            return _by_events(run, self.device)
        start = self._now()
        run()
        return self._now() - start

    def _recorded(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Record a step, and return what its first replay has found."""
        recorder = Recorder(self.device)
        with recorder.beside():
            for _ in range(FIRST_STEPS):
                self.step(batch)
        self._replays[batch], found = recorder.record(partial(self.step, batch))
        self._replays[batch]()
        return found

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _cotangent(self, output: Tensor) -> Tensor:
        key = -len(output)  # beside the inputs, whose keys are positive
        if key not in self._inputs:
            generator = torch.Generator().manual_seed(7)
            values = torch.randn(output.shape, generator=generator)
            self._inputs[key] = torch.empty_like(output).copy_(values)
        return self._inputs[key]


class FusedOperators(TorchDispatchMode):
    """Notes which of this package's operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "da2s_fast":
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def _by_events(run: Callable[[], object], device: torch.device) -> float:
    """Seconds between two marks in the GPU's stream: without what it takes to notice the end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def initialize(tensors: Mapping[str, Tensor], seed: int = 0) -> None:
    """Fill weights, alpha and beta by their names' order: every engine gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(tensors.items()):
            values = torch.randn(tensor.shape, generator=generator)
            if name.startswith("alpha"):
                values *= 0.3
            elif name.startswith("beta"):
                values = 0.5 + 0.2 * values
            elif tensor.dim() > 1:
                values *= tensor[0].numel() ** -0.5
            else:  # scales of norms, and biases
                values = name.endswith("weight") + 0.1 * values
            tensor.copy_(values)
