"""Cases and rows: what is computed, and by whom.

Both are plain data, so that they can be sent to the process that measures a row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from benchmarks.subject import Subject, Wanted

Engine = Literal["eager", "ours"]


@dataclass(frozen=True)
class Row:
    """One row of a table: who computes, and how much of it."""

    name: str
    engine: Engine
    memory: str | None = None
    channels_last: bool = False
    wanted: Wanted = "all"
    autocast: bool = False
    """In bfloat16, as people train on GPUs."""
    graph: bool = False
    """Replayed from a CUDA graph."""

    @property
    def layout(self) -> torch.memory_format:
        """Of the inputs, and of eager PyTorch's weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Case(Protocol, Hashable):
    """What is computed."""

    def subject(self, row: Row, device: str = "cpu") -> Subject:
        """Build what a row measures; all rows have the same weights."""

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """The cells of a network, or whatever of it is compared in float32 on its own."""

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        """Run one of them, of either engine."""

    def least_bytes(self, wanted: Wanted) -> int:
        """What one step must move per image, see `traffic`."""


def set_memory(module: nn.Module, memory: str | None) -> nn.Module:
    """Choose between speed and memory, in every module that offers the choice."""
    if memory is not None:
        for part in module.modules():
            if hasattr(part, "memory"):
                part.memory = memory  # type: ignore[assignment]
    return module


def offers_memory(case: Case) -> bool:
    """Whether the library has a choice between saving and recomputing here."""
    module = case.subject(Row("", "ours")).module
    return any(hasattr(part, "memory") for part in module.modules())


EAGER = Row("eager", "eager")
EAGER_CHANNELS_LAST = Row("eager, channels_last", "eager", channels_last=True)


def our_rows(case: Case) -> list[Row]:
    """One row of ours per way of keeping memory, where there is a choice."""
    if offers_memory(case):
        return [Row(f"ours, {memory}", "ours", memory) for memory in ("save", "recompute")]
    return [Row("ours", "ours", channels_last=True)]  # as `da2s retrain` runs networks on CPUs


def all_rows(case: Case) -> list[Row]:
    """Eager in both layouts, then ours."""
    return [EAGER, EAGER_CHANNELS_LAST, *our_rows(case)]


def gpu_rows(rows: Sequence[Row]) -> list[Row]:
    """What else one would do on a GPU: eager under autocast, and everything in CUDA graphs."""
    cast = replace(EAGER_CHANNELS_LAST, name=f"{EAGER_CHANNELS_LAST.name}, bfloat16", autocast=True)
    return [
        cast,
        *(replace(row, name=f"{row.name}, CUDA graph", graph=True) for row in [*rows, cast]),
    ]


def half_steps(rows: Sequence[Row]) -> list[Row]:
    """Architecture step and weight step alone, of each of these rows."""
    halves: tuple[Wanted, Wanted] = ("architecture", "weights")
    names = {"architecture": "architecture step", "weights": "weight step"}
    return [
        replace(row, name=f"{row.name}, {names[half]}", wanted=half)
        for row in rows
        for half in halves
    ]
