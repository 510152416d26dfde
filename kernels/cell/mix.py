"""A node: the sum of its candidates.

mix: grid (tiles of pixels, blocks of channels). A program owns a tile of the node, reads the z of
all entering edges once, and writes the node, shuffled, as a state and, if it belongs to it, into
the output.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    beats,
    chunk_sizes,
    load_pixels,
    norm,
    place_of,
    share_of,
    split,
    store_pixels,
)
from da2s_fast.kernels.cell.norm_backward import weight_of
from da2s_fast.kernels.cell.rows import (
    EDGE,
    FROZEN,
    HEIGHT,
    KIND,
    LAYER,
    MOMENTS,
    NOTHING,
    OPERATION,
    SKIP,
    SOURCE,
    STATISTICS,
    STRIDE,
    WIDTH,
    Z,
)
from da2s_fast.kernels.cell.window import columns_of, tap_values


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
    candidates,
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
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
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
        candidates: how many of them there are.
        rows: how many of both.
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
    sizes = chunk_sizes(pixels, tiles_per_chunk, CHUNK_PIXELS, CHUNKS)
    share = share_of(pixels)
    for part in tl.static_range(SHUFFLED):
        total = tl.zeros((PIXELS, BLOCK), dtype)
        if part == 0:
            for index in range(0, candidates):
                row = table + index * LAYER
                edge = tl.load(row + EDGE)
                scale = weight_of(
                    p_weights, g_weights, edge, tl.load(row + OPERATION), operations, dtype
                )
                values, own = candidate(
                    row, states, z, n, y, x, p, live, c, known, channels, channels * SHUFFLED,
                    HALVES,
                )  # fmt: skip
                place = tl.load(row + STATISTICS)
                if place >= 0:
                    mean, rstd = norm(
                        statistics, place, KNOWN or tl.load(row + FROZEN) != 0,
                        moments + tl.load(row + MOMENTS), c, own, channels, sizes, share,
                        tl.program_id(0) == 0, EPS, CHUNKS,
                    )  # fmt: skip
                    values = (values - mean[None, :]) * rstd[None, :]
                    values = tl.where(own[None, :], values, 0)
                total += scale * values
        else:
            for index in range(candidates, rows):
                row = table + index * LAYER
                scale = tl.full((), 1, dtype)
                if g_weights is not None:
                    scale = tl.load(g_weights + tl.load(row + EDGE)).to(dtype)
                total += scale * bypassed(
                    row, states, n, y, x, live, part * channels + c, known, channels * SHUFFLED
                )
        column = c * SHUFFLED + part
        store_pixels(to_state, p.to(tl.int64), channels * SHUFFLED, column, live, known, total)
        if HAS_OUTPUT:
            tl.store(
                output + out_at[:, None] + column[None, :].to(tl.int64) * output_strides[1],
                total.to(output.dtype.element_ty),
                mask=live[:, None] & known[None, :],
            )
