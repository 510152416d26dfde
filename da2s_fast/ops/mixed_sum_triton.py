"""Drivers of the Triton kernels of mixed_sum, which `kernels/mixed_sum.py` explains."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from da2s_fast.kernels import mixed_sum as kernels
from da2s_fast.kernels import mixed_sum_backward as backward_kernels
from da2s_fast.kernels.launch import launch
from da2s_fast.ops._layout import is_channels_last
from da2s_fast.ops._triton import launched_as, tuned
from da2s_fast.ops.mixed_sum import BATCH, NONE, RUNNING, empty_in_layout_of


class _Tuning(NamedTuple):
    """How work is cut.

    Attributes:
        largest: bytes of a tile at most: several loads under way per thread.
        smallest: bytes of a tile at least: one load of 128 bits per thread.
        programs: more than a GPU runs at a time; for so many, tiles are made smaller and sums over
            channels shared.
        parts: of a channel at most that programs share.
    """

    largest: int
    smallest: int
    programs: int
    parts: int


# Not yet measured on a GPU: chosen by registers and bytes.
_TUNING = {80: _Tuning(largest=8192, smallest=2048, programs=1024, parts=256)}
# A block of channels is at most that wide where channels lie across: 256 bytes and more.
_WIDEST = 128
# Partial sums that a program adds at a time: parts by channels.
_PARTS, _CHANNELS = 64, 16


def _launched(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """How a kernel is launched that has such a tile."""
    return launched_as("mixed_sum", device, arguments["ROWS"] * arguments["COLUMNS"])


class _Geometry(NamedTuple):
    """The view of all tensors of a call as rows of columns: `kernels/mixed_sum.py`."""

    across: bool
    images: int
    channels: int
    columns: int

    @classmethod
    def of(cls, first: Tensor, normalizes: bool) -> "_Geometry":
        if not normalizes:
            return cls(False, 1, 1, first.numel())
        images, channels = first.shape[:2]
        pixels = first.numel() // (images * channels)
        if pixels == 1 or is_channels_last(first):
            return cls(True, images * pixels, channels, channels)
        return cls(False, images, channels, pixels)

    @property
    def rows(self) -> int:
        """Rows of all channels."""
        return self.images if self.across else self.images * self.channels

    @property
    def values(self) -> int:
        """Values of a channel."""
        return self.images if self.across else self.images * self.columns

    def tile(self, tuning: _Tuning, itemsize: int, rows: int) -> tuple[int, int]:
        """Return rows and columns, powers of two, of tiles of tensors of which `rows` are used."""
        size = self.rows * self.columns * itemsize // tuning.programs
        size = max(tuning.smallest, min(triton.next_power_of_2(size), tuning.largest))
        numbers = size // itemsize
        widest = min(numbers, _WIDEST) if self.across else numbers
        columns = min(triton.next_power_of_2(self.columns), widest)
        return min(triton.next_power_of_2(rows), numbers // columns), columns


class _Reduction(NamedTuple):
    """How a sum over channels is shared: arguments of the kernels, and their grid."""

    grid: tuple[int]
    parts: int
    arguments: dict[str, Any]

    @classmethod
    def of(cls, geometry: _Geometry, tuning: _Tuning, itemsize: int) -> "_Reduction":
        rows, columns = geometry.tile(tuning, itemsize, geometry.images)
        tiles = triton.cdiv(geometry.images, rows)
        blocks = geometry.channels
        if geometry.across:
            blocks = triton.cdiv(geometry.channels, columns)
        else:
            tiles *= triton.cdiv(geometry.columns, columns)
        parts = min(tiles, triton.cdiv(tuning.programs, blocks), tuning.parts)
        arguments = {
            "rows": geometry.images,
            "columns": geometry.columns,
            "row_stride": geometry.columns * (1 if geometry.across else geometry.channels),
            "channels": geometry.channels,
            "tiles": tiles,
            "PARTS": parts,
            "ACROSS": geometry.across,
            "ROWS": rows,
            "COLUMNS": columns,
        }
        return cls((blocks * parts,), parts, arguments)

    @property
    def adding(self) -> dict[str, Any]:
        """Arguments of the kernels that add partial sums."""
        channels = self.arguments["channels"]
        return {
            "channels": channels,
            "PARTS": self.parts,
            "ROWS": min(triton.next_power_of_2(self.parts), _PARTS),
            "COLUMNS": min(triton.next_power_of_2(channels), _CHANNELS),
        }


def _elementwise(
    geometry: _Geometry, tuning: _Tuning, itemsize: int
) -> tuple[tuple[int], dict[str, Any]]:
    """Return grid and arguments of a pass over all numbers."""
    rows, columns = geometry.tile(tuning, itemsize, geometry.rows)
    grid = triton.cdiv(geometry.rows, rows) * triton.cdiv(geometry.columns, columns)
    return (grid,), {
        "rows": geometry.rows,
        "columns": geometry.columns,
        "channels": geometry.channels,
        "ACROSS": geometry.across,
        "ROWS": rows,
        "COLUMNS": columns,
    }


def mixed_sum(  # noqa: PLR0917 - the schema's arguments
    inputs: list[Tensor],
    weights: Tensor,
    running_means: list[Tensor],
    running_vars: list[Tensor],
    modes: list[int],
    eps: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the operator of that name in one to three launches."""
    first = inputs[0]
    normalized = len(modes) - modes.count(NONE)
    geometry, tuning = _Geometry.of(first, normalized > 0), tuned(_TUNING, first.device)
    ys = _laid_out(inputs, first)
    output = empty_in_layout_of(first, first)
    channels = geometry.channels if normalized else 0
    mean, variance = (weights.new_empty((normalized, channels)) for _ in range(2))
    constants = {"MODES": tuple(modes), "SUM": _sum_type(weights)}
    reduction = _Reduction.of(geometry, tuning, weights.itemsize)
    batches = modes.count(BATCH)
    partial = mean.new_empty((batches, 3, reduction.parts, channels), dtype=torch.float64)
    if batches:
        launch(
            kernels.moments,
            reduction.grid,
            **_launched(reduction.arguments, first.device),
            inputs=ys,
            partial=partial,
            **reduction.arguments,
            **constants,
        )
    if normalized:
        adding = reduction.adding
        is_running = [mode == RUNNING for mode in modes]
        launch(
            kernels.statistics,
            (triton.cdiv(channels, adding["COLUMNS"]), normalized),
            **_launched(adding, first.device),
            partial=partial,
            running_means=_per_input(_laid_out(running_means), is_running),
            running_vars=_per_input(_laid_out(running_vars), is_running),
            mean=mean,
            variance=variance,
            values=geometry.values,
            MODES=constants["MODES"],
            **adding,
        )
    grid, arguments = _elementwise(geometry, tuning, weights.itemsize)
    launch(
        kernels.forward,
        grid,
        **_launched(arguments, first.device),
        inputs=ys,
        weights=weights.contiguous(),
        mean=mean,
        variance=variance,
        output=output,
        EPS=tuple(eps),
        **arguments,
        **constants,
    )
    return output, mean, variance


