"""What a tile of a layer's input collects from the gradients of the layer's outputs.

Convolutions and pools spread a gradient over neighbours; turned around, a pixel collects from all
outputs whose window holds it, tap by tap.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    beats,
    load_pixels,
    place_of,
    product,
    split,
    store_pixels,
    through_relu,
)
from da2s_fast.kernels.cell.norm_backward import before_norm, coefficients, is_given
from da2s_fast.kernels.cell.rows import (
    AVERAGE,
    DENSE,
    EDGE,
    GRADIENT,
    MAXIMUM,
    NOTHING,
    POSITION,
    PRODUCT,
    REACHED,
    SEPARABLE,
    SPATIAL,
    STRIDE,
    Z,
)
from da2s_fast.kernels.cell.window import columns_of, tap_values, window_of


@triton.jit
def output_of(place, offset, stride, size, ANY: tl.constexpr = False):
    """Return which output reads a row or column at an offset from its window's start.

    That is the output with output * stride + offset = place, if there is one: also returned.
    Without ANY a stride is 1 or 2, so that nothing has to be divided.
    """
    start = place - offset
    if ANY:
        output = start // stride
        between = start % stride
    else:
        output = start >> (stride - 1)
        between = start & (stride - 1)
    return output, (start >= 0) & (between == 0) & (output < size)


@triton.jit
def outputs_of(
    n, y, x, offset_y, offset_x, stride, height, width, live, ANY: tl.constexpr = False
):  # fmt: skip
    """Likewise of pixels (y, x) the output's index."""
    top, in_column = output_of(y, offset_y, stride, height, ANY)
    left, in_row = output_of(x, offset_x, stride, width, ANY)
    return (n.to(tl.int64) * height + top) * width + left, live & in_column & in_row


@triton.jit
def spread_back(
    base, weights, kernel, stride, dilation, padding, n, y, x, height, width, live, c, known,
    channels, ANY: tl.constexpr = False,
):  # fmt: skip
    """Return the gradient of a depthwise convolution's input from that of its output."""
    taps = kernel * kernel
    total = tl.zeros((n.shape[0], c.shape[0]), base.dtype.element_ty)
    for tap in range(0, taps):
        at, there = outputs_of(
            n, y, x, tap // kernel * dilation - padding, tap % kernel * dilation - padding,
            stride, height, width, live, ANY,
        )  # fmt: skip
        factor = tl.load(weights + c * taps + tap, mask=known, other=0.0)
        total += load_pixels(base, at, channels, c, there, known) * factor[None, :]
    return total


@triton.jit
def from_pool(
    row, z, gradient, kind, n, y, x, in_height, in_width, height, width, live, c, known, channels,
    pitch, scale, mean, shift, slope, given,
):  # fmt: skip
    """Return what reaches a tile through a 3x3 pool and the norm behind it."""
    outputs = z + place_of(row + Z)
    position = z + place_of(row + POSITION)
    stride = tl.load(row + STRIDE).to(tl.int32)
    total = tl.zeros((n.shape[0], c.shape[0]), z.dtype.element_ty)
    for row_of_taps in range(0, 3):
        top, in_column = output_of(y, row_of_taps - 1, stride, height)
        before = (n.to(tl.int64) * height + top) * width
        # The window starts a pixel before (y, x) - tap; cells outside do not count.
        start = y - row_of_taps
        rows = tl.minimum(start + 3, in_height) - tl.maximum(start, 0)
        for column_of_taps in range(0, 3):
            left, in_row = output_of(x, column_of_taps - 1, stride, width)
            at = before + left
            there = live & in_column & in_row
            values = before_norm(
                load_pixels(gradient, at, pitch, c, there, known),
                load_pixels(outputs, at, channels, c, there, known),
                there, known, scale, mean, shift, slope, given,
            )  # fmt: skip
            if kind == AVERAGE:
                start = x - column_of_taps
                columns = tl.minimum(start + 3, in_width) - tl.maximum(start, 0)
                count = tl.maximum(rows * columns, 1).to(values.dtype)
                total += values / count[:, None]
            else:
                winner = load_pixels(position, at, channels, c, there, known)
                tap = row_of_taps * 3 + column_of_taps
                total += tl.where(there[:, None] & (winner == tap), values, 0)
    return total


