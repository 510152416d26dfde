"""Gradients of what a cell learns, from what the chunks have summed.

finish: grid (edges and blocks of numbers). For edges: from sum G (z - mean) of every candidate
follow dL/dp and dL/dg. For blocks: adds the chunks' gradients of weights, in order.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import chunk_sum, inverse_deviation, times
from da2s_fast.kernels.cell.rows import (
    BYPASS,
    COLUMN,
    COUT,
    EDGE,
    KIND,
    LAYER,
    OPERATION,
    STATISTICS,
    SUMS,
)


@triton.jit
def add_chunks(partial, to, numbers, block, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """Write a block of the sum over chunks of (CHUNKS, numbers)."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    there = at < numbers
    total = tl.zeros((BLOCK,), tl.float64)
    for chunk in range(0, CHUNKS):
        place = partial + tl.full((), chunk, tl.int64) * numbers + at
        total += tl.load(place, mask=there, other=0.0).to(tl.float64)
    if to.dtype.element_ty != tl.float64:
        total = total.to(tl.float32)  # from where every shorter type can be reached
    tl.store(to + at, total.to(to.dtype.element_ty), mask=there)


@triton.jit
def finish(
    table,
    rows,
    edges,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    weight_gradients,
    weight_count,
    to_p,
    to_g,
    to_weights,
    channels: tl.constexpr,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
    OPERATIONS: tl.constexpr,
):
    """Write dL/dp, (edges, operations), dL/dg, (edges,), and dL/dweights, each if it is not None.

    Given:
        table: of `Layer`: all candidates and bypasses of all edges.
        rows: how many.
        edges: how many; 0 where nobody wants dL/dp or dL/dg.
        operations: columns of p.
        weight_gradients: (CHUNKS, weight_count).
        channels: that candidates see.
        ADDED: numbers that a program adds up over the chunks.
        OPERATIONS: a power of two, no less than operations.
    """
    if tl.program_id(0) >= edges:
        if to_weights is not None:
            add_chunks(
                weight_gradients, to_weights, weight_count, tl.program_id(0) - edges, CHUNKS,
                ADDED,
            )  # fmt: skip
    else:
        mixture_gradients(
            table, rows, tl.program_id(0), p_weights, g_weights, operations, statistics, sums,
            to_p, to_g, channels, EPS, CHUNKS, BLOCK, OPERATIONS,
        )  # fmt: skip


@triton.jit
def mixture_gradients(
    table,
    rows,
    edge,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    to_p,
    to_g,
    channels,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERATIONS: tl.constexpr,
):
    """Write dL/dp and dL/dg of an edge."""
    column = tl.arange(0, OPERATIONS)
    there = column < operations
    p = tl.load(p_weights + edge * operations + column, mask=there, other=0.0).to(tl.float64)
    found = tl.zeros((OPERATIONS,), tl.float64)
    past = tl.zeros((), tl.float64)
    for index in range(0, rows):
        row = table + index * LAYER
        if tl.load(row + EDGE) == edge:
            place = tl.load(row + STATISTICS)
            first = tl.load(row + COLUMN).to(tl.int32)
            last = first + tl.load(row + COUT).to(tl.int32)
            products = tl.zeros((), tl.float64)
            for block in range(0, tl.cdiv(channels, BLOCK)):
                c = block * BLOCK + tl.arange(0, BLOCK)
                own = (c >= first) & (c < last)
                part = chunk_sum(sums + tl.load(row + SUMS) + channels, c, own, channels, CHUNKS)
                if place >= 0:
                    variance = tl.load(statistics + place + channels + c, mask=own, other=0.0)
                    part = times(part, inverse_deviation(variance, EPS).to(tl.float64))
                products += tl.sum(tl.where(own, part, 0), axis=0)
            if tl.load(row + KIND) == BYPASS:
                past += products
            else:
                here = column == tl.load(row + OPERATION)
                found += tl.where(here, products, 0)
    if to_g is not None:
        own = tl.sum(times(tl.where(there, p, 0), found), axis=0) + past
        tl.store(to_g + edge, own.to(to_g.dtype.element_ty))
    if to_p is not None:
        if g_weights is not None:
            found = found * tl.load(g_weights + edge).to(tl.float64)
        tl.store(to_p + edge * operations + column, found.to(to_p.dtype.element_ty), mask=there)
