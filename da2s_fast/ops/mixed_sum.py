"""The weighted sum of a list of tensors, batch normalization folded in (DARTS's mixed operation).

``out = sum_k w_k BN_k(y_k)``: Liu et al., "DARTS: Differentiable Architecture Search", eq. 2,
with the BatchNorm without affine that closes every candidate operation during a search. Fused,
no normalized tensor exists, and the sums that batch normalization needs for its gradient give
the gradients of the weights too.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NoReturn, get_args

import torch
from torch import Tensor, nn

from da2s_fast.errors import UserError
from da2s_fast.ops._backend import (
    LIBRARY,
    NO_CPU_LIBRARY,
    REFERENCE,
    choose_backend,
    define_operator,
    has_kernel,
    refuse_double_backward,
)
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import register_triton, triton_reason

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS = get_args(Norm)  # not every compiler that is supported knows unions

# How an input is normalized: not at all, by the statistics of the batch, by running statistics.
NONE, BATCH, RUNNING = range(3)

# mean and variance (biased) have one row of C for every normalized input, in order; running
# statistics come, in order, for the inputs of mode RUNNING. weights are float64 for float64
# inputs and float32 for all others.
_FORWARD = define_operator(
    "mixed_sum(Tensor[] inputs, Tensor weights, Tensor[] running_means, Tensor[] running_vars, "
    "int[] modes, float[] eps) -> (Tensor output, Tensor mean, Tensor variance)"
)
# grad_inputs has only the gradients asked for; grad_weights is empty where not asked for.
_BACKWARD = define_operator(
    "mixed_sum_backward(Tensor grad, Tensor[] inputs, Tensor weights, Tensor mean, "
    "Tensor variance, int[] modes, float[] eps, bool[] input_mask, bool weights_mask) "
    "-> (Tensor[] grad_inputs, Tensor grad_weights)"
)
_HAS_CPU_KERNEL = has_kernel(_FORWARD, "cpu")
for _operator in ("mixed_sum", "mixed_sum_backward"):
    register_triton(_operator, "da2s_fast.ops.mixed_sum_triton")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# The parameters of a kernel have room for pointers to so many and their gradients, and its code,
# whose loops are unrolled, is still compiled in seconds.
_MOST_TRITON_INPUTS = 64


def mixed_sum(
    inputs: Sequence[Tensor],
    weights: Tensor,
    norms: Sequence[Norm | None] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum tensors with weights, normalizing some of them on the way.

    Computes ``sum_k weights[k] * (norms[k](inputs[k]) if norms[k] else inputs[k])`` and updates
    the running statistics as calling the modules would. Hooks of the modules do not run.

    Args:
        inputs: K tensors of one shape, (N, C, H, W) or any other; norms need a channel dimension.
            Contiguous and channels_last inputs are read in place; the fused operator copies an
            input whose layout is neither, or is not that of the first input.
        weights: (K,), floating point.
        norms: for every input None or the BatchNorm *without affine* that would normalize it, in
            its own mode (training or evaluation), with its momentum, eps and buffers.
        backend: "cpu" (compiled), "triton" (CUDA tensors, up to 64 inputs), "reference" (plain
            PyTorch) or None for the best that can run.

    Returns:
        The sum, of the inputs' shape and of the dtype that the expression above has in PyTorch
        (weights do not promote); the fused operator adds up bfloat16 and float16 in float32. Its
        layout is that of the first input: channels_last or else contiguous.

    Raises:
        UserError: no inputs, shapes or lengths that do not fit, a norm that cannot be folded, a
            backend that is unknown or cannot run.
        ValueError: batch statistics of a single value per channel, as in PyTorch.
    """
    inputs, norms = list(inputs), list(norms) if norms is not None else [None] * len(inputs)
    _check(inputs, weights, norms)
    reasons = {
        "cpu": _cpu_reason(inputs, weights, norms),
        "triton": _triton_reason(inputs, weights, norms),
    }
    if choose_backend("mixed_sum", backend, reasons) == REFERENCE:
        return mixed_sum_reference(inputs, weights, norms)
    return _fused(inputs, weights, norms)


