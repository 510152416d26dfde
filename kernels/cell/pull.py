"""From the gradient behind a norm to the one before the layer's product, and the layer's weights.

pull: grid (chunks, rows, taps x blocks of output channels x blocks of input channels). A program
takes a chunk of pixels, tile by tile. The norm's backward pass is an affine map of the gradient and
z in registers: dz = a (G - shift - (z - mean) slope).

- Depthwise and pointwise: dz times the pointwise weights is the gradient of the depthwise output,
  which is stored: its neighbours' programs would otherwise each compute it again, at taps times the
  cost. Where weights want gradients, the depthwise output is computed again next to it, tap by tap,
  and the same loads give the depthwise weights' gradient.
- Dense: dz is stored; one program for every tap of the weights' gradient.
- Pools: dz is stored.

With more channels than a block, programs of the first block of outputs go over all of them and
store; the others only work on their block of the weights' gradient.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    chunk_sum,
    inverse_deviation,
    load_pixels,
    place_of,
    product,
    split,
    store_pixels,
    times,
)
from da2s_fast.kernels.cell.forward import columns_of, layer_input
from da2s_fast.kernels.cell.rows import (
    DENSE,
    DILATION,
    EDGE,
    FROZEN,
    GRADIENT,
    GRADIENT_PITCH,
    HEIGHT,
    INNER,
    KERNEL,
    KIND,
    LAYER,
    OPERATION,
    PADDING,
    PRODUCT,
    REACHED,
    SEPARABLE,
    SOURCE,
    SPATIAL,
    STATISTICS,
    STRIDE,
    SUMS,
    WIDTH,
    Z,
)


@triton.jit
def weight_of(p_weights, g_weights, edge, operation, operations, dtype: tl.constexpr):
    """Return g_e p_eo."""
    scale = tl.load(p_weights + edge * operations + operation).to(dtype)
    if g_weights is not None:
        scale = scale * tl.load(g_weights + edge).to(dtype)
    return scale


@triton.jit
def coefficients(
    row,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    c,
    own,
    channels,
    pixels,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Return scale, mean, shift and slope of a norm's backward pass, per channel."""
    dtype: tl.constexpr = statistics.dtype.element_ty
    place = tl.load(row + STATISTICS)
    edge = tl.load(row + EDGE)
    scale = tl.full((c.shape[0],), 1, dtype)
    if edge >= 0:
        scale = scale * weight_of(
            p_weights, g_weights, edge, tl.load(row + OPERATION), operations, dtype
        )
    mean = tl.zeros((c.shape[0],), dtype)
    shift = mean
    slope = mean
    if place >= 0:
        mean = tl.load(statistics + place + c, mask=own, other=0.0)
        variance = tl.load(statistics + place + channels + c, mask=own, other=0.0)
        rstd = inverse_deviation(variance, EPS)
        scale = scale * rstd
        if tl.load(row + FROZEN) == 0:
            partial = sums + tl.load(row + SUMS)
            shift = (chunk_sum(partial, c, own, channels, CHUNKS) / pixels).to(dtype)
            products = chunk_sum(partial + channels, c, own, channels, CHUNKS)
            exact = rstd.to(tl.float64)
            slope = (products * exact * exact / pixels).to(dtype)
    return scale, mean, shift, slope


@triton.jit
def before_norm(gradient, z, live, own, scale, mean, shift, slope, given):
    """Return dL/dz, 0 where there is none. Where statistics are given, z has no part in it."""
    back = shift[None, :] + (z - mean[None, :]) * slope[None, :]
    dz = scale[None, :] * (gradient - tl.where(given, 0, back))
    return tl.where(live[:, None] & own[None, :], dz, 0)


