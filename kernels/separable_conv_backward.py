"""Triton kernels of separable_conv's backward, launch by launch.

pull: a program takes a chunk of the output's pixels and BLOCK channels of the input. The gradient
behind the product with the pointwise weights is that of the depthwise result; it is written, in the
type of sums, for the neighbours that gather it. Where weights want gradients the depthwise result
is computed again next to it, and the same loads give the depthwise weights' gradient. Sums over a
chunk are in the type of sums.

spread: a program takes pixels and channels of x and gathers, tap by tap, what the outputs whose
windows hold them were handed: no atomics.

collect: adds the chunks' sums, in order and in float64.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import product, store_pixels, through_relu, times
from da2s_fast.kernels.cell.finish import store_sum
from da2s_fast.kernels.cell.gather import spread_back
from da2s_fast.kernels.cell.prepare import load_input
from da2s_fast.kernels.separable_conv import load_pointwise, load_tap, pixels_of, store_output


@triton.jit
def pull(
    grad,
    grad_strides,
    x,
    x_strides,
    in_size,
    spatial,
    channel,
    reached,
    spatial_parts,
    channel_parts,
    images,
    height,
    width,
    channels,
    outs,
    stride,
    padding,
    dilation,
    tiles_per_chunk,
    SEVERAL: tl.constexpr,
    KERNEL: tl.constexpr,
    TAPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTS: tl.constexpr,
):
    """Write the gradient of the depthwise result, and sums for those of weights, as asked for.

    Grid: chunks; blocks of input channels, times blocks of output channels for channel_parts.
    Programs of the first block of output channels go over all of them; the others only work on
    their part of the pointwise weights' gradient. Other arguments are those of `forward`.

    Given:
        grad: of the output, (images, outs, height, width).
        grad_strides: of its four dimensions.
        reached: (pixels of all images, channels), or None.
        spatial_parts: (chunks, channels, KERNEL * KERNEL), or None.
        channel_parts: (chunks, outs, channels), or None.
        tiles_per_chunk: of PIXELS pixels of the output each.
        SEVERAL: whether there are more output channels than OUTS.
        TAPS: a power of two, no less than KERNEL * KERNEL.
    """
    chunk = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK)
    i = tl.program_id(1) % blocks
    j = tl.program_id(1) // blocks
    c = i * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    out = j * OUTS + tl.arange(0, OUTS)
    size = (height, width)
    share = load_pointwise(channel, out, c, outs, channels, SUM)
    by_product = tl.zeros((OUTS, BLOCK), SUM)
    by_taps = tl.zeros((TAPS, BLOCK), SUM)
    for step in range(0, tiles_per_chunk):
        tile = tl.cast(chunk, tl.int64) * tiles_per_chunk + step
        n, y, x_ = pixels_of(tile, height, width, PIXELS)
        live = n < images
        g = load_input(grad, grad_strides, size, n, y, x_, out, live, out < outs, SUM)
        total = tl.zeros((PIXELS, BLOCK), SUM)
        if (reached is not None or spatial_parts is not None) and j == 0:
            total = product(g, share, DOT, PRECISION)
            if SEVERAL:
                for block in range(1, tl.cdiv(outs, OUTS)):
                    more = block * OUTS + tl.arange(0, OUTS)
                    others = load_input(
                        grad, grad_strides, size, n, y, x_, more, live, more < outs, SUM
                    )
                    total += product(
                        others, load_pointwise(channel, more, c, outs, channels, SUM), DOT,
                        PRECISION,
                    )  # fmt: skip
            if reached is not None:
                at = tile * PIXELS + tl.arange(0, PIXELS)
                store_pixels(reached, at, channels, c, live, known, total)
        if spatial_parts is not None or channel_parts is not None:
            between = tl.zeros((PIXELS, BLOCK), SUM)
            for tap in range(0, KERNEL * KERNEL):
                values, factor = load_tap(
                    x, x_strides, in_size, spatial, n, y * stride - padding, x_ * stride - padding,
                    tap, dilation, c, live, known, KERNEL, SUM,
                )  # fmt: skip
                between += values * factor[None, :]
                if spatial_parts is not None and j == 0:
                    found = tl.sum(times(total, values), axis=0)
                    by_taps += tl.where(tl.arange(0, TAPS)[:, None] == tap, found[None, :], 0)
            if channel_parts is not None:
                by_product += product(tl.trans(g), between, DOT, PRECISION)
    if channel_parts is not None:
        to = channel_parts + tl.cast(chunk, tl.int64) * outs * channels
        tl.store(
            to + out[:, None].to(tl.int64) * channels + c[None, :],
            by_product,
            mask=(out < outs)[:, None] & known[None, :],
        )
    if spatial_parts is not None and j == 0:
        tap = tl.arange(0, TAPS)[:, None]
        to = spatial_parts + tl.cast(chunk, tl.int64) * channels * (KERNEL * KERNEL)
        tl.store(
            to + c[None, :] * (KERNEL * KERNEL) + tap,
            by_taps,
            mask=(tap < KERNEL * KERNEL) & known[None, :],
        )


@triton.jit
def spread(
    x,
    x_strides,
    in_size,
    spatial,
    reached,
    to,
    to_strides,
    images,
    height,
    width,
    channels,
    stride,
    padding,
    dilation,
    ANY_STRIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    SUM: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of x. Grid: tiles of its pixels, blocks of channels.

    Args as for `pull`, the gradient, to, with its strides, and ANY_STRIDE: whether stride is more
    than 2.
    """
    n, y, x_ = pixels_of(tl.program_id(0), in_size[0], in_size[1], PIXELS)
    live = n < images
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    found = spread_back(
        reached, spatial, KERNEL, stride, dilation, padding, n, y, x_, height, width, live, c,
        known, channels, ANY_STRIDE,
    )  # fmt: skip
    values = load_input(x, x_strides, in_size, n, y, x_, c, live, known, SUM)
    store_output(to, to_strides, n, y, x_, c, live, known, through_relu(found, values))


@triton.jit
def add_chunks(partial, to, numbers, block, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """Write a block of the sum over chunks of (CHUNKS, numbers), which are few: one by one."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    there = at < numbers
    total = tl.zeros((BLOCK,), tl.float64)
    for chunk in range(0, CHUNKS):
        place = partial + tl.full((), chunk, tl.int64) * numbers + at
        total += tl.load(place, mask=there, other=0.0).to(tl.float64)
    store_sum(to, at, there, total)


@triton.jit
def collect(
    spatial_parts,
    channel_parts,
    to_spatial,
    to_channel,
    spatial_numbers,
    channel_numbers,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the weights' gradients, each if it is not None.

    Grid: blocks of BLOCK numbers, first those of spatial weights.

    Given:
        spatial_parts: (CHUNKS, spatial_numbers).
        channel_parts: (CHUNKS, channel_numbers).
        to_spatial: their sum.
        to_channel: likewise.
        spatial_numbers: 0 where nobody asks.
        channel_numbers: likewise.
    """
    block = tl.program_id(0)
    first = tl.cdiv(spatial_numbers, BLOCK)
    if block < first:
        if to_spatial is not None:
            add_chunks(spatial_parts, to_spatial, spatial_numbers, block, CHUNKS, BLOCK)
    elif to_channel is not None:
        add_chunks(channel_parts, to_channel, channel_numbers, block - first, CHUNKS, BLOCK)
