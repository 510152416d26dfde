"""Preprocessing of a cell's inputs: ReLU and 1x1 convolution or FactorizedReduce, then the norm.

prepare: grid (chunks, parts, blocks of output channels). A program takes one chunk of the output's
pixels, tile by tile, and for each tile runs over the input's channels, BLOCK at a time: one load of
(pixels, BLOCK), from tensors of any strides and type, and one product with (BLOCK, BLOCK) weights.
It writes z and the chunk's moments.

settle: grid (tiles of pixels, inputs, blocks of channels). Normalizes z, or copies an input that is
a state itself, into the states. There are so many chunks that a program takes several tiles of
`prepare`'s: each merges all their moments.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    chunk_sizes,
    inverse_deviation,
    load_pixels,
    merge_moments,
    moments_around,
    moments_from,
    moments_of_tile,
    place_of,
    product,
    rectified,
    share_of,
    split,
    start_counters,
    store_pixels,
    written_down,
)
from da2s_fast.kernels.cell.rows import (
    PART,
    PART_CIN,
    PART_COLUMN,
    PART_COUT,
    PART_FROZEN,
    PART_MOMENTS,
    PART_POSITION,
    PART_PRODUCT,
    PART_SHIFT,
    PART_STATE,
    PART_STATISTICS,
    PART_STRIDE,
    PART_Z,
)


@triton.jit
def load_input(x, strides, size, n, y, c_x, channel, live, known, dtype: tl.constexpr):
    """Load (pixels, channels) of (N, C, H, W) with any strides; 0 outside the image.

    strides are those of the four dimensions, size is (height, width).
    """
    live = live & (y >= 0) & (y < size[0]) & (c_x >= 0) & (c_x < size[1])
    at = n.to(tl.int64) * strides[0] + y.to(tl.int64) * strides[2] + c_x.to(tl.int64) * strides[3]
    return tl.load(
        x + at[:, None] + channel[None, :].to(tl.int64) * strides[1],
        mask=live[:, None] & known[None, :],
        other=0.0,
    ).to(dtype)


@triton.jit
def load_either(
    inputs,
    strides,
    sizes,
    position,
    n,
    y,
    c_x,
    channel,
    live,
    known,
    dtype: tl.constexpr,
):
    """Load from the input of that position."""
    if len(inputs) == 1:
        return load_input(inputs[0], strides[0], sizes[0], n, y, c_x, channel, live, known, dtype)
    else:
        if position == 0:
            values = load_input(
                inputs[0], strides[0], sizes[0], n, y, c_x, channel, live, known, dtype
            )
        else:
            values = load_input(
                inputs[1], strides[1], sizes[1], n, y, c_x, channel, live, known, dtype
            )
        return values


@triton.jit
def part_of(row):
    """Return input channels, output channels, the first of them, stride, shift and position."""
    return (
        tl.load(row + PART_CIN).to(tl.int32),
        tl.load(row + PART_COUT).to(tl.int32),
        tl.load(row + PART_COLUMN).to(tl.int32),
        tl.load(row + PART_STRIDE).to(tl.int32),
        tl.load(row + PART_SHIFT).to(tl.int32),
        tl.load(row + PART_POSITION),
    )


@triton.jit
def prepare(
    table,
    inputs,
    strides,
    sizes,
    weights,
    scratch,
    moments,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    tiles_per_chunk,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the convolutions' outputs to scratch, (pixels, channels), and their moments."""
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * PART
    cin, cout, column, stride, shift, position = part_of(row)
    w = weights + tl.load(row + PART_PRODUCT)
    z = scratch + place_of(row + PART_Z)
    moment = moments + tl.load(row + PART_MOMENTS) + chunk * 2 * channels
    dtype = scratch.dtype.element_ty
    out = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    out_known = out < cout
    count = tl.zeros((), tl.float64)
    mean = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        n, y, x = split(p, height, width)
        total = tl.zeros((PIXELS, BLOCK), dtype)
        for block in range(0, tl.cdiv(cin, BLOCK)):
            c = block * BLOCK + tl.arange(0, BLOCK)
            known = c < cin
            values = load_either(
                inputs, strides, sizes, position,
                n, y * stride + shift, x * stride + shift, c, live, known, dtype,
            )  # fmt: skip
            share = tl.load(
                w + out[None, :] * cin + c[:, None],
                mask=known[:, None] & out_known[None, :],
                other=0.0,
            )
            total += product(rectified(values), share, DOT, PRECISION)
        store_pixels(z, p.to(tl.int64), channels, column + out, live, out_known, total)
        more, its_mean, its_squares = moments_of_tile(total, live)
        count, mean, squares = merge_moments(count, mean, squares, more, its_mean, its_squares)
    tl.store(moment + column + out, mean, mask=out_known)
    tl.store(moment + channels + column + out, squares, mask=out_known)