@triton.jit
def from_dense(
    row, z, gradient, weights, p_weights, g_weights, operations, statistics, sums, n, y, x, height,
    width, live, c, known, channels, pitch, pixels, scale, mean, shift, slope, given,
    HALVES: tl.constexpr, SEVERAL: tl.constexpr, EPS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return what reaches a tile through a dense convolution and the norm behind it.

    scale, mean, shift and slope are those of the first block of outputs.
    """
    _, _, stride, _, kernel, padding = window_of(row)
    taps = kernel * kernel
    cout, column = columns_of(row, channels, HALVES)
    w = weights + tl.load(row + PRODUCT)
    outputs = z + place_of(row + Z)
    total = tl.zeros((n.shape[0], BLOCK), z.dtype.element_ty)
    for block in range(0, tl.cdiv(cout, BLOCK)):
        out = block * BLOCK + tl.arange(0, BLOCK)
        own = out < cout
        if SEVERAL and block > 0:
            scale, mean, shift, slope = coefficients(
                row, p_weights, g_weights, operations, statistics, sums, column + out, own,
                channels, pixels, EPS, CHUNKS,
            )  # fmt: skip
        for tap in range(0, taps):
            at, there = outputs_of(
                n, y, x, tap // kernel - padding, tap % kernel - padding, stride, height, width,
                live,
            )  # fmt: skip
            values = before_norm(
                load_pixels(gradient, at, pitch, column + out, there, own),
                load_pixels(outputs, at, channels, column + out, there, own),
                there, own, scale, mean, shift, slope, given,
            )  # fmt: skip
            share = tl.load(
                w + (out[:, None] * channels + c[None, :]) * taps + tap,
                mask=own[:, None] & known[None, :],
                other=0.0,
            )
            total += product(values, share, DOT, PRECISION)
    return total


@triton.jit
def wins_bypass(x_base, pitch, n, y, x, height, width, live, channel, known):
    """Return where (y, x) is the maximum of its 2x2 window."""
    top = y // 2 * 2
    left = x // 2 * 2
    best, _ = tap_values(x_base, pitch, n, top, left, height, width, live, channel, known)
    winner = tl.zeros(best.shape, tl.int32)
    for tap in tl.static_range(1, 4):
        values, inside = tap_values(
            x_base, pitch, n, top + tap // 2, left + tap % 2, height, width, live, channel, known
        )
        wins = beats(values, best) & inside[:, None]
        best = tl.where(wins, values, best)
        winner = tl.where(wins, tap, winner)
    return winner == (y % 2 * 2 + x % 2)[:, None]


@triton.jit
def gather(
    row,
    kind,
    to,
    shuffled,
    state,
    z,
    gradients,
    weights,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    block,
    first,
    last,
    own_height,
    own_width,
    pixels,
    height,
    width,
    channels,
    SHUFFLED: tl.constexpr,
    SEPARABLES: tl.constexpr,
    HALVES: tl.constexpr,
    DENSES: tl.constexpr,
    SEVERAL: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add what reaches a state's chunk and block of channels through one row.

    Given:
        kind: of the row.
        to: the state's gradient.
        shuffled: K where that has the order of channels before the shuffle, else 1.
        state: the state.
        block: of channels.
        first: pixel of the state.
        last: pixel behind the chunk.
        own_height: of the state.
        own_width: of the state.
    """
    dtype: tl.constexpr = gradients.dtype.element_ty
    pitch = channels * SHUFFLED
    c = block * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    gradient = gradients + place_of(row + GRADIENT)
    column = c
    if SHUFFLED > 1:
        column = c % shuffled * (pitch // shuffled) + c // shuffled
    given = is_given(row)
    _, _, stride, dilation, kernel, padding = window_of(row)
    reached = gradients + place_of(row + REACHED)
    scale = tl.zeros((BLOCK,), dtype)
    mean = scale
    shift = scale
    slope = scale
    # One branch that gives four results: on two, a pass of Triton 3.6 fails for some tiles.
    if kind != SEPARABLE:
        columns = c
        own = known
        if DENSES:
            cout, behind = columns_of(row, channels, HALVES)
            out = tl.arange(0, BLOCK)
            columns = tl.where(kind == DENSE, behind + out, c)
            own = tl.where(kind == DENSE, out < cout, known)
        scale, mean, shift, slope = coefficients(
            row, p_weights, g_weights, operations, statistics, sums, columns, own, channels,
            pixels, EPS, CHUNKS, 8 if SEPARABLES else 32,
        )  # fmt: skip
    for start in range(first, last, PIXELS):
        p = start + tl.arange(0, PIXELS)
        live = p < last
        at = p.to(tl.int64)
        n, y, x = split(p, own_height, own_width)
        before = load_pixels(to, at, pitch, column, live, known)
        if SEPARABLES and kind == SEPARABLE:
            found = spread_back(
                reached, weights + tl.load(row + SPATIAL), kernel, stride, dilation, padding,
                n, y, x, height, width, live, c, known, channels,
            )  # fmt: skip
            found = through_relu(found, load_pixels(state, at, pitch, c, live, known))
        elif DENSES and kind == DENSE:
            found = from_dense(
                row, z, gradient, weights, p_weights, g_weights, operations, statistics, sums,
                n, y, x, height, width, live, c, known, channels, pitch, pixels, scale, mean,
                shift, slope, given, HALVES, SEVERAL, EPS, DOT, PRECISION, CHUNKS, BLOCK,
            )  # fmt: skip
            found = through_relu(found, load_pixels(state, at, pitch, c, live, known))
        elif (kind == MAXIMUM) | (kind == AVERAGE):
            found = from_pool(
                row, z, gradient, kind, n, y, x, own_height, own_width, height, width, live,
                c, known, channels, pitch, scale, mean, shift, slope, given,
            )  # fmt: skip
        else:
            source, there = outputs_of(n, y, x, 0, 0, stride, height, width, live)
            values = load_pixels(gradient, source, pitch, c, there, known)
            found = scale[None, :] * values
            if kind == NOTHING:
                found = found * 0
        store_pixels(to, at, pitch, column, live, known, before + found)


@triton.jit
def gather_bypass(
    row,
    to,
    shuffled,
    state,
    gradients,
    g_weights,
    block,
    first,
    last,
    own_height,
    own_width,
    height,
    width,
    channels,
    SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add what reaches a state's other channels past the candidates; arguments as above."""
    dtype: tl.constexpr = gradients.dtype.element_ty
    pitch = channels * SHUFFLED
    c = block * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    gradient = gradients + place_of(row + GRADIENT)
    stride = tl.load(row + STRIDE).to(tl.int32)
    scale = tl.full((), 1, dtype)
    if g_weights is not None:
        scale = tl.load(g_weights + tl.load(row + EDGE)).to(dtype)
    for part in tl.static_range(1, SHUFFLED):
        channel = part * channels + c
        column = channel % shuffled * (pitch // shuffled) + channel // shuffled
        for start in range(first, last, PIXELS):
            p = start + tl.arange(0, PIXELS)
            live = p < last
            at = p.to(tl.int64)
            n, y, x = split(p, own_height, own_width)
            source = (n.to(tl.int64) * height + y // stride) * width + x // stride
            values = load_pixels(gradient, source, pitch, channel, live, known)
            if stride == 2:
                wins = wins_bypass(
                    state, pitch, n, y, x, own_height, own_width, live, channel, known
                )
                values = tl.where(wins, values, 0)
            before = load_pixels(to, at, pitch, column, live, known)
            store_pixels(to, at, pitch, column, live, known, before + scale * values)
