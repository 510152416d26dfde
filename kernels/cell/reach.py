"""Gradients of what layers read: through norm, product and convolution in one launch.

A program owns a chunk of whole images. It writes what layers hand their depthwise convolutions to a
room of its own in global memory, waits for its own threads, and gathers it from there: nobody else
reads or writes those images in between. So a program adds up everything that reaches its pixels, in
the order of the rows, without atomics.

reach_inner: grid (chunks, rows, blocks of output x blocks of input channels). Writes the gradient
at the inner norm of separable convolutions, its partial sums, and gradients of the second layers'
weights.

reach_states: grid (chunks, groups, taps x blocks of output x blocks of input channels). Adds to the
gradient of a state what one later node's candidates hand it, layer after layer through the same
room, and writes gradients of first layers' weights. Without separable convolutions pixels need
nothing of that room, and several programs share a chunk.

Parallel are images and edges, not layers of an edge: 64 images of 32 x 32 give a node 128 to 320
programs. In exchange an edge's gradient stays with the multiprocessor that adds it up, and what
lies before the products is written to a room that is an edge's and not a layer's.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    inverse_deviation,
    load_pixels,
    own_pixels,
    place_of,
    split,
    store_pixels,
    through_relu,
    times,
)
from da2s_fast.kernels.cell.gather import gather, gather_bypass, spread_back
from da2s_fast.kernels.cell.pull import pull_dense, pull_separable
from da2s_fast.kernels.cell.rows import (
    BYPASS,
    DENSE,
    GROUP,
    GROUP_FIRST,
    GROUP_GRADIENT,
    GROUP_LENGTH,
    GROUP_SHUFFLED,
    GROUP_STATE,
    INNER,
    INNER_GRADIENT,
    INNER_SUMS,
    KIND,
    LAYER,
    REACHED,
    SEPARABLE,
    SOURCE,
    SPATIAL,
)
from da2s_fast.kernels.cell.window import window_of


@triton.jit
def reach_inner(
    table,
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
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    images,
    weight_count,
    SHUFFLED: tl.constexpr,
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
    """Through second layers and ReLU of separable convolutions, to their inner norm.

    Given:
        table: of `Layer`, second layers.
        z: of all layers.
        gradients: all of them; read and written.
        weights: flat.
        weight_gradients: (chunks, weight_count).
        p_weights: (edges, operations).
        g_weights: (edges,) or None.
        operations: columns of p.
        statistics: of all norms.
        sums: of gradients, partial; those of inner norms are written.
        pixels: of a node.
        height: of a node.
        width: of a node.
        channels: that candidates see.
        images: of a chunk.
        SHUFFLED: K.
        SEVERAL: whether there are more channels than a block has.
        WEIGHTS: whether weights want gradients.
        TAPS: a power of two, no less than the taps of any depthwise convolution.
    """
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * LAYER
    blocks = tl.cdiv(channels, BLOCK)
    i = tl.program_id(2) % blocks
    j = tl.program_id(2) // blocks
    first, last = own_pixels(chunk, images, height * width, pixels)
    pull_separable(
        row, z, z, gradients, weights, weight_gradients + chunk.to(tl.int64) * weight_count,
        p_weights, g_weights, operations, statistics, sums, first, last, pixels, height, width,
        channels, channels, i, j, SHUFFLED, True, SEVERAL, WEIGHTS, EPS, DOT, PRECISION, PIXELS,
        CHUNKS, BLOCK, TAPS,
    )  # fmt: skip
    if j == 0:
        # What was written is read by other threads.
        tl.debug_barrier()
        _, _, _, dilation, kernel, padding = window_of(row)
        c = i * BLOCK + tl.arange(0, BLOCK)
        known = c < channels
        inner = statistics + tl.load(row + INNER) + c
        mean = tl.load(inner, mask=known, other=0.0)
        rstd = inverse_deviation(tl.load(inner + channels, mask=known, other=0.0), EPS)
        reached = gradients + place_of(row + REACHED)
        to = gradients + place_of(row + INNER_GRADIENT)
        z1 = z + place_of(row + SOURCE)
        factors = weights + tl.load(row + SPATIAL)
        total = tl.zeros((BLOCK,), tl.float64)
        products = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, PIXELS):
            p = start + tl.arange(0, PIXELS)
            live = p < last
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
        partial = sums + tl.load(row + INNER_SUMS) + chunk.to(tl.int64) * 2 * channels + c
        tl.store(partial, total, mask=known)
        tl.store(partial + channels, products, mask=known)


@triton.jit
def reach_states(
    table,
    layers,
    states,
    z,
    gradients,
    weights,
    weight_gradients,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    in_pixels,
    in_height,
    in_width,
    node_states,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    images,
    shares,
    weight_count,
    SHUFFLED: tl.constexpr,
    SEPARABLES: tl.constexpr,
    HALVES: tl.constexpr,
    DENSES: tl.constexpr,
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
    """Add to the gradients of states; other arguments as for `reach_inner`.

    Given:
        table: of `Group`.
        layers: of `Layer`, the groups' rows.
        states: all states.
        in_pixels: of an input state.
        in_height: of an input state.
        in_width: of an input state.
        node_states: where nodes begin among the states.
        shares: programs among which a chunk's pixels are divided; 1 with separable convolutions.
        SEPARABLES: whether separable convolutions are among the rows.
        HALVES: whether FactorizedReduce is among the rows, with a row for each half of z.
        DENSES: whether dense convolutions are among the rows.
    """
    chunk = tl.program_id(0) // shares
    share = tl.program_id(0) % shares
    group = table + tl.program_id(1) * GROUP
    blocks = tl.cdiv(channels, BLOCK)
    i = tl.program_id(2) % blocks
    j = tl.program_id(2) // blocks % blocks
    tap = tl.program_id(2) // (blocks * blocks)
    gathers = (j == 0) & (tap == 0)
    state = place_of(group + GROUP_STATE)
    is_node = state >= node_states
    own_height = tl.where(is_node, height, in_height)
    own_width = tl.where(is_node, width, in_width)
    own_all = tl.where(is_node, pixels, in_pixels)
    first, last = own_pixels(chunk, images, height * width, pixels)
    own_first, own_last = own_pixels(chunk, images, own_height * own_width, own_all)
    own_count = tl.cdiv(own_last - own_first, shares)
    own_first += share * own_count
    own_last = tl.minimum(own_first + own_count, own_last)
    rows = layers + tl.load(group + GROUP_FIRST) * LAYER
    to = gradients + place_of(group + GROUP_GRADIENT)
    shuffled = tl.load(group + GROUP_SHUFFLED).to(tl.int32)
    pitch = channels * SHUFFLED
    to_weights = weight_gradients + chunk.to(tl.int64) * weight_count
    for index in range(0, tl.load(group + GROUP_LENGTH).to(tl.int32)):
        row = rows + index * LAYER
        kind = tl.load(row + KIND)
        if SEPARABLES and kind == SEPARABLE:
            if tap == 0:
                pull_separable(
                    row, states, z, gradients, weights, to_weights, p_weights, g_weights,
                    operations, statistics, sums, first, last, pixels, height, width, channels,
                    pitch, i, j, SHUFFLED, False, SEVERAL, WEIGHTS, EPS, DOT, PRECISION, PIXELS,
                    CHUNKS, BLOCK, TAPS,
                )  # fmt: skip
                # What was written is read by other threads.
                tl.debug_barrier()
        elif (WEIGHTS and DENSES) and (kind == DENSE) & (share == 0):
            pull_dense(
                row, states, z, gradients, to_weights, p_weights, g_weights, operations,
                statistics, sums, first, last, pixels, height, width, channels, pitch, i, j, tap,
                HALVES, EPS, DOT, PRECISION, PIXELS, CHUNKS, BLOCK,
            )  # fmt: skip
        if gathers & (kind == BYPASS):
            gather_bypass(
                row, to, shuffled, states + state, gradients, g_weights, i, own_first, own_last,
                own_height, own_width, height, width, channels, SHUFFLED, PIXELS, BLOCK,
            )  # fmt: skip
        elif gathers:
            gather(
                row, kind, to, shuffled, states + state, z, gradients, weights, p_weights,
                g_weights, operations, statistics, sums, i, own_first, own_last, own_height,
                own_width, pixels, height, width, channels, SHUFFLED, SEPARABLES, HALVES, DENSES,
                SEVERAL, EPS, DOT, PRECISION, PIXELS, CHUNKS, BLOCK,
            )  # fmt: skip
        # The next layer writes to the same room.
        tl.debug_barrier()
