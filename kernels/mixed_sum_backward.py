"""Triton kernels of mixed_sum's gradients; mixed_sum.py explains tiles and sums over channels.

Through batch statistics a gradient needs two sums per channel, over grad and over grad (y - mean),
and the latter are the gradients of the weights but for a factor. Launches: `dots`, `coefficients`
and `gradients`, which takes all inputs; what nobody asked for is left out.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.mixed_sum import (
    deviation_of,
    quotient,
    share,
    sum_of_channels,
    sum_of_parts,
    tile_of_all,
    tile_of_share,
)

# As in mixed_sum.py.
_NONE = tl.constexpr(0)
_BATCH = tl.constexpr(1)


@triton.jit
def dots(
    grad,
    inputs,
    mean,
    partial,
    rows,
    columns,
    row_stride,
    channels,
    tiles,
    MODES: tl.constexpr,
    WANTED: tl.constexpr,
    PARTS: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write the sums of parts of channels over grad (y - mean) and over grad.

    Args and grid as those of `moments`, and:
        grad: of the layout of the inputs.
        mean: (normalized inputs, channels), of type SUM.
        partial: (inputs + 1, PARTS, channels), float64; the last are the sums over grad.
        WANTED: for every input, and then for grad, whether its sum is written.
    """
    part, channel, is_channel, start = share(rows, columns, channels, PARTS, ACROSS, COLUMNS)
    to = partial + part.to(tl.int64) * channels + channel
    step = tl.cast(channels, tl.int64) * PARTS
    for k in tl.static_range(len(WANTED)):
        if WANTED[k]:
            sums = tl.zeros((ROWS, COLUMNS), SUM)
            if k < len(MODES):
                center = tl.zeros((1, channel.shape[1]), SUM)
                if MODES[k] != _NONE:
                    center = tl.load(mean + channel, mask=is_channel, other=0)
            for tile in range(part, tiles, PARTS):
                at, mask = tile_of_share(
                    tile, start, rows, columns, row_stride, ACROSS, ROWS, COLUMNS
                )
                g = tl.load(grad + at, mask=mask, other=0).to(SUM)
                if k < len(MODES):
                    y = tl.load(inputs[k] + at, mask=mask, other=0).to(SUM)
                    sums += tl.where(mask, g * (y - center), 0)
                else:
                    sums += g
            tl.store(to + k * step, sum_of_channels(sums, ACROSS), mask=is_channel)
        if k < len(MODES) and MODES[k] != _NONE:
            mean += channels


@triton.jit
def coefficients(
    partial,
    variance,
    slope,
    mean_grad,
    grad_weights,
    values,
    channels,
    MODES: tl.constexpr,
    EPS: tl.constexpr,
    WANTED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of the weights and what `gradients` needs per channel.

    Grid: inputs + 1.

    Args:
        partial: of `dots`, with as many PARTS.
        variance: (normalized inputs, channels).
        slope: (inputs, channels): mean of grad (y - mean) over variance + eps.
        mean_grad: (channels,): mean of grad.
        grad_weights: one per input.
        values: of a channel.
        channels: of the inputs.
        MODES: per input.
        EPS: per input.
        WANTED: for every input, and then for grad, whether its sums are there.
        WEIGHTS: whether grad_weights are wanted.
        PARTS: programs that shared a channel.
        ROWS: parts that are read at a time.
        COLUMNS: channels at a time.
    """
    k = tl.program_id(0)
    # What is known of the program's input; all programs share one code.
    wanted = False
    normalized = False
    eps = tl.full((), 0, tl.float64)
    for i in tl.static_range(len(WANTED)):
        wanted = wanted | ((k == i) & WANTED[i])
        if i < len(MODES):
            normalized = normalized | ((k == i) & (MODES[i] != _NONE))
            eps = tl.where(k == i, EPS[i], eps)
            if MODES[i] != _NONE:
                variance += tl.where(k > i, channels, 0)
    if wanted:
        parts = partial + k.to(tl.int64) * PARTS * channels
        total = tl.zeros((1, COLUMNS), tl.float64)
        for start in range(0, channels, COLUMNS):
            channel = start + tl.arange(0, COLUMNS)[None, :]
            is_channel = channel < channels
            sums = sum_of_parts(parts, channel, is_channel, channels, PARTS, ROWS)
            squared = tl.full((1, COLUMNS), 1, tl.float64)
            if normalized:
                found = tl.load(variance + channel, mask=is_channel, other=1)
                squared = found.to(tl.float64) + eps
            total += tl.where(is_channel, sums / tl.sqrt(squared), 0)
            if k < len(MODES):
                to = slope + k.to(tl.int64) * channels + channel
                tl.store(to, sums / squared / values, mask=is_channel)
            else:
                tl.store(mean_grad + channel, sums / values, mask=is_channel)
        if WEIGHTS and k < len(MODES):
            tl.store(grad_weights + k, tl.sum(total))


@triton.jit
def gradients(
    grad,
    inputs,
    weights,
    mean,
    variance,
    slope,
    mean_grad,
    grad_inputs,
    rows,
    columns,
    channels,
    MODES: tl.constexpr,
    EPS: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write the gradients of inputs; a program has a tile of each.

    Args and grid as those of `forward`, and:
        grad: of the layout of the inputs.
        slope: of `coefficients`; so is mean_grad.
        mean_grad: as said.
        grad_inputs: per input; None where it is not wanted.
    """
    at, mask, channel, is_channel = tile_of_all(rows, columns, channels, ACROSS, ROWS, COLUMNS)
    g = tl.load(grad + at, mask=mask, other=0).to(SUM)
    for k in tl.static_range(len(MODES)):
        if grad_inputs[k] is not None:
            scale = tl.load(weights + k)
            found = g
            if MODES[k] != _NONE:
                spread = tl.load(variance + channel, mask=is_channel, other=1)
                scale = quotient(scale, deviation_of(spread, EPS[k]))
            if MODES[k] == _BATCH:
                y = tl.load(inputs[k] + at, mask=mask, other=0).to(SUM)
                center = tl.load(mean + channel, mask=is_channel, other=0)
                tilt = tl.load(slope + k * channels + channel, mask=is_channel, other=0)
                level = tl.load(mean_grad + channel, mask=is_channel, other=0)
                found = g - level - tilt * (y - center)
            found = scale * found
            tl.store(grad_inputs[k] + at, found.to(grad.dtype.element_ty), mask=mask)
        if MODES[k] != _NONE:
            mean += channels
            variance += channels
