"""Triton kernels of mixed_sum's forward; da2s_fast/ops/mixed_sum.py says what is computed.

All tensors of a call have one layout and are seen as rows of columns without gaps in memory:

- contiguous: a row is a channel of an image, its columns are pixels;
- channels_last, or without pixels (ACROSS): a row is a pixel, a column a channel;
- without norms there are no channels: one row of everything.

A program takes tiles of ROWS by COLUMNS, powers of two, for all inputs: loops over inputs are
unrolled, their pointers are tuples, their MODES constants. In a tile the numbers that belong to
channels are a vector along the rows or the columns, so no index is divided per element, and threads
read 128 bits at a time where a row is a multiple of 16 numbers.

Sums over channels take no atomics, hence come out the same every time: a launch writes PARTS
partial sums per channel, the next adds them. PARTS depends on shapes only. A thread adds what it
finds at its places of every tile in float32 (float64 inputs have float64 everywhere); the places,
and then the parts, are added in float64, for few additions per number.

Launches: `moments`, `statistics` and `forward`; only the last without norms.
"""

import triton
import triton.language as tl

# How an input is normalized, as in da2s_fast/ops/mixed_sum.py.
_NONE = tl.constexpr(0)
_BATCH = tl.constexpr(1)
_RUNNING = tl.constexpr(2)


@triton.jit
def sum_of_channels(values, ACROSS: tl.constexpr):
    """Sum a tile in float64 to (1, COLUMNS), one sum per channel, or to (1, 1)."""
    values = values.to(tl.float64)
    if ACROSS:
        return tl.sum(values, axis=0, keep_dims=True)
    else:
        return tl.sum(values, keep_dims=True)


