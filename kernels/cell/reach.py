"""Gradients of what layers read, gathered: a program owns the pixels that it writes.

Convolutions and pools spread a gradient over neighbours; turned around, a pixel collects from all
outputs whose window holds it. So one program adds up everything that reaches its tile, in the order
of the rows, without atomics, and all edges of a state share one read and write of its gradient.

reach_states: grid (tiles of pixels, groups, blocks of channels). Adds to the gradient of a state
what one later node's candidates hand it.

reach_inner: grid (chunks, rows, blocks of channels). Writes the gradient at the inner norm of
separable convolutions and its partial sums.

begin: grid (tiles of pixels, states, blocks of channels). Writes the output's gradient to the nodes
that make it, in the order of channels before the shuffle, and 0 to all other states.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    beats,
    inverse_deviation,
    load_pixels,
    place_of,
    product,
    split,
    store_pixels,
    through_relu,
    times,
)
from da2s_fast.kernels.cell.forward import columns_of, tap_values
from da2s_fast.kernels.cell.pull import weight_of
from da2s_fast.kernels.cell.rows import (
    AVERAGE,
    BYPASS,
    DENSE,
    DILATION,
    EDGE,
    GRADIENT,
    GROUP,
    GROUP_FIRST,
    GROUP_GRADIENT,
    GROUP_LENGTH,
    GROUP_SHUFFLED,
    GROUP_STATE,
    INNER,
    INNER_GRADIENT,
    INNER_SUMS,
    KERNEL,
    KIND,
    LAYER,
    MAXIMUM,
    NOTHING,
    OPERATION,
    PADDING,
    POSITION,
    PRODUCT,
    REACHED,
    SEPARABLE,
    SKIP,
    SOURCE,
    SPATIAL,
    STRIDE,
)


@triton.jit
def outputs_of(n, y, x, offset_y, offset_x, stride, height, width, live):
    """Return which output (pixel index) reads (y, x) at an offset from its window's start.

    That is the output with output * stride + offset = input, if there is one: also returned.
    """
    top = y - offset_y
    left = x - offset_x
    there = live & (top >= 0) & (left >= 0) & (top % stride == 0) & (left % stride == 0)
    top = top // stride
    left = left // stride
    there = there & (top < height) & (left < width)
    return (n.to(tl.int64) * height + top) * width + left, there


@triton.jit
def spread_back(
    base, weights, kernel, stride, dilation, padding, n, y, x, height, width, live, c, known,
    channels,
):  # fmt: skip
    """Return the gradient of a depthwise convolution's input from that of its output."""
    taps = kernel * kernel
    total = tl.zeros((n.shape[0], c.shape[0]), base.dtype.element_ty)
    for tap in range(0, taps):
        at, there = outputs_of(
            n, y, x, tap // kernel * dilation - padding, tap % kernel * dilation - padding,
            stride, height, width, live,
        )  # fmt: skip
        factor = tl.load(weights + c * taps + tap, mask=known, other=0.0)
        total += load_pixels(base, at, channels, c, there, known) * factor[None, :]
    return total


