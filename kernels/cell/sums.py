"""The sums that the norms' backward passes need, and with them the gradients of p and g.

candidate_sums: grid (chunks, rows, blocks of channels). A program reads one candidate's z and its
node's gradient over a chunk of pixels, once, and writes sum G and sum G (z - mean); for candidates
without a norm and for bypasses the mean counts as 0, and the latter is all that p and g need.

state_sums: grid (chunks, inputs, blocks of channels). The same for the norms of the preprocessing,
whose normalized values are the states.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import load_pixels, place_of, split, times
from da2s_fast.kernels.cell.forward import bypassed, candidate
from da2s_fast.kernels.cell.rows import (
    BYPASS,
    GRADIENT,
    KIND,
    LAYER,
    PART,
    PART_GRADIENT,
    PART_STATE,
    PART_SUMS,
    STATISTICS,
    SUMS,
)


@triton.jit
def candidate_sums(
    table,
    states,
    z,
    gradients,
    statistics,
    sums,
    pixels,
    height,
    width,
    channels,
    tiles_per_chunk,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write (chunks, 2, channels) partial sums of every row, float64."""
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    kind = tl.load(row + KIND)
    place = tl.load(row + STATISTICS)
    gradient = gradients + place_of(row + GRADIENT)
    pitch = channels * SHUFFLED
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    own = known
    mean = tl.zeros((BLOCK,), statistics.dtype.element_ty)
    if place >= 0:
        mean = tl.load(statistics + place + c, mask=known, other=0.0)
    total = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((BLOCK,), tl.float64)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        n, y, x = split(p, height, width)
        at = p.to(tl.int64)
        if kind == BYPASS:
            for part in tl.static_range(1, SHUFFLED):
                column = part * channels + c
                g = load_pixels(gradient, at, pitch, column, live, known)
                values = bypassed(row, states, n, y, x, live, column, known, pitch)
                products += tl.sum(times(g, values), axis=0).to(tl.float64)
        else:
            values, own = candidate(
                row, states, z, n, y, x, p, live, c, known, channels, pitch, HALVES
            )
            g = load_pixels(gradient, at, pitch, c, live, own)
            values = tl.where(live[:, None] & own[None, :], values - mean[None, :], 0)
            total += tl.sum(g, axis=0).to(tl.float64)
            products += tl.sum(times(g, values), axis=0).to(tl.float64)
    to = sums + tl.load(row + SUMS) + chunk * 2 * channels + c
    tl.store(to, total, mask=own)
    tl.store(to + channels, products, mask=own)


@triton.jit
def state_sums(
    table,
    states,
    gradients,
    sums,
    pixels,
    channels,
    tiles_per_chunk,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write (chunks, 2, channels) partial sums of every input state's gradient, float64."""
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * PART
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    total = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((BLOCK,), tl.float64)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        at = p.to(tl.int64)
        g = load_pixels(
            gradients + place_of(row + PART_GRADIENT), at, channels, c, p < pixels, known
        )
        x = load_pixels(states + place_of(row + PART_STATE), at, channels, c, p < pixels, known)
        total += tl.sum(g, axis=0).to(tl.float64)
        products += tl.sum(times(g, x), axis=0).to(tl.float64)
    to = sums + tl.load(row + PART_SUMS) + chunk * 2 * channels + c
    tl.store(to, total, mask=known)
    tl.store(to + channels, products, mask=known)
