"""Layers and pools of the forward pass.

convolve: grid (chunks, rows, blocks of output channels). A program takes a chunk of the output's
pixels tile by tile. A depthwise result, (PIXELS, BLOCK) of the input's channels, is summed tap by
tap in registers and goes from there into the product with the pointwise weights; it is never
stored. A dense convolution is a product per tap. Neighbours' reads of the same pixels meet in the
first cache. Program (chunk, row) leaves the chunk's moments of z behind.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    chunk_sizes,
    merge_moments,
    moments_of_tile,
    norm,
    place_of,
    product,
    share_of,
    split,
    store_pixels,
)
from da2s_fast.kernels.cell.rows import (
    AVERAGE,
    INNER,
    INNER_FROZEN,
    INNER_MOMENTS,
    KIND,
    LAYER,
    MAXIMUM,
    MOMENTS,
    POSITION,
    PRODUCT,
    SEPARABLE,
    SOURCE,
    SPATIAL,
    Z,
)
from da2s_fast.kernels.cell.window import columns_of, layer_input, pooled, window_of


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
        moments + tl.load(row + INNER_MOMENTS), c, known, channels,
        chunk_sizes(pixels, tiles_per_chunk, PIXELS, CHUNKS), share_of(pixels),
        (tl.program_id(0) == 0) & (tl.program_id(2) == 0), EPS, CHUNKS,
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
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    pitch,
    tiles_per_chunk,
    HALVES: tl.constexpr,
    DENSES: tl.constexpr,
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
        DENSES: whether dense convolutions are among the rows.
        SECOND: second layers of separable convolutions, which normalize their input.
        KNOWN: all statistics are known, nobody needs the moments.
    """
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    kind = tl.load(row + KIND)
    x_base = source + place_of(row + SOURCE)
    in_height, in_width, stride, dilation, kernel, padding = window_of(row)
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
        if not SECOND and kind == MAXIMUM:
            total, winner = pooled(
                x_base, pitch, n, y * stride, x * stride, in_height, in_width, live, out,
                out_known, False,
            )  # fmt: skip
            position = z + place_of(row + POSITION)
            store_pixels(position, p.to(tl.int64), channels, out, live, out_known, winner)
        elif not SECOND and kind == AVERAGE:
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
                    if not DENSES or kind == SEPARABLE:
                        factor = tl.load(spatial + c * taps + tap, mask=known, other=0.0)
                        between += values * factor[None, :]
                    else:
                        share = tl.load(
                            w + (out[None, :] * channels + c[:, None]) * taps + tap,
                            mask=known[:, None] & out_known[None, :],
                            other=0.0,
                        )
                        total += product(values, share, DOT, PRECISION)
                if not DENSES or kind == SEPARABLE:
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
