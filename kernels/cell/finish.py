"""Gradients of what a cell learns, from what the chunks have summed.

finish: grid (edges and blocks of numbers). For edges: from sum G (z - mean) of every candidate
follow dL/dp and dL/dg, all candidates of an edge at once. For blocks: adds the chunks' gradients of
weights. In both cases a program reads several chunks at once, so that it waits for memory but a few
times, and adds in an order that only the shapes decide.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import inverse_deviation, times
from da2s_fast.kernels.cell.rows import (
    BYPASS,
    COLUMN,
    COUT,
    KIND,
    LAYER,
    OPERATION,
    STATISTICS,
    SUMS,
)


@triton.jit
def add_chunks(
    partial, to, numbers, block, CHUNKS: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr
):
    """Write a block of the sum over chunks of (CHUNKS, numbers), AT_ONCE of them at a time."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    there = at < numbers
    pitch = tl.full((), 1, tl.int64) * numbers
    place = partial + tl.arange(0, AT_ONCE)[:, None] * pitch + at[None, :]
    total = tl.zeros((AT_ONCE, BLOCK), tl.float64)
    for _ in tl.range(0, CHUNKS, AT_ONCE):
        total += tl.load(place, mask=there[None, :], other=0.0).to(tl.float64)
        place += AT_ONCE * pitch
    store_sum(to, at, there, tl.sum(total, axis=0))


@triton.jit
def store_sum(to, at, there, total):
    """Store float64 as a tensor's type."""
    if to.dtype.element_ty != tl.float64:
        total = total.to(tl.float32)  # from where every shorter type can be reached
    tl.store(to + at, total.to(to.dtype.element_ty), mask=there)


@triton.jit
def finish(
    table,
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
    ROWS: tl.constexpr,
    ROW_CHUNKS: tl.constexpr,
    ADDED: tl.constexpr,
    ADDED_CHUNKS: tl.constexpr,
    OPERATIONS: tl.constexpr,
):
    """Write dL/dp, (edges, operations), dL/dg, (edges,), and dL/dweights, each if it is not None.

    Given:
        table: of `Layer`: all candidates and bypasses of all edges, ROWS for each edge.
        edges: how many; 0 where nobody wants dL/dp or dL/dg.
        operations: columns of p.
        weight_gradients: (CHUNKS, weight_count).
        channels: that candidates see.
        ROWS: a power of two; rows that are too many have no channels.
        ROW_CHUNKS: chunks of them that are read at once.
        ADDED: numbers that a program adds up over the chunks.
        ADDED_CHUNKS: chunks of them that are read at once.
        OPERATIONS: a power of two, no less than operations.
    """
    if tl.program_id(0) >= edges:
        if to_weights is not None:
            add_chunks(
                weight_gradients, to_weights, weight_count, tl.program_id(0) - edges, CHUNKS,
                ADDED, ADDED_CHUNKS,
            )  # fmt: skip
    else:
        mixture_gradients(
            table + tl.program_id(0) * ROWS * LAYER, tl.program_id(0), p_weights, g_weights,
            operations, statistics, sums, to_p, to_g, channels, EPS, CHUNKS, BLOCK, ROWS,
            ROW_CHUNKS, OPERATIONS,
        )  # fmt: skip


@triton.jit
def mixture_gradients(
    table,
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
    ROWS: tl.constexpr,
    ROW_CHUNKS: tl.constexpr,
    OPERATIONS: tl.constexpr,
):
    """Write dL/dp and dL/dg of an edge, whose rows are the first of the table."""
    column = tl.arange(0, OPERATIONS)
    there = column < operations
    p = tl.load(p_weights + edge * operations + column, mask=there, other=0.0).to(tl.float64)
    row = table + tl.arange(0, ROWS) * LAYER
    place = tl.load(row + STATISTICS)[:, None]
    first = tl.load(row + COLUMN).to(tl.int32)
    last = first + tl.load(row + COUT).to(tl.int32)
    passes = tl.load(row + KIND) == BYPASS
    operation = tl.load(row + OPERATION)
    partial = sums + tl.load(row + SUMS) + channels
    products = tl.zeros((ROWS,), tl.float64)
    for block in range(0, tl.cdiv(channels, BLOCK)):
        c = block * BLOCK + tl.arange(0, BLOCK)[None, :]
        own = (c >= first[:, None]) & (c < last[:, None])
        normed = own & (place >= 0)
        variance = tl.load(statistics + place + channels + c, mask=normed, other=1.0)
        scale = tl.where(normed, inverse_deviation(variance, EPS).to(tl.float64), 1)
        part = sums_of_rows(partial, c, own, channels, CHUNKS, ROW_CHUNKS)
        products += tl.sum(times(part, scale), axis=1)
    past = tl.sum(tl.where(passes, products, 0), axis=0)
    here = (operation[:, None] == column[None, :]) & (passes[:, None] == 0)
    found = tl.sum(tl.where(here, products[:, None], 0), axis=0)
    if to_g is not None:
        own = tl.sum(times(tl.where(there, p, 0), found), axis=0) + past
        tl.store(to_g + edge, own.to(to_g.dtype.element_ty))
    if to_p is not None:
        if g_weights is not None:
            found = found * tl.load(g_weights + edge).to(tl.float64)
        tl.store(to_p + edge * operations + column, found.to(to_p.dtype.element_ty), mask=there)


@triton.jit
def sums_of_rows(partial, channel, own, width, CHUNKS: tl.constexpr, AT_ONCE: tl.constexpr):
    """Return (rows, channels) of float64, sums over chunks of (CHUNKS, 2, width) for each row."""
    chunk = tl.arange(0, AT_ONCE)[None, :, None] * (2 * width)
    at = partial[:, None, None] + chunk + channel[:, None, :]
    total = tl.zeros(at.shape, tl.float64)
    for _ in range(0, CHUNKS, AT_ONCE):
        total += tl.load(at, mask=own[:, None, :], other=0.0).to(tl.float64)
        at += AT_ONCE * 2 * width
    return tl.sum(total, axis=1)
