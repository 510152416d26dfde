"""Drivers of the Triton kernels of mixed_sum, which `kernels/mixed_sum.py` explains."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from da2s_fast.kernels import mixed_sum as kernels
from da2s_fast.kernels import mixed_sum_backward as backward_kernels
from da2s_fast.kernels import schedule
from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops._layout import is_channels_last
from da2s_fast.ops._triton import launched_as, tuned
from da2s_fast.ops.mixed_sum import BATCH, NONE, RUNNING, empty_in_layout_of
from da2s_fast.ops.mixed_sum_tiles import Geometry, Reduction, Tuning, elementwise, reduction

# Not yet measured on a GPU: chosen by registers and bytes.
_TUNING = {80: Tuning(largest=8192, smallest=2048, programs=1024, parts=256)}


def _launched(
    arguments: Mapping[str, Any], device: torch.device, kernel: str = "mixed_sum"
) -> dict[str, Any]:
    """How a kernel is launched that has such a tile."""
    return launched_as(kernel, device, arguments["ROWS"] * arguments["COLUMNS"])


class _Call(NamedTuple):
    """What decides about launches besides the tensors' types."""

    geometry: Geometry
    tuning: Tuning
    modes: tuple[int, ...]
    eps: tuple[float, ...]

    @classmethod
    def of(cls, first: Tensor, modes: Sequence[int], eps: Sequence[float]) -> "_Call":
        geometry = Geometry.of(first, any(mode != NONE for mode in modes))
        return cls(geometry, tuned(_TUNING, first.device), tuple(modes), tuple(eps))

    def reduction(self, weights: Tensor | Slot) -> Reduction:
        """How sums over channels are shared, whose type is that of the weights."""
        return reduction(self.geometry, self.tuning, weights.dtype.itemsize)


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
    call = _Call.of(first, modes, eps)
    output = empty_in_layout_of(first, first)
    normalized = len(modes) - modes.count(NONE)
    channels = call.geometry.channels if normalized else 0
    mean, variance = (weights.new_empty((normalized, channels)) for _ in range(2))
    parts = modes.count(BATCH), 3, call.reduction(weights).parts, channels
    tensors = {
        "inputs": _laid_out(inputs, first),
        "weights": weights.contiguous(),
        "running_means": _laid_out(running_means),
        "running_vars": _laid_out(running_vars),
        "partial": weights.new_empty(parts, dtype=torch.float64),
        "mean": mean,
        "variance": variance,
        "output": output,
    }
    schedule.start(_forward, tensors, call)
    return output, mean, variance


def _forward(slots: Mapping[str, Any], call: _Call) -> None:
    """All launches."""
    geometry, modes, weights = call.geometry, call.modes, slots["weights"]
    constants = {"MODES": modes, "SUM": _sum_type(weights)}
    sums = call.reduction(weights)
    if BATCH in modes:
        wide = geometry.across and slots["inputs"][0].dtype.itemsize >= 4
        kernel = "mixed_sum, moments across of 32 bits and more" if wide else "mixed_sum"
        launch(
            kernels.moments,
            sums.grid,
            **_launched(sums.arguments, weights.device, kernel),
            inputs=slots["inputs"],
            partial=slots["partial"],
            **sums.arguments,
            **constants,
        )
    normalized = len(modes) - modes.count(NONE)
    if normalized:
        adding = sums.adding
        is_running = [mode == RUNNING for mode in modes]
        launch(
            kernels.statistics,
            (triton.cdiv(geometry.channels, adding["COLUMNS"]), normalized),
            **_launched(adding, weights.device),
            partial=slots["partial"],
            running_means=_per_input(slots["running_means"], is_running),
            running_vars=_per_input(slots["running_vars"], is_running),
            mean=slots["mean"],
            variance=slots["variance"],
            values=geometry.values,
            MODES=modes,
            **adding,
        )
    grid, arguments = elementwise(geometry, call.tuning, weights.dtype.itemsize)
    launch(
        kernels.forward,
        grid,
        **_launched(arguments, weights.device, "mixed_sum, forward"),
        inputs=slots["inputs"],
        weights=weights,
        mean=slots["mean"],
        variance=slots["variance"],
        output=slots["output"],
        EPS=call.eps,
        **arguments,
        **constants,
    )


