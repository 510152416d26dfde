"""Gradients of the preprocessing: through its norm, 1x1 convolution or FactorizedReduce, and ReLU.

What a norm needs is at hand without its z: the state is the normalized tensor.

leave: grid (programs of a task, inputs and parts). For an input a program owns a tile of its
gradient, of some pixels and of some or all channels; FactorizedReduce hands a pixel something from
the first half if its row and column are even, from the second if they are odd. For a part of the
preprocessing it has a chunk of images and a block of the weights' gradient. Tasks differ in size:
programs that are too many do nothing.
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
from da2s_fast.kernels.cell.gather import outputs_of
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
def outputs_of_part(row, channels, REDUCES: tl.constexpr):
    """Return output channels, the first of them, stride and shift."""
    if REDUCES:
        _, cout, column, stride, shift, _ = part_of(row)
        return cout, column, stride, shift
    else:
        # Known when it is compiled: loads are wide then.
        return channels, 0, 1, 0


@triton.jit
def input_gradient(row, states, gradients, at, out, live, own, channels, scale, shift, slope):
    """Return dL/dz of (pixels, channels) of a normalized input; out are channels of the state."""
    return before_norm(
        load_pixels(gradients + place_of(row + PART_GRADIENT), at, channels, out, live, own),
        load_pixels(states + place_of(row + PART_STATE), at, channels, out, live, own),
        live, own, scale, tl.zeros((out.shape[0],), scale.dtype), shift, slope,
        tl.load(row + PART_FROZEN) != 0,
    )  # fmt: skip


@triton.jit
def behind_product(
    row, states, gradients, statistics, sums, at, out, live, own, channels, pixels,
    EPS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Likewise, where it is needed once."""
    scale, shift, slope = input_coefficients(
        row, statistics, sums, out, own, channels, pixels, EPS, CHUNKS
    )
    return input_gradient(row, states, gradients, at, out, live, own, channels, scale, shift, slope)


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
    parts,
    programs,
    pulling_programs,
    state_gradients,
    weights,
    weight_gradients,
    states,
    gradients,
    statistics,
    sums,
    batch,
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    weight_count,
    images,
    in_blocks,
    REDUCES: tl.constexpr,
    WHOLE: tl.constexpr,
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
        parts: how many rows each has; none where it is the state itself.
        programs: of each input.
        pulling_programs: of each part.
        state_gradients: where the gradients of their states are among the gradients.
        weight_gradients: (chunks, weight_count).
        batch: images.
        pixels: of a state.
        images: of a chunk.
        in_blocks: blocks of input channels of the weights' gradients.
        REDUCES: whether there is a FactorizedReduce.
        WHOLE: whether a program takes all channels of its pixels of an input, so that the state's
            gradient goes through the norm once: there are no FactorizedReduce and no further
            blocks of the state's channels then.
    """
    task = tl.program_id(1)
    for position in tl.static_range(len(inputs)):
        if to[position] is not None:  # noqa: SIM102 - not compiled else
            if (task == position) & (tl.program_id(0) < programs[position]):
                reach_input(
                    table, firsts[position], parts[position], inputs[position], strides[position],
                    sizes[position], to[position], to_strides[position], cins[position], weights,
                    states, gradients, state_gradients[position], statistics, sums, batch, pixels,
                    height, width, channels, REDUCES, WHOLE, EPS, DOT, PRECISION, PIXELS, CHUNKS,
                    BLOCK,
                )  # fmt: skip
    if WEIGHTS:  # noqa: SIM102 - not compiled else
        if (task >= len(inputs)) & (tl.program_id(0) < pulling_programs):
            pull_input(
                table + (task - len(inputs)) * PART, inputs, strides, sizes, cins, states,
                gradients, weight_gradients, statistics, sums, pixels, height, width, channels,
                weight_count, images, in_blocks, REDUCES, EPS, DOT, PRECISION, PIXELS, CHUNKS,
                BLOCK,
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
    batch,
    pixels,
    height,
    width,
    channels,
    REDUCES: tl.constexpr,
    WHOLE: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a tile of an input's gradient, or with WHOLE those of all channels."""
    x_pixels = batch * x_size[0] * x_size[1]
    tiles = tl.cdiv(x_pixels, PIXELS)
    p = tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS)
    live = p < x_pixels
    n, y, x_column = split(p, x_size[0], x_size[1])
    dtype: tl.constexpr = states.dtype.element_ty
    block = tl.program_id(0) // tiles
    last = block + 1
    dz = tl.zeros((PIXELS, BLOCK), dtype)
    if WHOLE:
        last = tl.cdiv(cin, BLOCK)
        if parts > 0:
            dz = behind_product(
                table + first * PART, states, gradients, statistics, sums, p.to(tl.int64),
                tl.arange(0, BLOCK), live, tl.arange(0, BLOCK) < channels, channels, pixels, EPS,
                CHUNKS,
            )  # fmt: skip
    place = (
        n.to(tl.int64) * to_strides[0]
        + y.to(tl.int64) * to_strides[2]
        + x_column.to(tl.int64) * to_strides[3]
    )
    while block < last:
        c = block * BLOCK + tl.arange(0, BLOCK)
        known = c < cin
        total = tl.zeros((PIXELS, BLOCK), dtype)
        if parts == 0:
            base = gradients + state_gradient
            total = load_pixels(base, p.to(tl.int64), channels, c, live, known)
        else:
            for index in range(0, parts):
                row = table + (first + index) * PART
                cout, column, stride, shift = outputs_of_part(row, channels, REDUCES)
                w = weights + tl.load(row + PART_PRODUCT)
                at, there = outputs_of(n, y, x_column, shift, shift, stride, height, width, live)
                for out_block in range(0, tl.cdiv(cout, BLOCK)):
                    out = out_block * BLOCK + tl.arange(0, BLOCK)
                    own = out < cout
                    if not WHOLE:
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
        tl.store(
            to + place[:, None] + c[None, :].to(tl.int64) * to_strides[1],
            total.to(to.dtype.element_ty),
            mask=live[:, None] & known[None, :],
        )
        block += 1


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
    in_blocks,
    REDUCES: tl.constexpr,
    EPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a chunk's block of the gradients of a part's weights."""
    chunk = tl.program_id(0) % CHUNKS
    block = tl.program_id(0) // CHUNKS
    position = tl.load(row + PART_POSITION)
    # Not what the row says: with a multiple of 16, as arguments are known to be, loads are wide.
    cin = cins[0]
    if len(cins) > 1:
        cin = tl.where(position == 0, cins[0], cins[1])
    cout, column, stride, shift = outputs_of_part(row, channels, REDUCES)
    c = block % in_blocks * BLOCK + tl.arange(0, BLOCK)
    known = c < cin
    out = block // in_blocks * BLOCK + tl.arange(0, BLOCK)
    own = out < cout
    dtype: tl.constexpr = states.dtype.element_ty
    scale, tilt, slope = input_coefficients(
        row, statistics, sums, column + out, own, channels, pixels, EPS, CHUNKS
    )
    slices: tl.constexpr = PIXELS // 16 if DOT and PRECISION == "ieee" else 1
    total = tl.zeros((slices, BLOCK, BLOCK), dtype)
    first, last = own_pixels(chunk, images, height * width, pixels)
    for start in range(first, last, PIXELS):
        p = start + tl.arange(0, PIXELS)
        live = p < last
        n, y, x = split(p, height, width)
        dz = input_gradient(
            row, states, gradients, p.to(tl.int64), column + out, live, own, channels, scale, tilt,
            slope,
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
    to = weight_gradients + chunk.to(tl.int64) * weight_count + tl.load(row + PART_PRODUCT)
    total = tl.sum(total, axis=0)
    tl.store(to + out[:, None] * cin + c[None, :], total, mask=own[:, None] & known[None, :])
