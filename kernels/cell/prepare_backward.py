"""Gradients of the preprocessing: through its norm, 1x1 convolution or FactorizedReduce, and ReLU.

What a norm needs is at hand without its z: the state is the normalized tensor.

leave: grid (programs of a task, inputs and parts). For an input a program owns some tiles of the
state's pixels, and some or all blocks of the input's channels there. FactorizedReduce has four
pixels of the input for each: the first half comes from the one whose row and column are even, the
second from the one where both are odd, and the others have no gradient. For a part of the
preprocessing a program has a chunk of images, a block of the part's outputs, and some or all blocks
of the input's channels. Every program first adds up the sums of all chunks, which is why it takes
on more than a tile. Tasks differ in size: programs that are too many do nothing.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import (
    chunk_sum,
    inverse_deviation,
    load_pixels,
    own_pixels,
    place_of,
    product,
    rectified,
    split,
    through_relu,
)
from da2s_fast.kernels.cell.norm_backward import before_norm
from da2s_fast.kernels.cell.prepare import load_either, load_input, part_of
from da2s_fast.kernels.cell.rows import (
    PART,
    PART_FROZEN,
    PART_GRADIENT,
    PART_POSITION,
    PART_PRODUCT,
    PART_STATE,
    PART_STATISTICS,
    PART_SUMS,
)


@triton.jit
def input_coefficients(
    row, statistics, sums, out, own, channels, pixels, EPS: tl.constexpr, CHUNKS: tl.constexpr
):
    """Return scale, shift and slope of the backward pass of an input's norm, per channel."""
    dtype: tl.constexpr = statistics.dtype.element_ty
    place = tl.load(row + PART_STATISTICS)
    variance = tl.load(statistics + place + channels + out, mask=own, other=0.0)
    partial = sums + tl.load(row + PART_SUMS)
    shift = (chunk_sum(partial, out, own, channels, CHUNKS, 32) / pixels).to(dtype)
    slope = (chunk_sum(partial + channels, out, own, channels, CHUNKS, 32) / pixels).to(dtype)
    return inverse_deviation(variance, EPS), shift, slope


@triton.jit
def outputs_of_part(row, channels, PARTS: tl.constexpr):
    """Return output channels, the first of them, stride and shift."""
    if PARTS & 2 or PARTS & 8:
        _, cout, column, stride, shift, _ = part_of(row)
        return cout, column, stride, shift
    else:
        # Known when it is compiled: loads are wide then.
        return channels, 0, 1, 0


@triton.jit
def input_gradient(row, states, gradients, at, out, live, own, channels, coefficients):
    """Return dL/dz of (pixels, channels) of a normalized input; out are channels of the state."""
    scale, shift, slope = coefficients
    return before_norm(
        load_pixels(gradients + place_of(row + PART_GRADIENT), at, channels, out, live, own),
        load_pixels(states + place_of(row + PART_STATE), at, channels, out, live, own),
        live, own, scale, tl.zeros((out.shape[0],), scale.dtype), shift, slope,
        tl.load(row + PART_FROZEN) != 0,
    )  # fmt: skip