def mixed_sum_reference(
    inputs: Sequence[Tensor], weights: Tensor, norms: Sequence[Norm | None]
) -> Tensor:
    """Compute `mixed_sum` in plain PyTorch, one term after the other."""
    terms = (
        weight * (y if norm is None else norm(y))
        for y, weight, norm in zip(inputs, weights.unbind(), norms, strict=True)
    )
    return reduce(torch.add, terms)


def _check(inputs: list[Tensor], weights: Tensor, norms: list[Norm | None]) -> None:
    if not inputs:
        raise UserError("mixed_sum got no inputs; give it at least one tensor")
    shape = inputs[0].shape
    for k, y in enumerate(inputs):
        if y.shape != shape:
            raise UserError(
                f"mixed_sum needs inputs of one shape, but inputs[0] has {tuple(shape)} and "
                f"inputs[{k}] has {tuple(y.shape)}"
            )
    if weights.shape != (len(inputs),):
        raise UserError(
            f"mixed_sum got weights of shape {tuple(weights.shape)} for {len(inputs)} inputs; "
            f"give it one weight per input, shape ({len(inputs)},)"
        )
    if not weights.is_floating_point():
        raise UserError(f"mixed_sum needs floating point weights, not {weights.dtype}")
    if len(norms) != len(inputs):
        raise UserError(
            f"mixed_sum got {len(norms)} norms for {len(inputs)} inputs; "
            "give it one norm, or None, per input"
        )
    for k, norm in enumerate(norms):
        if norm is not None:
            _check_norm(k, norm, inputs[k])


def _check_norm(k: int, norm: Norm, y: Tensor) -> None:
    if not isinstance(norm, _NORMS):
        raise UserError(
            f"mixed_sum folds BatchNorm only, but norms[{k}] is a {type(norm).__name__}; apply it "
            "to the input before"
        )
    if norm.affine:
        raise UserError(
            f"mixed_sum folds BatchNorm without affine only, but norms[{k}] has weight and bias; "
            "apply it to the input before"
        )
    norm._check_input_dim(y)
    if y.shape[1] != norm.num_features:
        raise UserError(
            f"inputs[{k}] has {y.shape[1]} channels, but norms[{k}] is for {norm.num_features}"
        )
    if _mode(norm) == BATCH and _values_per_channel(y) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {y.size()}"
        )


def _values_per_channel(y: Tensor) -> int:
    return math.prod((*y.shape[:1], *y.shape[2:]))


def _mode(norm: Norm | None) -> int:
    if norm is None:
        return NONE
    has_buffers = norm.running_mean is not None or norm.running_var is not None
    return RUNNING if has_buffers and not norm.training else BATCH


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sum_dtype(inputs: list[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (y.dtype for y in inputs))


def _cpu_reason(inputs: list[Tensor], weights: Tensor, norms: list[Norm | None]) -> str | None:
    """Say why the compiled CPU operator cannot run; None where it can."""
    if not _HAS_CPU_KERNEL:
        return NO_CPU_LIBRARY
    for tensor in (*inputs, weights):
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}"
    return _fused_reason(inputs, weights, norms)


def _triton_reason(inputs: list[Tensor], weights: Tensor, norms: list[Norm | None]) -> str | None:
    """Say why the Triton kernels cannot run; None where they can."""
    if len(inputs) > _MOST_TRITON_INPUTS:
        return f"it takes up to {_MOST_TRITON_INPUTS} inputs, not {len(inputs)}"
    buffers = (norm.running_mean for norm in norms if norm is not None)
    reason = triton_reason(*inputs, weights, *(b for b in buffers if b is not None))
    return reason or _fused_reason(inputs, weights, norms)


def _fused_reason(inputs: list[Tensor], weights: Tensor, norms: list[Norm | None]) -> str | None:
    """Say what all fused operators leave to the reference; None where there is nothing."""
    for tensor in (*inputs, weights):
        if tensor.dtype not in _DTYPES:
            return f"a tensor is {tensor.dtype}"
    if inputs[0].numel() == 0:
        return "the inputs are empty"
    if inputs[0].dim() == 0 and any(y.dtype != weights.dtype for y in inputs):
        return "weights promote inputs without dimensions"
    accumulation = _accumulation_dtype(_sum_dtype(inputs))
    for norm in norms:
        buffer = norm.running_mean if norm is not None else None
        if buffer is not None and _accumulation_dtype(buffer.dtype) != accumulation:
            return f"running statistics are {buffer.dtype}, sums {accumulation}"
    return None


