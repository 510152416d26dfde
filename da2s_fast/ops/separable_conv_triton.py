"""Drivers of the Triton kernels of separable_conv: `kernels/separable_conv.py` and its backward."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from da2s_fast.kernels import separable_conv as kernels
from da2s_fast.kernels import separable_conv_backward as backward_kernels
from da2s_fast.kernels.launch import launch
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import launched_as, precision_of, rounds_to_tf32, tuned


class _Tuning(NamedTuple):
    """How work is cut.

    Attributes:
        pixels: of a tile.
        block: input channels of a tile at most.
        outs: output channels of a tile at most.
        chunks: that sums over pixels are cut into, at most.
        chunk_pixels: of a chunk, at least: it has as many sums as there are weights.
        added: numbers that a program adds up over the chunks.
    """

    pixels: int
    block: int
    outs: int
    chunks: int
    chunk_pixels: int
    added: int


# Not yet measured on a GPU: chosen so that no register is spilled. In double precision there are no
# tensor shapes, and sums of products hold (pixels, block, outs) numbers at once.
_TUNING = {80: _Tuning(pixels=32, block=32, outs=32, chunks=128, chunk_pixels=512, added=256)}
_DOUBLE = {80: _Tuning(pixels=16, block=16, outs=16, chunks=128, chunk_pixels=512, added=256)}
# Tensor shapes have at least so many rows and columns.
_LEAST = 16


class _Call:
    """What both passes tell their kernels.

    Args:
        x: (N, C, H, W).
        spatial: (C, 1, k, k).
        channel: (C_out, C, 1, 1).
        geometry: stride, padding, dilation.
    """

    def __init__(self, x: Tensor, spatial: Tensor, channel: Tensor, *geometry: int) -> None:
        double = x.dtype == torch.float64
        self.sum = torch.float64 if double else torch.float32
        self.tuning = tuned(_DOUBLE if double else _TUNING, x.device)
        self.images, self.channels, *in_size = x.shape
        self.outs, self.taps = channel.shape[0], spatial.shape[-1] ** 2
        stride, padding, dilation = geometry
        self.size = [(length - 1) // stride + 1 for length in in_size]
        self.block = _width(self.channels, self.tuning.block)
        self.out_block = _width(self.outs, self.tuning.outs)
        self.common: dict[str, Any] = {
            "x": x,
            "x_strides": x.stride(),
            "in_size": tuple(in_size),
            "spatial": spatial.contiguous(),
            "images": self.images,
            "height": self.size[0],
            "width": self.size[1],
            "channels": self.channels,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "KERNEL": spatial.shape[-1],
            "SUM": tl.float64 if double else tl.float32,
            "PIXELS": self.tuning.pixels,
            "BLOCK": self.block,
        }
        self.products = {
            "channel": channel.contiguous(),
            "outs": self.outs,
            "DOT": not double,
            "PRECISION": precision_of(x.dtype, rounds_to_tf32()),
            "OUTS": self.out_block,
        }

    def tiles(self, height: int, width: int) -> int:
        """Tiles of all images of a size."""
        return triton.cdiv(self.images * height * width, self.tuning.pixels)

    def launched(self, columns: int) -> dict[str, Any]:
        """How a kernel is launched: four numbers of a tile for every thread, or more."""
        numbers = self.tuning.pixels * columns // 4
        return launched_as("separable_conv", self.common["x"].device, numbers)


def _width(channels: int, most: int) -> int:
    return max(_LEAST, min(most, triton.next_power_of_2(channels)))


def separable_conv(  # noqa: PLR0917 - the schema's arguments
    x: Tensor, spatial: Tensor, channel: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """Run the operator of that name in one launch."""
    call = _Call(x, spatial, channel, stride, padding, dilation)
    output = x.new_empty((call.images, call.outs, *call.size)).contiguous(
        memory_format=memory_format_of(x)
    )
    launch(
        kernels.forward,
        (call.tiles(*call.size), triton.cdiv(call.outs, call.out_block)),
        **call.launched(call.out_block),
        output=output,
        output_strides=output.stride(),
        **call.common,
        **call.products,
    )
    return output


def separable_conv_backward(  # noqa: PLR0917 - the schema's arguments
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the operator of that name in at most three launches; what nobody wants is empty."""
    call = _Call(x, spatial, channel, stride, padding, dilation)
    for_x, for_spatial, for_channel = mask
    tiles = call.tiles(*call.size)
    tiles_per_chunk = 1
    if for_spatial or for_channel:
        least = call.tuning.chunk_pixels // call.tuning.pixels
        tiles_per_chunk = max(least, triton.cdiv(tiles, call.tuning.chunks))
    chunks = triton.cdiv(tiles, tiles_per_chunk)

    def room(wanted: bool, *shape: int) -> Tensor | None:
        return x.new_empty(shape, dtype=call.sum) if wanted else None

    reached = room(for_x, call.images, *call.size, call.channels)
    spatial_parts = room(for_spatial, chunks, call.channels, call.taps)
    channel_parts = room(for_channel, chunks, call.outs, call.channels)
    blocks, out_blocks = (
        triton.cdiv(call.channels, call.block),
        triton.cdiv(call.outs, call.out_block),
    )
    if any(mask):
        launch(
            backward_kernels.pull,
            (chunks, blocks * (out_blocks if for_channel else 1)),
            **call.launched(call.out_block),
            grad=grad,
            grad_strides=grad.stride(),
            reached=reached,
            spatial_parts=spatial_parts,
            channel_parts=channel_parts,
            tiles_per_chunk=tiles_per_chunk,
            SEVERAL=out_blocks > 1,
            TAPS=triton.next_power_of_2(call.taps),
            **call.common,
            **call.products,
        )
    grad_x = torch.empty_like(x, memory_format=memory_format_of(x)) if for_x else x.new_empty((0,))
    if for_x:
        launch(
            backward_kernels.spread,
            (call.tiles(*x.shape[2:]), blocks),
            **call.launched(call.block),
            reached=reached,
            to=grad_x,
            to_strides=grad_x.stride(),
            **call.common,
        )
    found = _collected(call, chunks, (spatial, spatial_parts), (channel, channel_parts))
    return grad_x, *found


def _collected(
    call: _Call, chunks: int, *wanted: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Gradients of both weights from the chunks' sums; empty where there are none."""
    found = [
        weight.new_empty((0,)) if parts is None else torch.empty_like(
            weight, memory_format=torch.contiguous_format
        )
        for weight, parts in wanted
    ]  # fmt: skip
    numbers = [gradient.numel() for gradient in found]
    parts: list[Any] = [parts for _, parts in wanted]
    to = [gradient if gradient.numel() else None for gradient in found]
    added = call.tuning.added
    if any(numbers):
        launch(
            backward_kernels.collect,
            (sum(triton.cdiv(count, added) for count in numbers),),
            **launched_as("separable_conv", found[0].device, added // 2),
            spatial_parts=parts[0],
            channel_parts=parts[1],
            to_spatial=to[0],
            to_channel=to[1],
            spatial_numbers=numbers[0],
            channel_numbers=numbers[1],
            CHUNKS=chunks,
            BLOCK=added,
        )
    return found[0], found[1]