@triton.jit
def leave(
    table,
    inputs,
    strides,
    sizes,
    to,
    to_strides,
    cins,
    firsts,
    programs,
    tiles,
    blocks,
    pulling_programs,
    pulled_blocks,
    state_gradients,
    weights,
    weight_gradients,
    states,
    gradients,
    statistics,
    sums,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    weight_count,
    images,
    PARTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the inputs' gradients and the chunks' gradients of the preprocessing's weights.

    Given:
        table: of `Part`.
        inputs: tensors, any strides and type.
        to: their gradients, likewise; None where nobody wants one.
        cins: channels of the inputs.
        firsts: the first row of each.
        programs: of each input.
        tiles: of a program, likewise.
        blocks: of channels of a program, likewise.
        pulling_programs: of each part.
        pulled_blocks: of the input's channels of such a program.
        state_gradients: where the gradients of their states are among the gradients.
        weight_gradients: (chunks, weight_count).
        pixels: of a state.
        images: of a chunk.
        PARTS: how many rows each input has, two bits for each: none where it is the state itself,
            two of FactorizedReduce.
    """
    task = tl.program_id(1)
    for position in tl.static_range(len(inputs)):
        if to[position] is not None:  # noqa: SIM102 - not compiled else
            if (task == position) & (tl.program_id(0) < programs[position]):
                reach_input(
                    table + firsts[position] * PART, tiles[position], blocks[position],
                    inputs[position], strides[position], sizes[position], to[position],
                    to_strides[position], cins[position], weights, states, gradients,
                    state_gradients[position], statistics, sums, pixels, height, width, channels,
                    PARTS >> 2 * position & 3, EPS, DOT, PRECISION, PIXELS, CHUNKS, BLOCK,
                )  # fmt: skip
    if WEIGHTS:  # noqa: SIM102 - not compiled else
        if (task >= len(inputs)) & (tl.program_id(0) < pulling_programs):
            pull_input(
                table + (task - len(inputs)) * PART, inputs, strides, sizes, cins, states,
                gradients, weight_gradients, statistics, sums, pixels, height, width, channels,
                weight_count, images, pulled_blocks, PARTS, EPS, DOT, PRECISION, PIXELS, CHUNKS,
                BLOCK,
            )  # fmt: skip


@triton.jit
def store_input(to, strides, size, n, y, x, channel, live, known, values):
    """Store (pixels, channels), the other way around as `load_input`."""
    live = live & (y < size[0]) & (x < size[1])
    at = n.to(tl.int64) * strides[0] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]
    tl.store(
        to + at[:, None] + channel[None, :].to(tl.int64) * strides[1],
        values.to(to.dtype.element_ty),
        mask=live[:, None] & known[None, :],
    )


@triton.jit
def reach_input(
    table,
    tiles,
    blocks,
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
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    PARTS: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write some tiles of an input's gradient, some blocks of channels of them."""
    dtype: tl.constexpr = states.dtype.element_ty
    every = tl.cdiv(pixels, PIXELS)
    spans = tl.cdiv(every, tiles)
    groups = tl.cdiv(tl.cdiv(cin, BLOCK), blocks)
    first = tl.program_id(0) % spans * tiles
    first_block = tl.program_id(0) // spans % groups * blocks
    last_block = tl.minimum(first_block + blocks, tl.cdiv(cin, BLOCK))
    # The part's outputs, the first of them among the state's channels, and blocks of them.
    part = 0
    column = 0
    cout = channels
    out_blocks: tl.constexpr = (channels // max(PARTS, 1) + channels % 2 + BLOCK - 1) // BLOCK
    if PARTS == 2:
        part = tl.program_id(0) // (spans * groups)
        column = part * (channels // 2)
        cout = channels // 2 + part * (channels % 2)
    row = table + part * PART
    # Coefficients stay in registers as long as they are few.
    kept: tl.constexpr = out_blocks <= 2
    # So does what comes through the norm, if it is one block.
    hoisted: tl.constexpr = PARTS > 0 and out_blocks == 1
    coefficients = ()
    if PARTS > 0 and kept:
        for out_block in tl.static_range(out_blocks):
            out = out_block * BLOCK + tl.arange(0, BLOCK)
            coefficients += (
                input_coefficients(
                    row, statistics, sums, column + out, out < cout, channels, pixels, EPS, CHUNKS
                ),
            )
    for tile in range(first, tl.minimum(first + tiles, every)):
        p = tile * PIXELS + tl.arange(0, PIXELS)
        live = p < pixels
        n, y, x_column = split(p, height, width)
        if PARTS == 2:
            y = y * 2 + part
            x_column = x_column * 2 + part
        at = p.to(tl.int64)
        if hoisted:
            out = tl.arange(0, BLOCK)
            dz = input_gradient(
                row, states, gradients, at, column + out, live, out < cout, channels,
                coefficients[0],
            )  # fmt: skip
        for block in range(first_block, last_block):
            c = block * BLOCK + tl.arange(0, BLOCK)
            known = c < cin
            if PARTS == 0:
                base = gradients + state_gradient
                total = load_pixels(base, at, channels, c, live, known)
            else:
                w = weights + tl.load(row + PART_PRODUCT)
                total = tl.zeros((PIXELS, BLOCK), dtype)
                for out_block in tl.static_range(out_blocks):
                    out = out_block * BLOCK + tl.arange(0, BLOCK)
                    own = out < cout
                    if not hoisted:
                        if kept:
                            its = coefficients[out_block]
                        else:
                            its = input_coefficients(
                                row, statistics, sums, column + out, own, channels, pixels, EPS,
                                CHUNKS,
                            )  # fmt: skip
                        dz = input_gradient(
                            row, states, gradients, at, column + out, live, own, channels, its
                        )
                    share = tl.load(
                        w + out[:, None] * cin + c[None, :],
                        mask=own[:, None] & known[None, :],
                        other=0.0,
                    )
                    total += product(dz, share, DOT, PRECISION)
                values = load_input(x, x_strides, x_size, n, y, x_column, c, live, known, dtype)
                total = through_relu(total, values)
            store_input(to, to_strides, x_size, n, y, x_column, c, live, known, total)
        if PARTS == 2:
            # The row's other pixel. Behind the others: here their places take no registers.
            for block in range(first_block, last_block):
                c = block * BLOCK + tl.arange(0, BLOCK)
                store_input(
                    to, to_strides, x_size, n, y, x_column + (1 - 2 * part), c, live, c < cin,
                    tl.zeros((PIXELS, BLOCK), dtype),
                )  # fmt: skip


@triton.jit
def pull_input(
    row,
    inputs,
    strides,
    sizes,
    cins,
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
    images,
    blocks,
    PARTS: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a chunk's gradients of a part's weights: a block of outputs, some of input channels."""
    chunk = tl.program_id(0) % CHUNKS
    out_blocks: tl.constexpr = (channels + BLOCK - 1) // BLOCK
    out = tl.program_id(0) // CHUNKS % out_blocks * BLOCK + tl.arange(0, BLOCK)
    first_block = tl.program_id(0) // (CHUNKS * out_blocks) * blocks
    position = tl.load(row + PART_POSITION)
    # Not what the row says: with a multiple of 16, as arguments are known to be, loads are wide.
    cin = cins[0]
    if len(cins) > 1:
        cin = tl.where(position == 0, cins[0], cins[1])
    cout, column, stride, shift = outputs_of_part(row, channels, PARTS)
    last_block = tl.minimum(first_block + blocks, tl.cdiv(cin, BLOCK))
    own = out < cout
    if (first_block < last_block) & (tl.program_id(0) // CHUNKS % out_blocks * BLOCK < cout):
        dtype: tl.constexpr = states.dtype.element_ty
        coefficients = input_coefficients(
            row, statistics, sums, column + out, own, channels, pixels, EPS, CHUNKS
        )
        slices: tl.constexpr = PIXELS // 16 if DOT and PRECISION == "ieee" else 1
        first, last = own_pixels(chunk, images, height * width, pixels)
        to = weight_gradients + chunk.to(tl.int64) * weight_count + tl.load(row + PART_PRODUCT)
        for block in range(first_block, last_block):
            c = block * BLOCK + tl.arange(0, BLOCK)
            known = c < cin
            total = tl.zeros((slices, BLOCK, BLOCK), dtype)
            for start in range(first, last, PIXELS):
                p = start + tl.arange(0, PIXELS)
                live = p < last
                n, y, x = split(p, height, width)
                dz = input_gradient(
                    row, states, gradients, p.to(tl.int64), column + out, live, own, channels,
                    coefficients,
                )  # fmt: skip
                values = load_either(
                    inputs, strides, sizes, position,
                    n, y * stride + shift, x * stride + shift, c, live, known, dtype,
                )  # fmt: skip
                values = rectified(values)
                if slices > 1:
                    total = tl.dot(
                        tl.permute(tl.reshape(dz, (slices, 16, BLOCK)), (0, 2, 1)),
                        tl.reshape(values, (slices, 16, BLOCK)),
                        total,
                        input_precision="ieee",
                    )
                else:
                    total += product(tl.trans(dz), values, DOT, PRECISION)[None, :, :]
            tl.store(
                to + out[:, None] * cin + c[None, :],
                tl.sum(total, axis=0),
                mask=own[:, None] & known[None, :],
            )