@triton.jit
def reach_inner(
    table,
    z,
    gradients,
    weights,
    statistics,
    sums,
    pixels,
    height,
    width,
    channels,
    tiles_per_chunk,
    EPS: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Through the second depthwise convolution and ReLU of separable ones, to their inner norm."""
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    inner = statistics + tl.load(row + INNER) + c
    mean = tl.load(inner, mask=known, other=0.0)
    rstd = inverse_deviation(tl.load(inner + channels, mask=known, other=0.0), EPS)
    reached = gradients + place_of(row + REACHED)
    to = gradients + place_of(row + INNER_GRADIENT)
    z1 = z + place_of(row + SOURCE)
    kernel = tl.load(row + KERNEL).to(tl.int32)
    dilation = tl.load(row + DILATION).to(tl.int32)
    padding = tl.load(row + PADDING).to(tl.int32)
    factors = weights + tl.load(row + SPATIAL)
    total = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((BLOCK,), tl.float64)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        n, y, x = split(p, height, width)
        found = spread_back(
            reached, factors, kernel, 1, dilation, padding, n, y, x, height, width, live, c,
            known, channels,
        )  # fmt: skip
        centred = load_pixels(z1, p.to(tl.int64), channels, c, live, known) - mean[None, :]
        found = through_relu(found, centred * rstd[None, :])
        store_pixels(to, p.to(tl.int64), channels, c, live, known, found)
        total += tl.sum(found, axis=0).to(tl.float64)
        here = live[:, None] & known[None, :]
        products += tl.sum(times(found, tl.where(here, centred, 0)), axis=0).to(tl.float64)
    partial = sums + tl.load(row + INNER_SUMS) + chunk * 2 * channels + c
    tl.store(partial, total, mask=known)
    tl.store(partial + channels, products, mask=known)


@triton.jit
def from_pool(
    row, z, gradients, kind, n, y, x, in_height, in_width, height, width, live, c, known, channels
):
    """Return what reaches a tile through a 3x3 pool."""
    reached = gradients + place_of(row + REACHED)
    position = z + place_of(row + POSITION)
    stride = tl.load(row + STRIDE).to(tl.int32)
    total = tl.zeros((n.shape[0], c.shape[0]), gradients.dtype.element_ty)
    for tap in range(0, 9):
        at, there = outputs_of(n, y, x, tap // 3 - 1, tap % 3 - 1, stride, height, width, live)
        values = load_pixels(reached, at, channels, c, there, known)
        if kind == AVERAGE:
            # The window starts a pixel before (y, x) - tap; cells outside do not count.
            top = y - tap // 3
            left = x - tap % 3
            rows = tl.minimum(top + 3, in_height) - tl.maximum(top, 0)
            columns = tl.minimum(left + 3, in_width) - tl.maximum(left, 0)
            count = tl.maximum(rows * columns, 1).to(values.dtype)
            total += values / count[:, None]
        else:
            winner = load_pixels(position, at, channels, c, there, known)
            total += tl.where(there[:, None] & (winner == tap), values, 0)
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
def reach_states(
    table,
    layers,
    states,
    z,
    gradients,
    weights,
    p_weights,
    g_weights,
    operations,
    in_pixels,
    node_pixels,
    node_states,
    in_height,
    in_width,
    height,
    width,
    channels,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to the gradients of states.

    Given:
        table: of `Group`.
        layers: of `Layer`, the groups' rows.
        states: all states.
        z: of all candidates, for the pools' winners.
        gradients: all of them; read and written.
        weights: flat.
        p_weights: (edges, operations).
        g_weights: (edges,) or None.
        operations: columns of p.
        in_pixels: of an input state.
        node_pixels: of a node.
        node_states: where nodes begin among the states.
        in_height: of an input state.
        in_width: of an input state.
        height: of a node.
        width: of a node.
        channels: that candidates see.
        SHUFFLED: K.
        HALVES: whether FactorizedReduce is among the rows, with a row for each half of z.
    """
    group = table + tl.program_id(1) * GROUP
    state = place_of(group + GROUP_STATE)
    is_node = state >= node_states
    pixels = tl.where(is_node, node_pixels, in_pixels)
    own_height = tl.where(is_node, height, in_height)
    own_width = tl.where(is_node, width, in_width)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    live = p < pixels
    at = p.to(tl.int64)
    n, y, x = split(p, own_height, own_width)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    dtype: tl.constexpr = gradients.dtype.element_ty
    to = gradients + place_of(group + GROUP_GRADIENT)
    shuffled = tl.load(group + GROUP_SHUFFLED).to(tl.int32)
    first = layers + tl.load(group + GROUP_FIRST) * LAYER
    length = tl.load(group + GROUP_LENGTH).to(tl.int32)
    pitch = channels * SHUFFLED
    for part in tl.static_range(SHUFFLED):
        channel = part * channels + c
        rectified = tl.zeros((PIXELS, BLOCK), dtype)
        plain = tl.zeros((PIXELS, BLOCK), dtype)
        for index in range(0, length):
            row = first + index * LAYER
            kind = tl.load(row + KIND)
            stride = tl.load(row + STRIDE).to(tl.int32)
            gradient = gradients + place_of(row + GRADIENT)
            edge = tl.load(row + EDGE)
            if part > 0:
                if kind == BYPASS:
                    scale = tl.full((), 1, dtype)
                    if g_weights is not None:
                        scale = tl.load(g_weights + edge).to(dtype)
                    source = (n.to(tl.int64) * height + y // stride) * width + x // stride
                    values = load_pixels(gradient, source, pitch, channel, live, known)
                    if stride == 2:
                        wins = wins_bypass(
                            states + state, pitch, n, y, x, own_height, own_width, live, channel,
                            known,
                        )  # fmt: skip
                        values = tl.where(wins, values, 0)
                    plain += scale * values
            else:
                reached = gradients + place_of(row + REACHED)
                kernel = tl.load(row + KERNEL).to(tl.int32)
                dilation = tl.load(row + DILATION).to(tl.int32)
                padding = tl.load(row + PADDING).to(tl.int32)
                if kind == SEPARABLE:
                    rectified += spread_back(
                        reached, weights + tl.load(row + SPATIAL), kernel, stride, dilation,
                        padding, n, y, x, height, width, live, c, known, channels,
                    )  # fmt: skip
                elif kind == DENSE:
                    rectified += from_dense(
                        row, reached, weights, kernel, stride, padding, n, y, x, height, width,
                        live, c, known, channels, HALVES, DOT, PRECISION, BLOCK,
                    )  # fmt: skip
                elif (kind == MAXIMUM) | (kind == AVERAGE):
                    plain += from_pool(
                        row, z, gradients, kind, n, y, x, own_height, own_width, height, width,
                        live, c, known, channels,
                    )  # fmt: skip
                elif (kind == SKIP) | (kind == NOTHING):
                    scale = weight_of(
                        p_weights, g_weights, edge, tl.load(row + OPERATION), operations, dtype
                    )
                    source, there = outputs_of(n, y, x, 0, 0, stride, height, width, live)
                    values = scale * load_pixels(gradient, source, pitch, c, there, known)
                    plain += tl.where(kind == SKIP, values, values * 0)
        # A node's gradient has the order of channels before the shuffle.
        if SHUFFLED == 1:
            column = channel
        else:
            column = channel % shuffled * (pitch // shuffled) + channel // shuffled
        before = load_pixels(to, at, pitch, column, live, known)
        if part == 0:
            own = load_pixels(states + state, at, pitch, channel, live, known)
            plain += through_relu(rectified, own)
        store_pixels(to, at, pitch, column, live, known, before + plain)


@triton.jit
def from_dense(
    row,
    reached,
    weights,
    kernel,
    stride,
    padding,
    n,
    y,
    x,
    height,
    width,
    live,
    c,
    known,
    channels,
    HALVES: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return what reaches a tile through a dense convolution."""
    taps = kernel * kernel
    cout, column = columns_of(row, channels, HALVES)
    w = weights + tl.load(row + PRODUCT)
    total = tl.zeros((n.shape[0], BLOCK), reached.dtype.element_ty)
    for tap in range(0, taps):
        at, there = outputs_of(
            n, y, x, tap // kernel - padding, tap % kernel - padding, stride, height, width, live
        )
        for block in range(0, tl.cdiv(cout, BLOCK)):
            out = block * BLOCK + tl.arange(0, BLOCK)
            values = load_pixels(reached, at, channels, column + out, there, out < cout)
            share = tl.load(
                w + (out[:, None] * channels + c[None, :]) * taps + tap,
                mask=(out < cout)[:, None] & known[None, :],
                other=0.0,
            )
            total += product(values, share, DOT, PRECISION)
    return total


@triton.jit
def begin(
    table,
    gradient,
    gradient_strides,
    gradients,
    first_output,
    node_states,
    in_pixels,
    node_pixels,
    height,
    width,
    channels,
    SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write what reaches states from outside the cell.

    Given:
        table: of `Group`, one for every state.
        gradient: of the output, any type and strides.
        first_output: the first state that is part of the output.
        channels: of a state, all of them.
    """
    index = tl.program_id(1)
    group = table + index * GROUP
    is_node = place_of(group + GROUP_STATE) >= node_states
    pixels = tl.where(is_node, node_pixels, in_pixels)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    live = p < pixels
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    values = tl.zeros((PIXELS, BLOCK), gradients.dtype.element_ty)
    if index >= first_output:
        n, y, x = split(p, height, width)
        # Column c is channel (c % (C / K)) * K + c // (C / K) of the shuffled node.
        mixed = channels // SHUFFLED
        channel = (index - first_output) * channels + c % mixed * SHUFFLED + c // mixed
        at = (
            n.to(tl.int64) * gradient_strides[0]
            + y.to(tl.int64) * gradient_strides[2]
            + x.to(tl.int64) * gradient_strides[3]
        )
        values = tl.load(
            gradient + at[:, None] + channel[None, :].to(tl.int64) * gradient_strides[1],
            mask=live[:, None] & known[None, :],
            other=0.0,
        ).to(values.dtype)
    to = gradients + place_of(group + GROUP_GRADIENT)
    store_pixels(to, p.to(tl.int64), channels, c, live, known, values)
