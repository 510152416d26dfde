"""The sums that the norms' backward passes need, and with them the gradients of p and g.

A program reads one candidate's z and its node's gradient over a chunk of whole images, once, and
writes sum G and sum G (z - mean); for candidates without a norm and for bypasses the mean counts as
0, and the latter is all that p and g need. For the norms of the preprocessing the normalized values
are the states: there it is sum G x.

candidate_sums: grid (chunks, rows, blocks of channels), of what has its gradient complete.

begin: grid (chunks, states and rows, blocks of channels). Writes the output's gradient to the nodes
that make it, in the order of channels before the shuffle, and 0 to all other states; and takes the
sums of the last node, whose gradient nothing is added to.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    load_pixels,
    own_pixels,
    place_of,
    split,
    start_counters,
    store_pixels,
    times,
)
from da2s_fast.kernels.cell.mix import bypassed, candidate
from da2s_fast.kernels.cell.rows import (
    BYPASS,
    GRADIENT,
    GROUP,
    GROUP_GRADIENT,
    GROUP_STATE,
    KIND,
    LAYER,
    SOURCE,
    STATISTICS,
    SUMS,
)


@triton.jit
def load_outside(
    gradient, strides, n, y, x, column, first_channel, live, known, mixed, SHUFFLED: tl.constexpr
):
    """Load the output's gradient; column c is channel c % mixed * K + c // mixed of a node."""
    channel = first_channel + column % mixed * SHUFFLED + column // mixed
    at = n.to(tl.int64) * strides[0] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]
    return tl.load(
        gradient + at[:, None] + channel[None, :].to(tl.int64) * strides[1],
        mask=live[:, None] & known[None, :],
        other=0.0,
    )


@triton.jit
def load_node(
    row, gradients, outside, strides, first_channel, n, y, x, at, column, live, known, channels,
    SHUFFLED: tl.constexpr,
):  # fmt: skip
    """Load the gradient of a row's node, from outside the cell where that is all of it."""
    if outside is None:
        gradient = gradients + place_of(row + GRADIENT)
        return load_pixels(gradient, at, channels * SHUFFLED, column, live, known)
    else:
        return load_outside(
            outside, strides, n, y, x, column, first_channel, live, known, channels, SHUFFLED
        ).to(gradients.dtype.element_ty)