class _Wanted(NamedTuple):
    """Which gradients are asked for."""

    inputs: tuple[bool, ...]
    weights: bool

    def dots(self, modes: Sequence[int]) -> tuple[bool, ...]:
        """Per input whether its product with the gradient is summed; then whether that is."""
        through_statistics = [
            needed and mode == BATCH for needed, mode in zip(self.inputs, modes, strict=True)
        ]
        return (
            *(self.weights or through for through in through_statistics),
            any(through_statistics),
        )


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
    call, wanted = _Call.of(first, modes, eps), _Wanted(tuple(input_mask), weights_mask)
    grad_inputs = [
        empty_in_layout_of(first, y) for y, needed in zip(inputs, input_mask, strict=True) if needed
    ]
    grad_weights = weights.new_empty((len(inputs) if weights_mask else 0,))
    channels, parts = call.geometry.channels, call.reduction(weights).parts
    rows = len(inputs) + 1 if any(wanted.dots(modes)) else 0
    tensors = {
        "grad": _laid_out([grad], first)[0],
        "inputs": _laid_out(inputs, first),
        "weights": weights.contiguous(),
        "mean": mean.contiguous(),
        "variance": variance.contiguous(),
        "partial": weights.new_empty((rows, parts, channels), dtype=torch.float64),
        "slope": weights.new_empty((len(inputs), channels)),
        "mean_grad": weights.new_empty((channels,)),
        "grad_inputs": grad_inputs,
        "grad_weights": grad_weights,
    }
    schedule.start(_backward, tensors, call, wanted)
    return grad_inputs, grad_weights


def _backward(slots: Mapping[str, Any], call: _Call, wanted: _Wanted) -> None:
    """All launches."""
    weights = slots["weights"]
    constants = {"MODES": call.modes}
    found = {name: slots[name] for name in ("variance", "slope", "mean_grad")}
    given = {name: slots[name] for name in ("grad", "inputs", "mean")}
    dots = wanted.dots(call.modes)
    if any(dots):
        sums = call.reduction(weights)
        launch(
            backward_kernels.dots,
            sums.grid,
            **_launched(sums.arguments, weights.device),
            partial=slots["partial"],
            WANTED=dots,
            SUM=_sum_type(weights),
            **given,
            **sums.arguments,
            **constants,
        )
        launch(
            backward_kernels.coefficients,
            (len(dots),),
            **_launched(sums.adding, weights.device),
            partial=slots["partial"],
            grad_weights=slots["grad_weights"],
            values=call.geometry.values,
            EPS=call.eps,
            WANTED=dots,
            WEIGHTS=wanted.weights,
            **found,
            **sums.adding,
            **constants,
        )
    if any(wanted.inputs):
        grid, arguments = elementwise(call.geometry, call.tuning, weights.dtype.itemsize)
        launch(
            backward_kernels.gradients,
            grid,
            **_launched(arguments, weights.device),
            weights=weights,
            grad_inputs=_per_input(slots["grad_inputs"], wanted.inputs),
            EPS=call.eps,
            SUM=_sum_type(weights),
            **given,
            **found,
            **arguments,
            **constants,
        )


def _laid_out(tensors: Sequence[Tensor], first: Tensor | None = None) -> list[Tensor]:
    """Return the tensors in the layout of the first input, or contiguous; copies where needed."""
    last = first is not None and is_channels_last(first)
    layout = torch.channels_last if last else torch.contiguous_format
    return [tensor.contiguous(memory_format=layout) for tensor in tensors]


def _per_input(slots: Sequence[Slot], mask: Sequence[bool]) -> tuple[Slot | None, ...]:
    """Return for every input that is in the mask the next slot, None for the others."""
    remaining = iter(slots)
    return tuple(next(remaining) if there else None for there in mask)


def _sum_type(weights: Slot) -> tl.dtype:
    return tl.float64 if weights.dtype == torch.float64 else tl.float32
