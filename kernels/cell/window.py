"""What windows of convolutions and pools read: taps, layers' inputs, pooled values."""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import beats, load_pixels, rectified
from da2s_fast.kernels.cell.rows import (
    COLUMN,
    COUT,
    DILATION,
    HEIGHT,
    KERNEL,
    PADDING,
    STRIDE,
    WIDTH,
)


@triton.jit
def tap_values(x, pitch, n, y, c_x, height, width, live, channel, known):
    """Load one tap of a window, (pixels, channels), and where it is inside the image."""
    inside = live & (y >= 0) & (y < height) & (c_x >= 0) & (c_x < width)
    at = (n.to(tl.int64) * height + y) * width + c_x
    return load_pixels(x, at, pitch, channel, inside, known), inside


@triton.jit
def columns_of(row, channels, HALVES: tl.constexpr):
    """Return how many channels of z a row has and the first; all where no row has half of them."""
    if HALVES:
        cout = tl.load(row + COUT).to(tl.int32)
        column = tl.load(row + COLUMN).to(tl.int32)
    else:
        cout = channels
        column = 0
    return cout, column


@triton.jit
def layer_input(
    x, pitch, n, y, c_x, height, width, live, channel, known, mean, rstd, SECOND: tl.constexpr
):
    """Load one tap of a layer's input behind its ReLU; second layers normalize it first."""
    values, inside = tap_values(x, pitch, n, y, c_x, height, width, live, channel, known)
    if SECOND:
        values = tl.where(inside[:, None], (values - mean[None, :]) * rstd[None, :], 0)
    return rectified(values)


@triton.jit
def pooled(x, pitch, n, y, c_x, height, width, live, channel, known, AVERAGES: tl.constexpr):
    """Return a 3x3 window's average or maximum, and which tap the maximum was.

    As in PyTorch: the first of equal maxima, the last NaN; averages are over what is inside.
    """
    shape: tl.constexpr = (n.shape[0], channel.shape[0])
    zero = tl.zeros(shape, x.dtype.element_ty)
    result = zero if AVERAGES else zero - float("inf")
    winner = zero - 1
    count = tl.zeros((n.shape[0],), tl.int32)
    for tap in range(0, 9):
        values, inside = tap_values(
            x, pitch, n, y - 1 + tap // 3, c_x - 1 + tap % 3, height, width, live, channel, known
        )
        if AVERAGES:
            result += values
            count += inside.to(tl.int32)
        else:
            wins = beats(values, result) | (winner < 0)
            wins = wins & inside[:, None]
            result = tl.where(wins, values, result)
            winner = tl.where(wins, tap, winner)
    if AVERAGES:
        result = result / tl.maximum(count, 1).to(x.dtype.element_ty)[:, None]
    return result, winner


@triton.jit
def window_of(row):
    """Return height and width of a row's input, stride, dilation, size and padding."""
    return (
        tl.load(row + HEIGHT).to(tl.int32),
        tl.load(row + WIDTH).to(tl.int32),
        tl.load(row + STRIDE).to(tl.int32),
        tl.load(row + DILATION).to(tl.int32),
        tl.load(row + KERNEL).to(tl.int32),
        tl.load(row + PADDING).to(tl.int32),
    )
