"""Forward pass of what lies between states: layers and pools, then the sum of a node.

convolve: grid (chunks, rows, blocks of output channels). A program takes a chunk of the output's
pixels tile by tile. A depthwise result, (PIXELS, BLOCK) of the input's channels, is summed tap by
tap in registers and goes from there into the product with the pointwise weights; it is never
stored. A dense convolution is a product per tap. Neighbours' reads of the same pixels meet in the
first cache. Program (chunk, row) leaves the chunk's moments of z behind.

mix: grid (tiles of pixels, blocks of channels). A program owns a tile of the node, reads the z of
all entering edges once, and writes the node, shuffled, as a state and, if it belongs to it, into
the output.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    beats,
    load_pixels,
    merge_moments,
    moments_of_tile,
    norm,
    place_of,
    product,
    rectified,
    split,
    store_pixels,
)
from da2s_fast.kernels.cell.rows import (
    AVERAGE,
    BYPASS,
    COLUMN,
    COUT,
    DILATION,
    EDGE,
    FROZEN,
    HEIGHT,
    INNER,
    INNER_FROZEN,
    INNER_MOMENTS,
    KERNEL,
    KIND,
    LAYER,
    MAXIMUM,
    MOMENTS,
    NOTHING,
    OPERATION,
    PADDING,
    POSITION,
    PRODUCT,
    SEPARABLE,
    SKIP,
    SOURCE,
    SPATIAL,
    STATISTICS,
    STRIDE,
    WIDTH,
    Z,
)


@triton.jit
def tap_values(x, pitch, n, y, c_x, height, width, live, channel, known):
    """Load one tap of a window, (pixels, channels), and where it is inside the image."""
    inside = live & (y >= 0) & (y < height) & (c_x >= 0) & (c_x < width)
    at = (n.to(tl.int64) * height + y) * width + c_x
    return load_pixels(x, at, pitch, channel, inside, known), inside


@triton.jit
def columns_of(row, channels, HALVES: tl.constexpr):
    """Return how many channels of z a row has and the first; all where no row has half of them."""
    if HALVES:
        cout = tl.load(row + COUT).to(tl.int32)
        column = tl.load(row + COLUMN).to(tl.int32)
    else:
        cout = channels
        column = 0
    return cout, column


@triton.jit
def layer_input(
    x, pitch, n, y, c_x, height, width, live, channel, known, mean, rstd, SECOND: tl.constexpr
):
    """Load one tap of a layer's input behind its ReLU; second layers normalize it first."""
    values, inside = tap_values(x, pitch, n, y, c_x, height, width, live, channel, known)
    if SECOND:
        values = tl.where(inside[:, None], (values - mean[None, :]) * rstd[None, :], 0)
    return rectified(values)


@triton.jit
def pooled(x, pitch, n, y, c_x, height, width, live, channel, known, AVERAGES: tl.constexpr):
    """Return a 3x3 window's average or maximum, and which tap the maximum was.

    As in PyTorch: the first of equal maxima, the last NaN; averages are over what is inside.
    """
    shape: tl.constexpr = (n.shape[0], channel.shape[0])
    zero = tl.zeros(shape, x.dtype.element_ty)
    result = zero if AVERAGES else zero - float("inf")
    winner = zero - 1
    count = tl.zeros((n.shape[0],), tl.int32)
    for tap in range(0, 9):
        values, inside = tap_values(
            x, pitch, n, y - 1 + tap // 3, c_x - 1 + tap % 3, height, width, live, channel, known
        )
        if AVERAGES:
            result += values
            count += inside.to(tl.int32)
        else:
            wins = beats(values, result) | (winner < 0)
            wins = wins & inside[:, None]
            result = tl.where(wins, values, result)
            winner = tl.where(wins, tap, winner)
    if AVERAGES:
        result = result / tl.maximum(count, 1).to(x.dtype.element_ty)[:, None]
    return result, winner


