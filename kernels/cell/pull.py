"""From the gradient behind a norm to the one before the layer's product, and the layer's weights.

A program works on a chunk of whole images, tile by tile, in registers:

- Depthwise and pointwise: dz times the pointwise weights is the gradient of the depthwise output,
  which is written for the neighbours that gather it. Where weights want gradients, the depthwise
  output is computed again next to it, tap by tap, and the same loads give the depthwise weights'
  gradient.
- Dense: only the weights' gradient, one program for every tap; whoever gathers dz computes it.

With more channels than a block, programs of the first block of outputs go over all of them and
write; the others only work on their block of the weights' gradient.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    inverse_deviation,
    load_pixels,
    place_of,
    product,
    split,
    store_pixels,
    times,
)
from da2s_fast.kernels.cell.norm_backward import before_norm, coefficients, is_given
from da2s_fast.kernels.cell.rows import (
    GRADIENT,
    GRADIENT_PITCH,
    INNER,
    PRODUCT,
    REACHED,
    SOURCE,
    SPATIAL,
    Z,
)
from da2s_fast.kernels.cell.window import columns_of, layer_input, window_of


@triton.jit
def pull_separable(
    row,
    source,
    z,
    gradients,
    weights,
    to_weights,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    first,
    last,
    pixels,
    height,
    width,
    channels,
    pitch,
    i,
    j,
    SHUFFLED: tl.constexpr,
    SECOND: tl.constexpr,
    SEVERAL: tl.constexpr,
    WEIGHTS: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Write what was reached, if j is 0, and the chunk's weight gradients, of block (j, i).

    Given:
        row: of `Layer`.
        source: the states, or the z for second layers.
        to_weights: this chunk's weight gradients.
        first: pixel of the chunk.
        last: pixel behind it.
        i: block of input channels.
        j: block of output channels.
        SEVERAL: whether there are more channels than a block has.
        TAPS: a power of two, no less than the taps of any depthwise convolution.
    """
    dtype: tl.constexpr = z.dtype.element_ty
    x_base = source + place_of(row + SOURCE)
    in_height, in_width, stride, dilation, kernel, padding = window_of(row)
    taps = kernel * kernel
    spatial = tl.load(row + SPATIAL)
    w = tl.load(row + PRODUCT)
    z_base = z + place_of(row + Z)
    gradient = gradients + place_of(row + GRADIENT)
    # Gradients of nodes have all channels, those of inner norms the ones that candidates see.
    gradient_pitch = channels if SHUFFLED == 1 else tl.load(row + GRADIENT_PITCH)
    reached = gradients + place_of(row + REACHED)
    given = is_given(row)
    c = i * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    out = j * BLOCK + tl.arange(0, BLOCK)
    own = out < channels
    scale, mean, shift, slope = coefficients(
        row, p_weights, g_weights, operations, statistics, sums, out, own, channels, pixels, EPS,
        CHUNKS,
    )  # fmt: skip
    inner_mean = tl.zeros((BLOCK,), dtype)
    inner_rstd = inner_mean
    if SECOND:
        inner = statistics + tl.load(row + INNER) + c
        inner_mean = tl.load(inner, mask=known, other=0.0)
        inner_rstd = inverse_deviation(tl.load(inner + channels, mask=known, other=0.0), EPS)
    by_product = tl.zeros((BLOCK, BLOCK), dtype)
    by_taps = tl.zeros((TAPS, BLOCK), dtype)
    for start in range(first, last, PIXELS):
        p = start + tl.arange(0, PIXELS)
        live = p < last
        at = p.to(tl.int64)
        n, y, x = split(p, height, width)
        dz = before_norm(
            load_pixels(gradient, at, gradient_pitch, out, live, own),
            load_pixels(z_base, at, channels, out, live, own),
            live, own, scale, mean, shift, slope, given,
        )  # fmt: skip
        total = tl.zeros((PIXELS, BLOCK), dtype)
        if j == 0:
            total = product(dz, pointwise(weights + w, out, c, channels), DOT, PRECISION)
            if SEVERAL:
                for other in range(1, tl.cdiv(channels, BLOCK)):
                    its_out = other * BLOCK + tl.arange(0, BLOCK)
                    more = its_out < channels
                    scale_, mean_, shift_, slope_ = coefficients(
                        row, p_weights, g_weights, operations, statistics, sums, its_out, more,
                        channels, pixels, EPS, CHUNKS,
                    )  # fmt: skip
                    its = before_norm(
                        load_pixels(gradient, at, gradient_pitch, its_out, live, more),
                        load_pixels(z_base, at, channels, its_out, live, more),
                        live, more, scale_, mean_, shift_, slope_, given,
                    )  # fmt: skip
                    share = pointwise(weights + w, its_out, c, channels)
                    total += product(its, share, DOT, PRECISION)
            store_pixels(reached, at, channels, c, live, known, total)
        if WEIGHTS:
            between = tl.zeros((PIXELS, BLOCK), dtype)
            for tap in range(0, taps):
                values = layer_input(
                    x_base, pitch, n, y * stride - padding + tap // kernel * dilation,
                    x * stride - padding + tap % kernel * dilation, in_height, in_width,
                    live, c, known, inner_mean, inner_rstd, SECOND,
                )  # fmt: skip
                factor = tl.load(weights + spatial + c * taps + tap, mask=known, other=0.0)
                between += values * factor[None, :]
                if j == 0:
                    share = tl.sum(times(total, values), axis=0)
                    here = tl.arange(0, TAPS)[:, None] == tap
                    by_taps += tl.where(here, share[None, :], 0)
            by_product += product(tl.trans(dz), between, DOT, PRECISION)
    if WEIGHTS:
        tl.store(
            to_weights + w + out[:, None] * channels + c[None, :],
            by_product,
            mask=own[:, None] & known[None, :],
        )
        if j == 0:
            tap = tl.arange(0, TAPS)[:, None]
            tl.store(
                to_weights + spatial + c[None, :] * taps + tap,
                by_taps,
                mask=(tap < taps) & known[None, :],
            )