@triton.jit
def sum_candidate(
    row,
    states,
    z,
    gradients,
    outside,
    outside_strides,
    first_channel,
    statistics,
    sums,
    chunk,
    block,
    first,
    last,
    height,
    width,
    channels,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a candidate's partial sums of a chunk and block of channels, float64."""
    kind = tl.load(row + KIND)
    place = tl.load(row + STATISTICS)
    pitch = channels * SHUFFLED
    c = block * BLOCK + tl.arange(0, BLOCK)
    known = c < channels
    own = known
    mean = tl.zeros((BLOCK,), statistics.dtype.element_ty)
    if place >= 0:
        mean = tl.load(statistics + place + c, mask=known, other=0.0)
    total = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((BLOCK,), tl.float64)
    for start in range(first, last, PIXELS):
        p = start + tl.arange(0, PIXELS)
        live = p < last
        n, y, x = split(p, height, width)
        at = p.to(tl.int64)
        if kind == BYPASS:
            for part in tl.static_range(1, SHUFFLED):
                column = part * channels + c
                g = load_node(
                    row, gradients, outside, outside_strides, first_channel, n, y, x, at, column,
                    live, known, channels, SHUFFLED,
                )  # fmt: skip
                values = bypassed(row, states, n, y, x, live, column, known, pitch)
                products += tl.sum(times(g, values), axis=0).to(tl.float64)
        else:
            values, own = candidate(
                row, states, z, n, y, x, p, live, c, known, channels, pitch, HALVES
            )
            g = load_node(
                row, gradients, outside, outside_strides, first_channel, n, y, x, at, c, live, own,
                channels, SHUFFLED,
            )  # fmt: skip
            values = tl.where(live[:, None] & own[None, :], values - mean[None, :], 0)
            total += tl.sum(g, axis=0).to(tl.float64)
            products += tl.sum(times(g, values), axis=0).to(tl.float64)
    to = sums + tl.load(row + SUMS) + chunk.to(tl.int64) * 2 * channels + c
    tl.store(to, total, mask=own)
    tl.store(to + channels, products, mask=own)


@triton.jit
def sum_state(
    row,
    states,
    gradients,
    sums,
    chunk,
    block,
    first,
    last,
    channels,
    SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write an input state's partial sums of a chunk and, in all K parts, a block of channels."""
    pitch = channels * SHUFFLED
    for part in tl.static_range(SHUFFLED):
        c = block * BLOCK + tl.arange(0, BLOCK)
        known = c < channels
        c += part * channels
        total = tl.zeros((BLOCK,), tl.float64)
        products = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, PIXELS):
            p = start + tl.arange(0, PIXELS)
            at = p.to(tl.int64)
            live = p < last
            g = load_pixels(gradients + place_of(row + GRADIENT), at, pitch, c, live, known)
            x = load_pixels(states + place_of(row + SOURCE), at, pitch, c, live, known)
            total += tl.sum(g, axis=0).to(tl.float64)
            products += tl.sum(times(g, x), axis=0).to(tl.float64)
        to = sums + tl.load(row + SUMS) + chunk.to(tl.int64) * 2 * pitch + c
        tl.store(to, total, mask=known)
        tl.store(to + pitch, products, mask=known)


@triton.jit
def candidate_sums(
    table,
    states,
    z,
    gradients,
    statistics,
    sums,
    in_pixels,
    in_size,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    images,
    INPUTS: tl.constexpr,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write (chunks, 2, channels) partial sums of every row, float64.

    Given:
        table: of `Layer`: a node's candidates, or preprocessed inputs.
        in_pixels: of an input state.
        in_size: pixels of one of its images.
        images: of a chunk.
        INPUTS: which of both.
    """
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    if INPUTS:
        first, last = own_pixels(chunk, images, in_size, in_pixels)
        sum_state(
            row, states, gradients, sums, chunk, tl.program_id(2), first, last, channels, SHUFFLED,
            PIXELS, BLOCK,
        )  # fmt: skip
    else:
        first, last = own_pixels(chunk, images, height * width, pixels)
        sum_candidate(
            row, states, z, gradients, None, None, 0, statistics, sums, chunk, tl.program_id(2),
            first, last, height, width, channels, SHUFFLED, HALVES, PIXELS, BLOCK,
        )  # fmt: skip


@triton.jit
def begin(
    table,
    groups,
    rows,
    gradient,
    gradient_strides,
    states,
    z,
    gradients,
    statistics,
    sums,
    first_output,
    node_states,
    in_pixels,
    in_size,
    counters,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    images,
    SHUFFLED: tl.constexpr,
    HALVES: tl.constexpr,
    COUNTERS: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write what reaches states from outside the cell, and sums of the last node's candidates.

    Given:
        table: of `Group`: every place where a state's gradient is collected, nodes' last.
        groups: how many.
        rows: of `Layer`, the last node's candidates.
        gradient: of the output, any type and strides.
        first_output: the first group whose state is part of the output.
        node_states: where nodes begin among the states.
        in_pixels: of an input state.
        in_size: pixels of one of its images.
        counters: of csrc/cuda's kernel, int32, set to 0; or none.
        channels: that candidates see.
        images: of a chunk.
        COUNTERS: how many.
    """
    chunk = tl.program_id(0)
    index = tl.program_id(1)
    start_counters(counters, COUNTERS)
    all_channels = channels * SHUFFLED
    if index >= groups:
        first, last = own_pixels(chunk, images, height * width, pixels)
        sum_candidate(
            rows + (index - groups) * LAYER, states, z, gradients, gradient, gradient_strides,
            (groups - 1 - first_output) * all_channels, statistics, sums, chunk,
            tl.program_id(2), first, last, height, width, channels, SHUFFLED, HALVES, PIXELS,
            BLOCK,
        )  # fmt: skip
    else:
        group = table + index * GROUP
        is_node = place_of(group + GROUP_STATE) >= node_states
        size = tl.where(is_node, height * width, in_size)
        first, last = own_pixels(chunk, images, size, tl.where(is_node, pixels, in_pixels))
        to = gradients + place_of(group + GROUP_GRADIENT)
        for part in tl.static_range(SHUFFLED):
            c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
            known = c < channels
            c += part * channels
            for start in range(first, last, PIXELS):
                p = start + tl.arange(0, PIXELS)
                live = p < last
                values = tl.zeros((PIXELS, BLOCK), gradients.dtype.element_ty)
                if index >= first_output:
                    n, y, x = split(p, height, width)
                    values = load_outside(
                        gradient, gradient_strides, n, y, x, c,
                        (index - first_output) * all_channels, live, known, channels, SHUFFLED,
                    ).to(values.dtype)  # fmt: skip
                store_pixels(to, p.to(tl.int64), all_channels, c, live, known, values)