def _fused(inputs: list[Tensor], weights: Tensor, norms: list[Norm | None]) -> Tensor:
    dtype = _sum_dtype(inputs)
    accumulation = _accumulation_dtype(dtype)
    modes = [_mode(norm) for norm in norms]
    running = [n for n, mode in zip(norms, modes, strict=True) if n and mode == RUNNING]
    output, mean, variance = torch.ops.da2s_fast.mixed_sum(
        [y.to(dtype) for y in inputs],
        weights.to(accumulation),
        [n.running_mean.to(accumulation) for n in running if n.running_mean is not None],
        [n.running_var.to(accumulation) for n in running if n.running_var is not None],
        modes,
        [norm.eps if norm else 0.0 for norm in norms],
    )
    row = 0
    for norm, mode in zip(norms, modes, strict=True):
        if norm is None:
            continue
        if mode == BATCH and norm.training and norm.track_running_stats:
            count = _values_per_channel(inputs[0])
            unbiased = variance[row] * (count / (count - 1))
            _update_running_statistics(norm, mean[row], unbiased)
        row += 1
    return output


@torch.no_grad()
def _update_running_statistics(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    batches, factor = norm.num_batches_tracked, norm.momentum
    if batches is not None:
        batches.add_(1)
    for buffer, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        if buffer is None:
            continue
        if factor is not None:
            buffer.lerp_(value.to(buffer.dtype), factor)
        elif batches is not None:  # a cumulative average, without asking the device for its count
            buffer.lerp_(value.to(buffer.dtype), batches.to(buffer.dtype).reciprocal())


def empty_in_layout_of(first: Tensor, like: Tensor) -> Tensor:
    """Allocate what the kernels return: channels_last where the first input is, else contiguous."""
    return torch.empty_like(like, memory_format=memory_format_of(first))


@torch.library.register_fake(_FORWARD, lib=LIBRARY)
def _fake_forward(  # noqa: PLR0917 - the schema's arguments
    inputs: list[Tensor],
    weights: Tensor,
    running_means: list[Tensor],
    running_vars: list[Tensor],
    modes: list[int],
    eps: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    rows = sum(mode != NONE for mode in modes)
    columns = inputs[0].shape[1] if rows else 0
    mean, variance = (weights.new_empty((rows, columns)) for _ in range(2))
    return empty_in_layout_of(inputs[0], inputs[0]), mean, variance


@torch.library.register_fake(_BACKWARD, lib=LIBRARY)
def _fake_backward(  # noqa: PLR0917 - the schema's arguments
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
    wanted = [y for y, needed in zip(inputs, input_mask, strict=True) if needed]
    grad_inputs = [empty_in_layout_of(inputs[0], y) for y in wanted]
    return grad_inputs, weights.new_empty((len(inputs) if weights_mask else 0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ys, weights, *_, ctx.modes, ctx.eps = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weights, mean, variance, *ys)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    weights, mean, variance, *ys = ctx.saved_tensors
    input_mask, weights_mask, *_ = ctx.needs_input_grad
    constants = [None] * ctx.modes.count(RUNNING), [None] * ctx.modes.count(RUNNING), None, None
    if grad is None:
        return [None] * len(ys), None, *constants
    grads, grad_weights = torch.ops.da2s_fast.mixed_sum_backward(
        grad, ys, weights, mean, variance, ctx.modes, ctx.eps, input_mask, weights_mask
    )
    grads = iter(grads)
    grad_inputs = [next(grads) if needed else None for needed in input_mask]
    return grad_inputs, grad_weights if weights_mask else None, *constants


def _double_backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
    refuse_double_backward("mixed_sum")


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd(_BACKWARD, _double_backward, lib=LIBRARY)
