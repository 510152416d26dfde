"""Gradients of the preprocessing: through its norm, 1x1 convolution or FactorizedReduce, and ReLU.

What a norm needs is at hand without its z: the state is the normalized tensor.

reach_input: grid (tiles of the input's pixels, blocks of its channels), a launch for each input. A
program owns a tile of the input's gradient; FactorizedReduce hands a pixel something from the first
half if its row and column are even, from the second if they are odd.

pull_inputs: grid (chunks, parts, blocks of output x blocks of input channels). The weights'
gradients, chunk by chunk.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    chunk_sum,
    inverse_deviation,
    load_pixels,
    place_of,
    product,
    rectified,
    split,
    through_relu,
)
from da2s_fast.kernels.cell.prepare import load_either, load_input
from da2s_fast.kernels.cell.pull import before_norm
from da2s_fast.kernels.cell.reach import outputs_of
from da2s_fast.kernels.cell.rows import (
    PART,
    PART_CIN,
    PART_COLUMN,
    PART_COUT,
    PART_FROZEN,
    PART_GRADIENT,
    PART_POSITION,
    PART_PRODUCT,
    PART_SHIFT,
    PART_STATE,
    PART_STATISTICS,
    PART_STRIDE,
    PART_SUMS,
)


@triton.jit
def behind_product(
    row,
    states,
    gradients,
    statistics,
    sums,
    at,
    out,
    live,
    own,
    channels,
    pixels,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Return dL/dz of (pixels, channels) of a normalized input; out are channels of the state."""
    dtype: tl.constexpr = statistics.dtype.element_ty
    place = tl.load(row + PART_STATISTICS)
    variance = tl.load(statistics + place + channels + out, mask=own, other=0.0)
    rstd = inverse_deviation(variance, EPS)
    given = tl.load(row + PART_FROZEN) != 0
    partial = sums + tl.load(row + PART_SUMS)
    shift = (chunk_sum(partial, out, own, channels, CHUNKS) / pixels).to(dtype)
    slope = (chunk_sum(partial + channels, out, own, channels, CHUNKS) / pixels).to(dtype)
    return before_norm(
        load_pixels(gradients + place_of(row + PART_GRADIENT), at, channels, out, live, own),
        load_pixels(states + place_of(row + PART_STATE), at, channels, out, live, own),
        live, own, rstd, tl.zeros((out.shape[0],), dtype), shift, slope, given,
    )  # fmt: skip


@triton.jit
def reach_input(
    table,
    first,
    parts,
    x,
    x_strides,
    x_size,
    to,
    to_strides,
    cin,
    weights,
    states,
    gradients,
    state_gradient,
    statistics,
    sums,
    x_pixels,
    pixels,
    height,
    width,
    channels,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write an input's gradient, any strides and type.

    Given:
        table: of `Part`.
        first: the input's first row.
        parts: how many it has; none where it is the state itself.
        x: the input.
        to: its gradient.
        state_gradient: where its state's gradient is among the gradients.
        x_pixels: of the input.
        pixels: of the state.
    """
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    live = p < x_pixels
    n, y, x_column = split(p, x_size[0], x_size[1])
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = c < cin
    dtype: tl.constexpr = states.dtype.element_ty
    total = tl.zeros((PIXELS, BLOCK), dtype)
    if parts == 0:
        base = gradients + state_gradient
        total = load_pixels(base, p.to(tl.int64), channels, c, live, known)
    else:
        for index in range(0, parts):
            row = table + (first + index) * PART
            shift = tl.load(row + PART_SHIFT).to(tl.int32)
            stride = tl.load(row + PART_STRIDE).to(tl.int32)
            cout = tl.load(row + PART_COUT).to(tl.int32)
            column = tl.load(row + PART_COLUMN).to(tl.int32)
            w = weights + tl.load(row + PART_PRODUCT)
            at, there = outputs_of(n, y, x_column, shift, shift, stride, height, width, live)
            for block in range(0, tl.cdiv(cout, BLOCK)):
                out = block * BLOCK + tl.arange(0, BLOCK)
                own = out < cout
                dz = behind_product(
                    row, states, gradients, statistics, sums, at, column + out, there, own,
                    channels, pixels, EPS, CHUNKS,
                )  # fmt: skip
                share = tl.load(
                    w + out[:, None] * cin + c[None, :],
                    mask=own[:, None] & known[None, :],
                    other=0.0,
                )
                total += product(dz, share, DOT, PRECISION)
        values = load_input(x, x_strides, x_size, n, y, x_column, c, live, known, dtype)
        total = through_relu(total, values)
    place = (
        n.to(tl.int64) * to_strides[0]
        + y.to(tl.int64) * to_strides[2]
        + x_column.to(tl.int64) * to_strides[3]
    )
    tl.store(
        to + place[:, None] + c[None, :].to(tl.int64) * to_strides[1],
        total.to(to.dtype.element_ty),
        mask=live[:, None] & known[None, :],
    )


@triton.jit
def pull_inputs(
    table,
    inputs,
    strides,
    sizes,
    states,
    gradients,
    weight_gradients,
    statistics,
    sums,
    pixels,
    height,
    width,
    channels,
    weight_count,
    tiles_per_chunk,
    in_blocks,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the chunks' gradients of the preprocessing's weights."""
    chunk = tl.program_id(0)
    row = table + tl.program_id(1) * PART
    cin = tl.load(row + PART_CIN).to(tl.int32)
    cout = tl.load(row + PART_COUT).to(tl.int32)
    column = tl.load(row + PART_COLUMN).to(tl.int32)
    stride = tl.load(row + PART_STRIDE).to(tl.int32)
    shift = tl.load(row + PART_SHIFT).to(tl.int32)
    position = tl.load(row + PART_POSITION)
    c = tl.program_id(2) % in_blocks * BLOCK + tl.arange(0, BLOCK)
    known = c < cin
    out = tl.program_id(2) // in_blocks * BLOCK + tl.arange(0, BLOCK)
    own = out < cout
    dtype: tl.constexpr = states.dtype.element_ty
    total = tl.zeros((BLOCK, BLOCK), dtype)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tl.cdiv(pixels, PIXELS))
    for tile in range(first, last):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        n, y, x = split(p, height, width)
        dz = behind_product(
            row, states, gradients, statistics, sums, p.to(tl.int64), column + out, live, own,
            channels, pixels, EPS, CHUNKS,
        )  # fmt: skip
        values = load_either(
            inputs, strides, sizes, position,
            n, y * stride + shift, x * stride + shift, c, live, known, dtype,
        )  # fmt: skip
        total += product(tl.trans(dz), rectified(values), DOT, PRECISION)
    to = weight_gradients + chunk.to(tl.int64) * weight_count + tl.load(row + PART_PRODUCT)
    tl.store(to + out[:, None] * cin + c[None, :], total, mask=own[:, None] & known[None, :])