@triton.jit
def pull_dense(
    row,
    states,
    z,
    gradients,
    to_weights,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    first,
    last,
    pixels,
    height,
    width,
    channels,
    pitch,
    i,
    j,
    tap,
    HALVES: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the chunk's weight gradients of block (j, i) and a tap; arguments as above."""
    dtype: tl.constexpr = z.dtype.element_ty
    in_height, in_width, stride, _, kernel, padding = window_of(row)
    taps = kernel * kernel
    if tap < taps:
        x_base = states + place_of(row + SOURCE)
        cout, column = columns_of(row, channels, HALVES)
        z_base = z + place_of(row + Z)
        gradient = gradients + place_of(row + GRADIENT)
        given = is_given(row)
        c = i * BLOCK + tl.arange(0, BLOCK)
        known = c < channels
        out = j * BLOCK + tl.arange(0, BLOCK)
        own = out < cout
        nothing = tl.zeros((BLOCK,), dtype)
        scale, mean, shift, slope = coefficients(
            row, p_weights, g_weights, operations, statistics, sums, column + out, own, channels,
            pixels, EPS, CHUNKS,
        )  # fmt: skip
        total = tl.zeros((BLOCK, BLOCK), dtype)
        for start in range(first, last, PIXELS):
            p = start + tl.arange(0, PIXELS)
            live = p < last
            at = p.to(tl.int64)
            n, y, x = split(p, height, width)
            dz = before_norm(
                load_pixels(gradient, at, pitch, column + out, live, own),
                load_pixels(z_base, at, channels, column + out, live, own),
                live, own, scale, mean, shift, slope, given,
            )  # fmt: skip
            values = layer_input(
                x_base, pitch, n, y * stride - padding + tap // kernel,
                x * stride - padding + tap % kernel, in_height, in_width, live, c, known, nothing,
                nothing, False,
            )  # fmt: skip
            total += product(tl.trans(dz), values, DOT, PRECISION)
        to = to_weights + tl.load(row + PRODUCT) + tap
        tl.store(
            to + (out[:, None] * channels + c[None, :]) * taps,
            total,
            mask=own[:, None] & known[None, :],
        )


@triton.jit
def pointwise(weights, out, c, channels):
    """Load pointwise weights, (outputs, inputs)."""
    return tl.load(
        weights + out[:, None] * channels + c[None, :],
        mask=(out < channels)[:, None] & (c < channels)[None, :],
        other=0.0,
    )
