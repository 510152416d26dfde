"""Triton kernel of separable_conv's forward; da2s_fast/ops/separable_conv.py says what is computed.

A program takes PIXELS pixels of the output, one after the other through all images, and OUTS of its
channels. BLOCK channels of the input at a time, it sums the depthwise convolution tap by tap in
registers and hands it to the product with the pointwise weights: ReLU and depthwise result are
nowhere in memory. Where OUTS is all output channels nothing is computed twice. Tensors may have any
strides: threads lie along the channels of channels_last tensors, along the pixels of contiguous
ones.
"""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import product, rectified
from da2s_fast.kernels.cell.prepare import load_input


@triton.jit
def pixels_of(tile, height, width, PIXELS: tl.constexpr):
    """Return image (int64), row and column of a tile's pixels.

    Of all images together there may be more pixels than 32 bits count, of one image not.
    """
    first = tl.cast(tile, tl.int64) * PIXELS
    size = tl.cast(height, tl.int64) * width
    image = first // size
    rest = (first - image * size).to(tl.int32) + tl.arange(0, PIXELS)
    size = size.to(tl.int32)
    place = rest % size
    return image + rest // size, place // width, place % width


@triton.jit
def store_output(to, strides, n, y, x, channel, live, known, values):
    """Store (pixels, channels) in (N, C, H, W) with any strides."""
    at = n * strides[0] + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]
    tl.store(
        to + at[:, None] + channel[None, :].to(tl.int64) * strides[1],
        values.to(to.dtype.element_ty),
        mask=live[:, None] & known[None, :],
    )


@triton.jit
def load_tap(
    x, strides, size, spatial, n, top, left, tap, dilation, channel, live, known,
    KERNEL: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Load what a tap of windows at (top, left) sees of ReLU, (pixels, channels), and its weights.

    x has the strides given, size is (height, width); spatial is (channels, KERNEL * KERNEL).
    """
    values = load_input(
        x, strides, size, n, top + tap // KERNEL * dilation, left + tap % KERNEL * dilation,
        channel, live, known, SUM,
    )  # fmt: skip
    factor = tl.load(spatial + channel * (KERNEL * KERNEL) + tap, mask=known, other=0).to(SUM)
    return rectified(values), factor


@triton.jit
def load_pointwise(channel, out, c, outs, channels, SUM: tl.constexpr):
    """Load pointwise weights, (outputs, inputs)."""
    return tl.load(
        channel + out[:, None].to(tl.int64) * channels + c[None, :],
        mask=(out < outs)[:, None] & (c < channels)[None, :],
        other=0,
    ).to(SUM)


@triton.jit
def forward(
    x,
    x_strides,
    in_size,
    spatial,
    channel,
    output,
    output_strides,
    images,
    height,
    width,
    channels,
    outs,
    stride,
    padding,
    dilation,
    KERNEL: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTS: tl.constexpr,
):
    """Write the output. Grid: tiles of pixels, blocks of output channels.

    Args:
        x: (images, channels, *in_size).
        x_strides: of its four dimensions.
        in_size: height and width.
        spatial: (channels, KERNEL * KERNEL).
        channel: (outs, channels).
        output: (images, outs, height, width).
        output_strides: of its four dimensions.
        images: N.
        height: of the output.
        width: of the output.
        channels: of x.
        outs: channels of the output.
        stride: of the depthwise convolution, as are the next two.
        padding: as said.
        dilation: as said.
        KERNEL: rows and columns of the depthwise weights.
        DOT: whether products are taken in tensor shapes.
        PRECISION: of those products.
        SUM: the type of sums.
        PIXELS: of a tile.
        BLOCK: channels of the input at a time.
        OUTS: channels of the output of a program.
    """
    n, y, x_ = pixels_of(tl.program_id(0), height, width, PIXELS)
    live = n < images
    out = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    total = tl.zeros((PIXELS, OUTS), SUM)
    for block in range(0, tl.cdiv(channels, BLOCK)):
        c = block * BLOCK + tl.arange(0, BLOCK)
        known = c < channels
        between = tl.zeros((PIXELS, BLOCK), SUM)
        for tap in range(0, KERNEL * KERNEL):
            values, factor = load_tap(
                x, x_strides, in_size, spatial, n, y * stride - padding, x_ * stride - padding,
                tap, dilation, c, live, known, KERNEL, SUM,
            )  # fmt: skip
            between += values * factor[None, :]
        share = load_pointwise(channel, out, c, outs, channels, SUM)
        total += product(between, tl.trans(share), DOT, PRECISION)
    store_output(output, output_strides, n, y, x_, out, live, out < outs, total)