@triton.jit
def share(
    rows, columns, channels, PARTS: tl.constexpr, ACROSS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return what one program sums: its part, its channels, their mask, and where they start.

    (rows, columns) are those of one channel; across channels of a block of them.
    """
    part = tl.program_id(0) % PARTS
    block = (tl.program_id(0) // PARTS).to(tl.int64)
    if ACROSS:
        start = block * COLUMNS
        channel = start + tl.arange(0, COLUMNS)[None, :]
    else:
        start = block * columns
        channel = block + tl.arange(0, 1)[None, :]
    return part, channel, channel < channels, start


@triton.jit
def tile_of_share(
    tile,
    start,
    rows,
    columns,
    row_stride,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return offsets and mask of one of the tiles of a channel, or of a block of channels."""
    if ACROSS:
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, COLUMNS)[None, :]
        mask = (row < rows) & (start + column < columns)
    else:
        across = tl.cdiv(columns, COLUMNS)
        row = tl.cast(tile // across, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        mask = (row < rows) & (column < columns)
    return start + row * row_stride + column, mask


@triton.jit
def moments(
    inputs,
    partial,
    rows,
    columns,
    row_stride,
    channels,
    tiles,
    MODES: tl.constexpr,
    PARTS: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write how many values there are in each part of a channel, their sum and squared deviations.

    Grid: channels (or blocks of COLUMNS of them) times PARTS.

    Args:
        inputs: tensors of one layout.
        partial: (inputs with batch statistics, 3, PARTS, channels), float64.
        rows: of a channel, or of all channels where they lie across; so are columns.
        columns: as said.
        row_stride: from one row of a channel to the next.
        channels: of the inputs.
        tiles: of a channel, or of a block of channels; at least PARTS.
        MODES: per input.
        PARTS: programs that share a channel.
        ACROSS: whether columns are channels.
        ROWS: of a tile.
        COLUMNS: of a tile.
        SUM: the type of sums.
    """
    part, channel, is_channel, start = share(rows, columns, channels, PARTS, ACROSS, COLUMNS)
    to = partial + part.to(tl.int64) * channels + channel
    step = tl.cast(channels, tl.int64) * PARTS
    for k in tl.static_range(len(MODES)):
        if MODES[k] == _BATCH:
            at, mask = tile_of_share(part, start, rows, columns, row_stride, ACROSS, ROWS, COLUMNS)
            y = tl.load(inputs[k] + at, mask=mask, other=0).to(SUM)
            # Deviations from the mean of the first tile keep the digits that squares would lose.
            # Where that mean is not finite they are from 0: then the sum is what eager's would be.
            count = sum_of_channels(mask.to(tl.int32), ACROSS)
            shift = (sum_of_channels(y, ACROSS) / tl.maximum(count, 1)).to(SUM)
            shift = tl.where(tl.abs(shift) < float("inf"), shift, 0)
            deviations = tl.where(mask, y - shift, 0)
            squares = tl.where(mask, deviations * deviations, 0)
            counts = mask.to(tl.int32)
            for tile in range(part + PARTS, tiles, PARTS):
                at, mask = tile_of_share(
                    tile, start, rows, columns, row_stride, ACROSS, ROWS, COLUMNS
                )
                y = tl.load(inputs[k] + at, mask=mask, other=0).to(SUM)
                deviation = tl.where(mask, y - shift, 0)
                deviations += deviation
                squares += deviation * deviation
                counts += mask.to(tl.int32)
            count = sum_of_channels(counts, ACROSS)
            off = sum_of_channels(deviations, ACROSS)
            squared = sum_of_channels(squares, ACROSS)
            tl.store(to, count, mask=is_channel)
            tl.store(to + step, count * shift.to(tl.float64) + off, mask=is_channel)
            tl.store(to + 2 * step, squared - off * off / tl.maximum(count, 1), mask=is_channel)
            to += 3 * step


@triton.jit
def sum_of_parts(partial, channel, is_channel, channels, PARTS: tl.constexpr, ROWS: tl.constexpr):
    """Add the partial sums of channels (1, COLUMNS)."""
    sums = tl.zeros((ROWS, channel.shape[1]), tl.float64)
    for start in range(0, PARTS, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        at = partial + part.to(tl.int64) * channels + channel
        sums += tl.load(at, mask=(part < PARTS) & is_channel, other=0)
    return tl.sum(sums, axis=0, keep_dims=True)


@triton.jit
def _squares_of_parts(
    partial, mean, channel, is_channel, channels, PARTS: tl.constexpr, ROWS: tl.constexpr
):
    """Add squared deviations of parts from their means, and of these from the channel's."""
    step = tl.cast(channels, tl.int64) * PARTS
    squares = tl.zeros((ROWS, channel.shape[1]), tl.float64)
    for start in range(0, PARTS, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        at = partial + part.to(tl.int64) * channels + channel
        mask = (part < PARTS) & is_channel
        count = tl.load(at, mask=mask, other=1)
        off = tl.load(at + step, mask=mask, other=0) / count - mean
        squares += tl.where(mask, tl.load(at + 2 * step, mask=mask, other=0) + count * off * off, 0)
    return tl.sum(squares, axis=0, keep_dims=True)


@triton.jit
def statistics(
    partial,
    running_means,
    running_vars,
    mean,
    variance,
    values,
    channels,
    MODES: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write mean and biased variance of every normalized input: of the batch, or running ones.

    Grid: blocks of COLUMNS channels, normalized inputs.

    Args:
        partial: of `moments`, with as many PARTS.
        running_means: per input; None where they are of another mode.
        running_vars: likewise.
        mean: (normalized inputs, channels).
        variance: likewise.
        values: of a channel.
        channels: of the inputs.
        MODES: per input.
        PARTS: programs that shared a channel.
        ROWS: parts that are read at a time.
        COLUMNS: channels of a program.
    """
    channel = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    is_channel = channel < channels
    row = tl.program_id(1)
    to = row.to(tl.int64) * channels + channel
    # Which of the inputs with batch statistics the program has; all of them share one code.
    batch_row = 0
    is_batch = False
    normalized = 0
    for k in tl.static_range(len(MODES)):
        if MODES[k] == _BATCH:
            is_batch = is_batch | (row == normalized)
            batch_row += (row > normalized).to(tl.int32)
            normalized += 1
        elif MODES[k] == _RUNNING:
            if row == normalized:
                value = tl.load(running_means[k] + channel, mask=is_channel)
                tl.store(mean + to, value, mask=is_channel)
                value = tl.load(running_vars[k] + channel, mask=is_channel)
                tl.store(variance + to, value, mask=is_channel)
            normalized += 1
    if is_batch:
        step = tl.cast(channels, tl.int64) * PARTS
        parts = partial + batch_row * 3 * step
        average = sum_of_parts(parts + step, channel, is_channel, channels, PARTS, ROWS) / values
        squares = _squares_of_parts(parts, average, channel, is_channel, channels, PARTS, ROWS)
        tl.store(mean + to, average, mask=is_channel)
        # Rounding can leave less than 0 where all values are equal; NaN stays.
        squares = tl.where(squares < 0, 0, squares)
        tl.store(variance + to, squares / values, mask=is_channel)


@triton.jit
def tile_of_all(
    rows, columns, channels, ACROSS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return offsets and mask of a program's tile of all rows, its channels, and their mask."""
    across = tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0)
    row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    if ACROSS:
        return row * columns + column, mask, column, column < columns
    else:
        return row * columns + column, mask, row % channels, row < rows


@triton.jit
def deviation_of(variance, eps):
    """Return sqrt(variance + eps), rounded once."""
    if variance.dtype == tl.float64:
        return tl.sqrt(variance + eps)
    else:
        return tl.sqrt_rn(variance + eps)


@triton.jit
def quotient(a, b):
    """Return a / b, rounded once."""
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a.broadcast_to(b.shape), b)


@triton.jit
def forward(
    inputs,
    weights,
    mean,
    variance,
    output,
    rows,
    columns,
    channels,
    MODES: tl.constexpr,
    EPS: tl.constexpr,
    ACROSS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """Write the weighted sum; a program has a tile of it.

    Args:
        inputs: tensors of one layout.
        weights: one per input, of type SUM.
        mean: (normalized inputs, channels), of type SUM.
        variance: likewise.
        output: of the layout of the inputs.
        rows: of all channels.
        columns: of a row.
        channels: of the inputs.
        MODES: per input.
        EPS: per input.
        ACROSS: whether columns are channels.
        ROWS: of a tile.
        COLUMNS: of a tile.
        SUM: the type of sums.
    """
    at, mask, channel, is_channel = tile_of_all(rows, columns, channels, ACROSS, ROWS, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), SUM)
    for k in tl.static_range(len(MODES)):
        y = tl.load(inputs[k] + at, mask=mask, other=0).to(SUM)
        weight = tl.load(weights + k)
        if MODES[k] == _NONE:
            total += weight * y
        else:
            center = tl.load(mean + channel, mask=is_channel, other=0)
            deviation = deviation_of(tl.load(variance + channel, mask=is_channel, other=1), EPS[k])
            total += quotient(weight, deviation) * (y - center)
            mean += channels
            variance += channels
    tl.store(output + at, total.to(output.dtype.element_ty), mask=mask)