@triton.jit
def pull(
    table,
    source,
    z,
    gradients,
    weights,
    weight_gradients,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    pixels,
    height,
    width,
    channels,
    pitch,
    weight_count,
    tiles_per_chunk,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    SECOND: tl.constexpr,
    WEIGHTS: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Write the gradients that were reached and the chunks' gradients of weights.

    Given:
        table: of `Layer`.
        source: the states, or the z for second layers.
        z: the z.
        gradients: all of them; read and written.
        weights: flat.
        weight_gradients: (chunks, weight_count).
        p_weights: (edges, operations).
        g_weights: (edges,) or None.
        operations: columns of p.
        statistics: of all norms.
        sums: of gradients, partial.
        pixels: of the output.
        height: of the output.
        width: of the output.
        channels: that candidates see.
        pitch: channels of the layers' input, all of them.
        SHUFFLED: K.
        HALVES: whether FactorizedReduce is among the rows, with a row for each half of z.
        SECOND: second layers of separable convolutions.
        WEIGHTS: whether weights want gradients.
        TAPS: a power of two, no less than the taps of any depthwise convolution.
    """
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    blocks = tl.cdiv(channels, BLOCK)
    i = tl.program_id(2) % blocks
    j = tl.program_id(2) // blocks % blocks
    tap_of_program = tl.program_id(2) // (blocks * blocks)
    kind = tl.load(row + KIND)
    kernel = tl.load(row + KERNEL).to(tl.int32)
    taps = kernel * kernel
    if tap_of_program >= tl.where(kind == DENSE, taps, 1):
        return
    x_base = source + place_of(row + SOURCE)
    in_height = tl.load(row + HEIGHT).to(tl.int32)
    in_width = tl.load(row + WIDTH).to(tl.int32)
    stride = tl.load(row + STRIDE).to(tl.int32)
    dilation = tl.load(row + DILATION).to(tl.int32)
    padding = tl.load(row + PADDING).to(tl.int32)
    cout, column = columns_of(row, channels, HALVES)
    spatial = tl.load(row + SPATIAL)
    w = tl.load(row + PRODUCT)
    z_base = z + place_of(row + Z)
    gradient = gradients + place_of(row + GRADIENT)
    # Gradients of nodes have all channels, those of inner norms the ones that candidates see.
    gradient_pitch = channels if SHUFFLED == 1 else tl.load(row + GRADIENT_PITCH)
    reached = gradients + place_of(row + REACHED)
    given = (tl.load(row + FROZEN) != 0) | (tl.load(row + STATISTICS) < 0)
    dtype: tl.constexpr = z.dtype.element_ty
    to_weights = weight_gradients + chunk.to(tl.int64) * weight_count
    c = i * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    out_of_block = j * BLOCK + tl.arange(0, BLOCK)
    scale, mean, shift, slope = coefficients(
        row, p_weights, g_weights, operations, statistics, sums, column + out_of_block,
        out_of_block < cout, channels, pixels, EPS, CHUNKS,
    )  # fmt: skip
    inner_mean = tl.zeros((BLOCK,), dtype)
    inner_rstd = inner_mean
    if SECOND:
        inner = statistics + tl.load(row + INNER) + c
        inner_mean = tl.load(inner, mask=known, other=0.0)
        inner_rstd = inverse_deviation(tl.load(inner + channels, mask=known, other=0.0), EPS)
    by_product = tl.zeros((BLOCK, BLOCK), dtype)
    by_taps = tl.zeros((TAPS, BLOCK), dtype)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        at = p.to(tl.int64)
        n, y, x = split(p, height, width)
        own = out_of_block < cout
        dz = before_norm(
            load_pixels(gradient, at, gradient_pitch, column + out_of_block, live, own),
            load_pixels(z_base, at, channels, column + out_of_block, live, own),
            live, own, scale, mean, shift, slope, given,
        )  # fmt: skip
        if kind == SEPARABLE:
            total = tl.zeros((PIXELS, BLOCK), dtype)
            if j == 0:
                total = product(
                    dz, pointwise(weights + w, out_of_block, c, channels, cout), DOT, PRECISION
                )
                for other in range(1, blocks):
                    out = other * BLOCK + tl.arange(0, BLOCK)
                    more = out < cout
                    scale_, mean_, shift_, slope_ = coefficients(
                        row, p_weights, g_weights, operations, statistics, sums, out, more,
                        channels, pixels, EPS, CHUNKS,
                    )  # fmt: skip
                    its = before_norm(
                        load_pixels(gradient, at, gradient_pitch, out, live, more),
                        load_pixels(z_base, at, channels, out, live, more),
                        live, more, scale_, mean_, shift_, slope_, given,
                    )  # fmt: skip
                    total += product(
                        its, pointwise(weights + w, out, c, channels, cout), DOT, PRECISION
                    )
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
        elif kind == DENSE:
            if (tap_of_program == 0) & (i == 0):
                store_pixels(reached, at, channels, column + out_of_block, live, own, dz)
            if WEIGHTS:
                values = layer_input(
                    x_base, pitch, n, y * stride - padding + tap_of_program // kernel * dilation,
                    x * stride - padding + tap_of_program % kernel * dilation, in_height,
                    in_width, live, c, known, inner_mean, inner_rstd, SECOND,
                )  # fmt: skip
                by_product += product(tl.trans(dz), values, DOT, PRECISION)
        elif i == 0:
            store_pixels(reached, at, channels, out_of_block, live, own, dz)
    if WEIGHTS:
        if (kind == SEPARABLE) | (kind == DENSE):
            step = tl.where(kind == DENSE, taps, 1)
            tl.store(
                to_weights
                + w
                + (out_of_block[:, None] * channels + c[None, :]) * step
                + tap_of_program,
                by_product,
                mask=(out_of_block < cout)[:, None] & known[None, :],
            )
        if (kind == SEPARABLE) & (j == 0):
            tap = tl.arange(0, TAPS)[:, None]
            tl.store(
                to_weights + spatial + c[None, :] * taps + tap,
                by_taps,
                mask=(tap < taps) & known[None, :],
            )


@triton.jit
def pointwise(weights, out, c, channels, cout):
    """Load pointwise weights, (outputs, inputs)."""
    return tl.load(
        weights + out[:, None] * channels + c[None, :],
        mask=(out < cout)[:, None] & (c < channels)[None, :],
        other=0.0,
    )