def mixed_sum_backward(  # noqa: PLR0917 - the schema's arguments
    grad: Tensor,
    inputs: list[Tensor],
    weights: Tensor,
    mean: Tensor,
    variance: Tensor,
    modes: list[int],
    eps: list[float],
    input_mask: list[bool],
    weights_mask: bool,
) -> tuple[list[Tensor], Tensor]:
    """Run the operator of that name in at most three launches."""
    first = inputs[0]
    geometry = _Geometry.of(first, any(mode != NONE for mode in modes))
    tuning = tuned(_TUNING, first.device)
    (g, *ys), mean, variance = _laid_out([grad, *inputs], first), *_laid_out([mean, variance])
    grad_inputs = [
        empty_in_layout_of(first, y) for y, needed in zip(inputs, input_mask, strict=True) if needed
    ]
    grad_weights = weights.new_empty((len(inputs) if weights_mask else 0,))
    through_statistics = [
        needed and mode == BATCH for needed, mode in zip(input_mask, modes, strict=True)
    ]
    wanted = (*(weights_mask or through for through in through_statistics), any(through_statistics))
    constants = {"MODES": tuple(modes)}
    slope = weights.new_empty((len(inputs), geometry.channels))
    mean_grad = weights.new_empty((geometry.channels,))
    if any(wanted):
        reduction = _Reduction.of(geometry, tuning, weights.itemsize)
        partial = weights.new_empty(
            (len(wanted), reduction.parts, geometry.channels), dtype=torch.float64
        )
        launch(
            backward_kernels.dots,
            reduction.grid,
            **_launched(reduction.arguments, first.device),
            grad=g,
            inputs=tuple(ys),
            mean=mean,
            partial=partial,
            WANTED=wanted,
            SUM=_sum_type(weights),
            **reduction.arguments,
            **constants,
        )
        launch(
            backward_kernels.coefficients,
            (len(wanted),),
            **_launched(reduction.adding, first.device),
            partial=partial,
            variance=variance,
            slope=slope,
            mean_grad=mean_grad,
            grad_weights=grad_weights,
            values=geometry.values,
            EPS=tuple(eps),
            WANTED=wanted,
            WEIGHTS=weights_mask,
            **reduction.adding,
            **constants,
        )
    if grad_inputs:
        grid, arguments = _elementwise(geometry, tuning, weights.itemsize)
        launch(
            backward_kernels.gradients,
            grid,
            **_launched(arguments, first.device),
            grad=g,
            inputs=tuple(ys),
            weights=weights.contiguous(),
            mean=mean,
            variance=variance,
            slope=slope,
            mean_grad=mean_grad,
            grad_inputs=_per_input(grad_inputs, input_mask),
            EPS=tuple(eps),
            SUM=_sum_type(weights),
            **arguments,
            **constants,
        )
    return grad_inputs, grad_weights


def _laid_out(tensors: Sequence[Tensor], first: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the tensors in the layout of the first input, or contiguous; copies where needed."""
    last = first is not None and is_channels_last(first)
    layout = torch.channels_last if last else torch.contiguous_format
    return tuple(tensor.contiguous(memory_format=layout) for tensor in tensors)


def _per_input(tensors: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return for every input that is in the mask the next tensor, None for the others."""
    remaining = iter(tensors)
    return tuple(next(remaining) if there else None for there in mask)


def _sum_type(weights: Tensor) -> tl.dtype:
    return tl.float64 if weights.dtype == torch.float64 else tl.float32