@triton.jit
def input_norm(
    row, statistics, moments, channel, known, width, pixels, chunk_pixels, EPS: tl.constexpr,
    CHUNKS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Return mean and 1 / sqrt(variance + eps) of an input's norm, see `common.norm`.

    An input has more chunks than registers hold at once: AT_ONCE are merged at a time. `norm`
    cannot do so without the sizes of each step, of which `mix` then spills.
    """
    at = statistics + tl.load(row + PART_STATISTICS) + channel
    if tl.load(row + PART_FROZEN) != 0:
        mean = tl.load(at, mask=known, other=0.0)
        variance = tl.load(at + width, mask=known, other=0.0)
    else:
        own = moments + tl.load(row + PART_MOMENTS)
        center = tl.load(own + channel, mask=known, other=0.0)
        weighed = tl.zeros((AT_ONCE, channel.shape[0]), tl.float64)
        squares = tl.zeros((AT_ONCE, channel.shape[0]), tl.float64)
        for first in range(0, CHUNKS, AT_ONCE):
            its_weighed, its_squares = moments_around(
                center, own + first * 2 * width, channel, known, width,
                chunk_sizes(pixels - first * chunk_pixels, chunk_pixels, 1, AT_ONCE), AT_ONCE,
            )  # fmt: skip
            weighed += its_weighed
            squares += its_squares
        exact_mean, exact_variance = moments_from(center, weighed, squares, share_of(pixels))
        mean, variance = written_down(
            exact_mean, exact_variance, at, known, width, tl.program_id(0) == 0
        )
    return mean, inverse_deviation(variance, EPS)


@triton.jit
def settle(
    table,
    inputs,
    strides,
    sizes,
    scratch,
    moments,
    statistics,
    states,
    counters,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    tiles_per_chunk,
    EPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNK_PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    MERGED: tl.constexpr,
    COUNTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the input states, and 0 to COUNTERS counters, if a kernel of csrc/cuda needs them.

    A chunk is tiles_per_chunk tiles of CHUNK_PIXELS, as in `prepare`; moments of MERGED chunks are
    read at once.
    """
    start_counters(counters, COUNTERS)
    row = table + tl.program_id(1) * PART
    to = states + place_of(row + PART_STATE)
    dtype = states.dtype.element_ty
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    live = p < pixels
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    if tl.load(row + PART_STATISTICS) < 0:
        n, y, x = split(p, height, width)
        position = tl.load(row + PART_POSITION)
        values = load_either(inputs, strides, sizes, position, n, y, x, c, live, known, dtype)
    else:
        mean, rstd = input_norm(
            row, statistics, moments, c, known, channels, pixels, tiles_per_chunk * CHUNK_PIXELS,
            EPS, CHUNKS, MERGED,
        )  # fmt: skip
        z = load_pixels(scratch + place_of(row + PART_Z), p.to(tl.int64), channels, c, live, known)
        values = (z - mean[None, :]) * rstd[None, :]
    store_pixels(to, p.to(tl.int64), channels, c, live, known, values)