@triton.jit
def inner_norm(
    row,
    statistics,
    moments,
    c,
    known,
    channels,
    pixels,
    tiles_per_chunk,
    KNOWN: tl.constexpr,
    EPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Return mean and 1 / deviation of the norm in front of a second layer.

    The program of the first chunk and block of outputs writes them down.
    """
    return norm(
        statistics, tl.load(row + INNER), KNOWN or tl.load(row + INNER_FROZEN) != 0,
        moments + tl.load(row + INNER_MOMENTS), c, known, channels, pixels, tiles_per_chunk,
        (tl.program_id(0) == 0) & (tl.program_id(2) == 0), EPS, PIXELS, CHUNKS,
    )  # fmt: skip


@triton.jit
def convolve(
    table,
    source,
    z,
    weights,
    moments,
    statistics,
    pixels,
    height,
    width,
    channels,
    pitch,
    tiles_per_chunk,
    HALVES: tl.constexpr,
    SECOND: tl.constexpr,
    KNOWN: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write z of layers and pools, (pixels, channels) each, and their moments.

    Given:
        table: of `Layer`.
        source: the states, or the z for second layers.
        z: the z.
        weights: flat.
        moments: partial, float64.
        statistics: of all norms; those in front of second layers are completed.
        pixels: of the output.
        height: of the output.
        width: of the output.
        channels: that candidates see.
        pitch: channels of the input, all of them.
        tiles_per_chunk: of output pixels.
        HALVES: whether FactorizedReduce is among the rows, with a row for each half of z.
        SECOND: second layers of separable convolutions, which normalize their input.
        KNOWN: all statistics are known, nobody needs the moments.
    """
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    kind = tl.load(row + KIND)
    x_base = source + place_of(row + SOURCE)
    in_height = tl.load(row + HEIGHT).to(tl.int32)
    in_width = tl.load(row + WIDTH).to(tl.int32)
    stride = tl.load(row + STRIDE).to(tl.int32)
    dilation = tl.load(row + DILATION).to(tl.int32)
    kernel = tl.load(row + KERNEL).to(tl.int32)
    padding = tl.load(row + PADDING).to(tl.int32)
    cout, column = columns_of(row, channels, HALVES)
    spatial = weights + tl.load(row + SPATIAL)
    w = weights + tl.load(row + PRODUCT)
    z_base = z + place_of(row + Z)
    dtype = z.dtype.element_ty
    taps = kernel * kernel
    out = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    out_known = out < cout
    count = tl.zeros((), tl.float64)
    mean = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    first_mean = tl.zeros((BLOCK,), dtype)
    first_rstd = first_mean
    if SECOND:
        c = tl.arange(0, BLOCK)
        first_mean, first_rstd = inner_norm(
            row, statistics, moments, c, c < channels, channels, pixels, tiles_per_chunk, KNOWN,
            EPS, PIXELS, CHUNKS,
        )  # fmt: skip
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        n, y, x = split(p, height, width)
        total = tl.zeros((PIXELS, BLOCK), dtype)
        if kind == MAXIMUM:
            total, winner = pooled(
                x_base, pitch, n, y * stride, x * stride, in_height, in_width, live, out,
                out_known, False,
            )  # fmt: skip
            position = z + place_of(row + POSITION)
            store_pixels(position, p.to(tl.int64), channels, out, live, out_known, winner)
        elif kind == AVERAGE:
            total, _ = pooled(
                x_base, pitch, n, y * stride, x * stride, in_height, in_width, live, out,
                out_known, True,
            )  # fmt: skip
        else:
            for block in range(0, tl.cdiv(channels, BLOCK)):
                c = block * BLOCK + tl.arange(0, BLOCK)
                known = c < channels
                its_mean, rstd = first_mean, first_rstd
                if SECOND and block > 0:
                    its_mean, rstd = inner_norm(
                        row, statistics, moments, c, known, channels, pixels, tiles_per_chunk,
                        KNOWN, EPS, PIXELS, CHUNKS,
                    )  # fmt: skip
                between = tl.zeros((PIXELS, BLOCK), dtype)
                for tap in range(0, taps):
                    values = layer_input(
                        x_base, pitch, n, y * stride - padding + tap // kernel * dilation,
                        x * stride - padding + tap % kernel * dilation, in_height, in_width,
                        live, c, known, its_mean, rstd, SECOND,
                    )  # fmt: skip
                    if kind == SEPARABLE:
                        factor = tl.load(spatial + c * taps + tap, mask=known, other=0.0)
                        between += values * factor[None, :]
                    else:
                        share = tl.load(
                            w + (out[None, :] * channels + c[:, None]) * taps + tap,
                            mask=known[:, None] & out_known[None, :],
                            other=0.0,
                        )
                        total += product(values, share, DOT, PRECISION)
                if kind == SEPARABLE:
                    share = tl.load(
                        w + out[None, :] * channels + c[:, None],
                        mask=known[:, None] & out_known[None, :],
                        other=0.0,
                    )
                    total += product(between, share, DOT, PRECISION)
        store_pixels(z_base, p.to(tl.int64), channels, column + out, live, out_known, total)
        if not KNOWN:
            more, its_mean, its_squares = moments_of_tile(total, live)
            count, mean, squares = merge_moments(count, mean, squares, more, its_mean, its_squares)
    if not KNOWN:
        moment = moments + tl.load(row + MOMENTS) + chunk * 2 * channels + column + out
        tl.store(moment, mean, mask=out_known)
        tl.store(moment + channels, squares, mask=out_known)


@triton.jit
def candidate(
    row, states, z, n, y, x, p, live, channel, known, channels, pitch, HALVES: tl.constexpr
):
    """Load a candidate's value before its norm, (pixels, channels); 0 where it has no channels."""
    kind = tl.load(row + KIND)
    if HALVES:
        cout, column = columns_of(row, channels, HALVES)
        known = known & (channel >= column) & (channel < column + cout)
    if (kind == SKIP) | (kind == NOTHING):
        stride = tl.load(row + STRIDE).to(tl.int32)
        values, _ = tap_values(
            states + place_of(row + SOURCE), pitch, n, y * stride, x * stride,
            tl.load(row + HEIGHT).to(tl.int32), tl.load(row + WIDTH).to(tl.int32), live, channel,
            known,
        )  # fmt: skip
        if kind == NOTHING:
            values = values * 0
    else:
        values = load_pixels(z + place_of(row + Z), p.to(tl.int64), channels, channel, live, known)
    return values, known


@triton.jit
def bypassed(row, states, n, y, x, live, channel, known, pitch):
    """Load what goes past the candidates: the state's pixel, or the maximum of 2x2 at stride 2."""
    base = states + place_of(row + SOURCE)
    height = tl.load(row + HEIGHT).to(tl.int32)
    width = tl.load(row + WIDTH).to(tl.int32)
    stride = tl.load(row + STRIDE).to(tl.int32)
    result, _ = tap_values(
        base, pitch, n, y * stride, x * stride, height, width, live, channel, known
    )
    if stride == 2:
        for tap in range(1, 4):
            values, inside = tap_values(
                base, pitch, n, y * 2 + tap // 2, x * 2 + tap % 2, height, width, live, channel,
                known,
            )  # fmt: skip
            wins = beats(values, result) & inside[:, None]
            result = tl.where(wins, values, result)
    return result


@triton.jit
def mix(
    table,
    rows,
    p_weights,
    g_weights,
    operations,
    states,
    z,
    moments,
    statistics,
    to_state,
    output,
    output_strides,
    pixels,
    height,
    width,
    channels,
    tiles_per_chunk,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    HAS_OUTPUT: tl.constexpr,
    KNOWN: tl.constexpr,
    EPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNK_PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a node: the sum of its candidates, normalized, weighed; bypassed channels between.

    Given:
        table: of `Layer`: the candidates, then, with partial channels, a bypass per edge.
        rows: how many.
        p_weights: (edges, operations).
        g_weights: (edges,) or None.
        operations: columns of p.
        states: all states.
        z: of all candidates.
        moments: of all candidates.
        statistics: of all norms; completed.
        to_state: where the node lies among the states.
        output: where the node's channels begin in the output, any type.
        output_strides: of image, channel, row, column.
        pixels: of the node.
        height: of the node.
        width: of the node.
        channels: that candidates see.
        tiles_per_chunk: of the launches that wrote the moments, tiles of CHUNK_PIXELS.
        SHUFFLED: K.
        HALVES: as for `convolve`.
    """
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    live = p < pixels
    n, y, x = split(p, height, width)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    dtype = states.dtype.element_ty
    # Image by image, channels and pixels of one apart: any layout of the output.
    out_at = (
        n.to(tl.int64) * output_strides[0]
        + y.to(tl.int64) * output_strides[2]
        + x.to(tl.int64) * output_strides[3]
    )
    for part in tl.static_range(SHUFFLED):
        total = tl.zeros((PIXELS, BLOCK), dtype)
        for index in range(0, rows):
            row = table + index * LAYER
            kind = tl.load(row + KIND)
            edge = tl.load(row + EDGE)
            if g_weights is not None:
                scale = tl.load(g_weights + edge).to(dtype)
            else:
                scale = tl.full((), 1, dtype)
            if (kind == BYPASS) & (part > 0):
                total += scale * bypassed(
                    row, states, n, y, x, live, part * channels + c, known, channels * SHUFFLED
                )
            if (kind != BYPASS) & (part == 0):
                scale = scale * tl.load(
                    p_weights + edge * operations + tl.load(row + OPERATION)
                ).to(dtype)
                values, own = candidate(
                    row,
                    states,
                    z,
                    n,
                    y,
                    x,
                    p,
                    live,
                    c,
                    known,
                    channels,
                    channels * SHUFFLED,
                    HALVES,
                )
                place = tl.load(row + STATISTICS)
                if place >= 0:
                    mean, rstd = norm(
                        statistics, place, KNOWN or tl.load(row + FROZEN) != 0,
                        moments + tl.load(row + MOMENTS), c, own, channels, pixels,
                        tiles_per_chunk, tl.program_id(0) == 0, EPS, CHUNK_PIXELS, CHUNKS,
                    )  # fmt: skip
                    values = (values - mean[None, :]) * rstd[None, :]
                    values = tl.where(own[None, :], values, 0)
                total += scale * values
        column = c * SHUFFLED + part
        store_pixels(to_state, p.to(tl.int64), channels * SHUFFLED, column, live, known, total)
        if HAS_OUTPUT:
            tl.store(
                output + out_at[:, None] + column[None, :].to(tl.int64) * output_strides[1],
                total.to(output.dtype.element_ty),
                mask=live[:, None] & known[None, :],
            )
