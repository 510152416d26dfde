"""What both passes over a cell are given, and what decides about their launches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops._triton import precision_of
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.layout import Layout, layout_of
from da2s_fast.ops.cell.triton.tables import Tables, tables_of
from da2s_fast.ops.cell.triton.tiling import block_of


class Settings(NamedTuple):
    """What decides about launches besides the tensors' types, shapes and strides.

    Attributes:
        key: of `layout_of`.
        frozen: norms whose statistics are given.
        eps: of the norms.
        tf32: float32 may be rounded to TF32 in products; both passes do the same.
    """

    key: tuple[tuple[int, ...], int, tuple[tuple[int, ...], ...], bool]
    frozen: tuple[int, ...]
    eps: float
    tf32: bool


def settings_of(  # noqa: PLR0917 - the schema's arguments
    inputs: Sequence[Tensor],
    plan: Sequence[int],
    frozen: Sequence[int],
    eps: float,
    save: bool,
    tf32: bool,
) -> Settings:
    """From the arguments of either operator."""
    sizes = tuple([tuple(x.shape[1:]) for x in inputs])
    return Settings((tuple(plan), inputs[-1].shape[0], sizes, save), tuple(frozen), eps, tf32)


@dataclass
class Call:
    """What both passes work on; slots stand for the tensors.

    Attributes:
        layout: where everything is.
        tables: what programs do.
        inputs: as given.
        p: (edges, operations).
        g: (edges,) or None.
        weights: flat, in the arithmetic's type.
        states: flat.
        z: flat.
        moments: flat, float64, of layers and pools; None where all statistics are known.
        input_moments: likewise, of the preprocessing; None in the backward pass.
        statistics: flat.
        made: counters of csrc/cuda's forward kernel; None where nobody counts.
        eps: of the norms.
        known: all statistics are known.
        tf32: see `Settings`.
    """

    layout: Layout
    tables: Tables
    inputs: Sequence[Slot]
    p: Slot
    g: Slot | None
    weights: Slot
    states: Slot
    z: Slot
    moments: Slot | None
    input_moments: Slot | None
    statistics: Slot
    made: Slot | None
    eps: float
    known: bool
    tf32: bool

    @cached_property
    def compiled(self) -> bool:
        """Whether csrc/cuda's kernel makes the nodes."""
        making = self.tables.making
        return compiled.nodes_reason(self.layout, making, self.p, self.g, self.z) is None

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Of the inputs."""
        return tuple(x.stride() for x in self.inputs)

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Height and width of the inputs."""
        return tuple(tuple(x.shape[2:]) for x in self.inputs)

    def products(self, channels: int) -> dict[str, Any]:
        """How products over so many channels are taken, by kernel parameter.

        Below 16 channels, and in double precision, tensor shapes would be mostly empty, or are not
        there: sums of products then.
        """
        block = block_of(channels)
        exact = self.states.dtype == torch.float64
        return {
            "DOT": block >= 16 and not exact,
            "PRECISION": precision_of(self.inputs[-1].dtype, self.tf32),
            "BLOCK": min(block, 16) if exact else block,
            "PIXELS": self.layout.tile,
        }

    @property
    def few(self) -> bool:
        """Whether candidates see few channels, in the terms of `kernels.tuning`."""
        few = block_of(self.layout.plan.mixed_channels) < 16
        return few and self.states.dtype == torch.float32

    def area(self, state: int) -> dict[str, int]:
        """A state's size, by kernel parameter."""
        height, width = self.layout.size(state)
        pixels = self.layout.pixels(state)
        return {
            "pixels": pixels,
            "height": height,
            "width": width,
            "tiles_per_chunk": self.layout.tiles_per_chunk(pixels),
        }


def cdiv(a: int, b: int) -> int:
    """Division, rounded up."""
    return -(-a // b)


def by_name(inputs: Sequence[Tensor], p: Tensor, g: Tensor | None) -> dict[Hashable, Tensor]:
    """What both passes are given, by the names of their slots."""
    return {**dict(enumerate(inputs)), "p": p, **({} if g is None else {"g": g})}


def call_of(slots: Mapping[Hashable, Slot], settings: Settings, *, backward: bool) -> Call:
    """What a pass works on, from the slots of its tensors; z has its own if it is not saved."""
    layout, saved = layout_of(*settings.key), slots["saved"]
    moments, of_inputs = slots.get("moments"), None
    if moments is not None and not backward:
        start = layout.input_moments_start
        of_inputs = moments.narrow(0, start, layout.moments_size - start)
        moments = moments.narrow(0, 0, start)
    return Call(
        layout,
        tables_of(*settings.key, settings.frozen, backward, saved.device),
        [slots[place] for place in range(layout.plan.inputs)],
        slots["p"],
        slots.get("g"),
        saved,
        saved.narrow(0, layout.states_start, layout.states_size),
        slots.get("z") or saved.narrow(0, layout.z_start, layout.z_size),
        moments,
        of_inputs,
        slots["statistics"],
        slots.get("made"),
        settings.eps,
        known=backward,
        tf32=settings.tf32,
    )
