"""Drivers of the Triton kernels of separable_conv: `kernels/separable_conv.py` and its backward."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from da2s_fast.kernels import schedule
from da2s_fast.kernels import separable_conv as kernels
from da2s_fast.kernels import separable_conv_backward as backward_kernels
from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
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


class _Geometry(NamedTuple):
    """The operators' numbers, and whether float32 may be rounded to TF32 in products."""

    stride: int
    padding: int
    dilation: int
    tf32: bool

    def size(self, x: Tensor | Slot) -> list[int]:
        """Height and width of the output."""
        return [(length - 1) // self.stride + 1 for length in x.shape[2:]]


class _Call:
    """What both passes tell their kernels.

    Args:
        slots: "x" (N, C, H, W), "spatial" (C, 1, k, k) and "channel" (C_out, C, 1, 1).
        geometry: of the call.
    """

    def __init__(self, slots: Mapping[str, Slot], geometry: _Geometry) -> None:
        self.x, spatial, channel = (slots[name] for name in ("x", "spatial", "channel"))
        double = self.x.dtype == torch.float64
        self.tuning = _tuning(self.x)
        self.images, self.channels, *in_size = self.x.shape
        self.outs, self.taps = channel.shape[0], spatial.shape[-1] ** 2
        self.size = geometry.size(self.x)
        self.block = _width(self.channels, self.tuning.block)
        self.out_block = _width(self.outs, self.tuning.outs)
        self.common: dict[str, Any] = {
            "x": self.x,
            "x_strides": self.x.stride(),
            "in_size": tuple(in_size),
            "spatial": spatial,
            "images": self.images,
            "height": self.size[0],
            "width": self.size[1],
            "channels": self.channels,
            "stride": geometry.stride,
            "padding": geometry.padding,
            "dilation": geometry.dilation,
            "KERNEL": spatial.shape[-1],
            "SUM": tl.float64 if double else tl.float32,
            "PIXELS": self.tuning.pixels,
            "BLOCK": self.block,
        }
        self.products = {
            "channel": channel,
            "outs": self.outs,
            "DOT": not double,
            "PRECISION": precision_of(self.x.dtype, geometry.tf32),
            "OUTS": self.out_block,
        }

    def tiles(self, height: int, width: int) -> int:
        """Tiles of all images of a size."""
        return triton.cdiv(self.images * height * width, self.tuning.pixels)

    def launched(self, columns: int) -> dict[str, Any]:
        """How a kernel is launched: four numbers of a tile for every thread, or more."""
        numbers = self.tuning.pixels * columns // 4
        return launched_as("separable_conv", self.x.device, numbers)


def _tuning(x: Tensor | Slot) -> _Tuning:
    return tuned(_DOUBLE if x.dtype == torch.float64 else _TUNING, x.device)


def _width(channels: int, most: int) -> int:
    return max(_LEAST, min(most, triton.next_power_of_2(channels)))


def separable_conv(  # noqa: PLR0917 - the schema's arguments
    x: Tensor, spatial: Tensor, channel: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """Run the operator of that name in one launch."""
    geometry = _Geometry(stride, padding, dilation, rounds_to_tf32())
    output = x.new_empty((x.shape[0], channel.shape[0], *geometry.size(x))).contiguous(
        memory_format=memory_format_of(x)
    )
    schedule.start(_forward, {**_given(x, spatial, channel), "output": output}, geometry)
    return output


def _given(x: Tensor, spatial: Tensor, channel: Tensor) -> dict[str, Tensor]:
    return {"x": x, "spatial": spatial.contiguous(), "channel": channel.contiguous()}


def _forward(slots: Mapping[str, Slot], geometry: _Geometry) -> None:
    call = _Call(slots, geometry)
    launch(
        kernels.forward,
        (call.tiles(*call.size), triton.cdiv(call.outs, call.out_block)),
        **call.launched(call.out_block),
        output=slots["output"],
        output_strides=slots["output"].stride(),
        **call.common,
        **call.products,
    )


class _Chunks(NamedTuple):
    """How sums over pixels are cut."""

    chunks: int
    tiles_per_chunk: int


def _chunks(x: Tensor, geometry: _Geometry, for_weights: bool) -> _Chunks:
    """One tile each where nobody wants the weights' gradients."""
    tuning, (height, width) = _tuning(x), geometry.size(x)
    tiles = triton.cdiv(x.shape[0] * height * width, tuning.pixels)
    least = tuning.chunk_pixels // tuning.pixels
    tiles_per_chunk = max(least, triton.cdiv(tiles, tuning.chunks)) if for_weights else 1
    return _Chunks(triton.cdiv(tiles, tiles_per_chunk), tiles_per_chunk)


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
    geometry = _Geometry(stride, padding, dilation, rounds_to_tf32())
    for_x, for_spatial, for_channel = mask
    cut = _chunks(x, geometry, for_spatial or for_channel)
    grad_x = torch.empty_like(x, memory_format=memory_format_of(x)) if for_x else x.new_empty((0,))
    found = [
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if wanted
        else weight.new_empty((0,))
        for weight, wanted in ((spatial, for_spatial), (channel, for_channel))
    ]
    if any(mask):
        images, channels, outs = *x.shape[:2], channel.shape[0]
        rooms = {
            "reached": (for_x, (images, *geometry.size(x), channels)),
            "spatial_parts": (for_spatial, (cut.chunks, channels, spatial.shape[-1] ** 2)),
            "channel_parts": (for_channel, (cut.chunks, outs, channels)),
        }
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        tensors = {
            **_given(x, spatial, channel),
            "grad": grad,
            "to": grad_x,
            "to_spatial": found[0],
            "to_channel": found[1],
            **{
                name: x.new_empty(shape, dtype=dtype)
                for name, (wanted, shape) in rooms.items()
                if wanted
            },
        }
        schedule.start(_backward, tensors, geometry, cut)
    return grad_x, found[0], found[1]


def _backward(slots: Mapping[str, Slot], geometry: _Geometry, cut: _Chunks) -> None:
    """All launches; there are slots for what is wanted."""
    call = _Call(slots, geometry)
    blocks = triton.cdiv(call.channels, call.block)
    out_blocks = triton.cdiv(call.outs, call.out_block)
    reached, *parts = (slots.get(n) for n in ("reached", "spatial_parts", "channel_parts"))
    launch(
        backward_kernels.pull,
        (cut.chunks, blocks * (1 if parts[1] is None else out_blocks)),
        **call.launched(call.out_block),
        grad=slots["grad"],
        grad_strides=slots["grad"].stride(),
        reached=reached,
        spatial_parts=parts[0],
        channel_parts=parts[1],
        tiles_per_chunk=cut.tiles_per_chunk,
        SEVERAL=out_blocks > 1,
        TAPS=triton.next_power_of_2(call.taps),
        **call.common,
        **call.products,
    )
    if reached is not None:
        launch(
            backward_kernels.spread,
            (call.tiles(*call.x.shape[2:]), blocks),
            **call.launched(call.block),
            reached=reached,
            to=slots["to"],
            to_strides=slots["to"].stride(),
            ANY_STRIDE=geometry.stride > 2,
            **call.common,
        )
    _collect(call, slots, parts, cut)


def _collect(
    call: _Call, slots: Mapping[str, Slot], parts: Sequence[Slot | None], cut: _Chunks
) -> None:
    """Gradients of the weights that are wanted from the chunks' sums."""
    to = [
        None if own is None else slots[name]
        for name, own in zip(("to_spatial", "to_channel"), parts, strict=True)
    ]
    numbers = [0 if slot is None else prod(slot.shape) for slot in to]
    added = call.tuning.added
    if any(numbers):
        launch(
            backward_kernels.collect,
            (sum(triton.cdiv(count, added) for count in numbers),),
            **launched_as("separable_conv", call.x.device, added // 2),
            spatial_parts=parts[0],
            channel_parts=parts[1],
            to_spatial=to[0],
            to_channel=to[1],
            spatial_numbers=numbers[0],
            channel_numbers=numbers[1],
            CHUNKS=cut.chunks,
            BLOCK=added,
        )
