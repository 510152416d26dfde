"""cvt: between integers and floating-point formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.integer import Function
from tests.gpu.ptx.operands import At, Step
from tests.gpu.ptx.parse import Instruction
from tests.gpu.ptx.rounding import (
    NAN_BITS,
    bf16_to_f32,
    f32_to_bf16,
    flush,
    item_of,
    saturate,
    to_bits,
    to_f32,
)
from tests.gpu.ptx.types import FLOAT, SIZE, dtype_of

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_KNOWN = {"cvt", "sat", "ftz", "relu", "satfinite", "rn", "rz", "rm", "rp", "rna", *_INTEGRAL}


def _is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf", "tf"))


def convert(machine: Machine, instruction: Instruction) -> Step:
    """Decode cvt."""
    *modifiers, into, source = instruction.opcode
    unknown = set(modifiers) - _KNOWN
    if unknown or any(k not in SIZE for k in (into, source)):
        raise NotImplementedError(str(instruction))
    if len(instruction.operands) == 3:
        return _convert_pair(machine, instruction)
    result, operand = instruction.operands
    if item_of(into) != into or item_of(source) != source:
        raise NotImplementedError(str(instruction))
    by_bits = source in ("bf16", "tf32")
    read = machine.registers.reader(operand, f"b{8 * SIZE[source]}" if by_bits else source)
    floats = into if into in ("f16", "f32", "f64") else f"b{8 * SIZE[into]}"
    write = machine.registers.writer(result, floats if _is_float(into) else into)
    function = _conversion(instruction, modifiers, into, source)
    if source == "bf16":
        return lambda at: write(at, function(bf16_to_f32(read(at))))
    return lambda at: write(at, function(read(at)))


def _conversion(instruction: Instruction, modifiers: list[str], into: str, source: str) -> Function:
    """From numbers of the source to what is written."""
    if not _is_float(source):
        return _from_integer(modifiers, into)
    mode = next((m for m in modifiers if m in (*_INTEGRAL, "rn", "rz", "rm", "rp", "rna")), None)
    ftz = "ftz" in modifiers
    if not _is_float(into):
        if mode not in _INTEGRAL:
            raise NotImplementedError(str(instruction))
        return _to_integer(_INTEGRAL[mode], into, source, ftz)
    rounds = _rounder(into, mode, "relu" in modifiers, "satfinite" in modifiers)
    whole = _INTEGRAL.get(mode or "")

    def function(x: Any) -> Any:
        x = np.asarray(x)
        if ftz and source == "f32":
            x = flush(x)
        if whole is not None:
            x = whole(x)
        if "sat" in modifiers:
            x = saturate(x)
        result = rounds(x)
        return flush(result) if ftz and into == "f32" else result

    return function


def _from_integer(modifiers: list[str], into: str) -> Function:
    if _is_float(into):
        mode = next((m for m in modifiers if m in ("rn", "rz", "rm", "rp")), "rn")
        if into == "bf16":
            return lambda x: to_bits(np.asarray(x).astype(np.float64), "bf16")
        if mode != "rn":
            if into != "f32":
                raise NotImplementedError(f"cvt.{mode}.{into} of integers")
            return lambda x: to_f32(np.asarray(x).astype(np.float64), mode)
        return lambda x: np.asarray(x).astype(FLOAT[SIZE[into]])
    if "sat" not in modifiers:
        return lambda x: np.asarray(x).astype(dtype_of(into))
    limits = np.iinfo(dtype_of(into))

    def clamp(x: Any) -> Any:
        # Python's integers know no overflow; conversions that saturate are rare.
        exact = np.atleast_1d(x).astype(object)
        return np.clip(exact, int(limits.min), int(limits.max)).astype(dtype_of(into))

    return clamp


def _to_integer(whole: Function, into: str, source: str, ftz: bool) -> Function:
    """Out of range clamps; NaN becomes 0, or only the highest bit where 64 bits are involved."""
    dtype = dtype_of(into)
    limits = np.iinfo(dtype)
    wide = source == "f64" or SIZE[into] == 8
    nan = (1 << (8 * SIZE[into] - 1)) if wide else 0
    unsigned_nan = np.array(nan, f"u{SIZE[into]}").view(dtype)
    low, high = float(limits.min), float(limits.max)

    def function(x: Any) -> Any:
        if ftz:
            x = flush(np.asarray(x))
        x = whole(np.asarray(x, np.float64))
        inside = (x >= low) & (x < high)
        result = np.where(inside, x, 0).astype(dtype)
        result = np.where(x >= high, dtype(limits.max), result)
        result = np.where(x < low, dtype(limits.min), result)
        return np.where(np.isnan(x), unsigned_nan, result)

    return function


def _rounder(into: str, mode: str | None, relu: bool, finite: bool) -> Function:
    """From floating-point numbers to what is written: values, or bits of bf16 and tf32."""
    if relu:
        plain = _rounder(into, mode, False, finite)
        return lambda x: plain(np.where(x < 0, np.zeros_like(x), x) + np.zeros_like(x))
    if finite:
        raise NotImplementedError("cvt with satfinite")
    if into == "tf32":
        return lambda x: _to_tf32(x, mode or "rn")
    if into == "bf16":
        if mode == "rz":
            return lambda x: _truncate(x, 16).astype(np.uint16)
        if mode not in ("rn", None, *_INTEGRAL):
            raise NotImplementedError(f"cvt.{mode}.bf16")
        return lambda x: to_bits(x, "bf16") if x.dtype == np.float64 else f32_to_bf16(x)
    if into == "f16" and mode == "rz":
        return _f16_to_zero
    dtype = FLOAT[SIZE[into]]
    if into == "f32" and mode in ("rz", "rm", "rp"):
        return lambda x: to_f32(x, mode)
    if mode in ("rn", None, *_INTEGRAL):
        return lambda x: x.astype(dtype)
    raise NotImplementedError(f"cvt.{mode}.{into}")


def _truncate(x: Any, dropped: int) -> Any:
    bits = np.asarray(x, np.float32).view(np.uint32) >> np.uint32(dropped)
    return np.where(np.isnan(x), np.uint32(NAN_BITS["f32"] >> dropped), bits)


def _f16_to_zero(x: Any) -> Any:
    near = x.astype(np.float16)
    over = np.abs(near.astype(x.dtype)) > np.abs(x)
    return np.where(over, np.nextafter(near, np.float16(0)), near)


def _to_tf32(x: Any, mode: str) -> Any:
    """f32 bits with 10 bits of fraction; the other 13 are zero."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    if mode == "rna":
        rounded = bits + np.uint32(0x1000)
    elif mode == "rn":
        rounded = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    else:
        rounded = bits
    special = ~np.isfinite(x)
    return np.where(special, bits, rounded) & np.uint32(0xFFFFE000)


def _convert_pair(machine: Machine, instruction: Instruction) -> Step:
    """Decode cvt of two f32 into a pair; the first becomes the upper half."""
    *modifiers, into, source = instruction.opcode
    item = item_of(into)
    if source != "f32" or item == into:
        raise NotImplementedError(str(instruction))
    mode = next((m for m in modifiers if m in ("rn", "rz")), None)
    function = _rounder(item, mode, "relu" in modifiers, "satfinite" in modifiers)
    result, upper, lower = instruction.operands
    reads = [machine.registers.reader(o, "f32") for o in (upper, lower)]
    write = machine.registers.writer(result, "b32")

    def half(value: Any) -> Any:
        found = np.asarray(function(np.asarray(value)))
        return (found if found.dtype == np.uint16 else found.view(np.uint16)).astype(np.uint32)

    def step(at: At) -> None:
        high, low = (half(read(at)) for read in reads)
        write(at, (high << np.uint32(16)) | low)

    return step


DECODERS = {"cvt": convert}
