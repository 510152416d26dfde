"""Floating-point formats as numpy sees them, and exact rounding.

bf16 numbers live as f32, pairs as arrays with a last axis of two. Sums that double precision
cannot hold are rounded to odd first (Boldo and Melquiond, "Emulation of FMA and correctly rounded
sums"), so that the second rounding, to the narrower format, is the only one that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.gpu.ptx.operands import Array
from tests.gpu.ptx.types import FLOAT, SIZE, UNSIGNED

NAN_BITS = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}
_ITEM = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}


def item_of(kind: str) -> str:
    """The format of one of a pair's numbers, or the format itself."""
    return _ITEM.get(kind, kind)


def bf16_to_f32(bits: Any) -> Any:
    """Exact."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: Any) -> Any:
    """Round to nearest, ties to even; NaN becomes 0x7fff."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(NAN_BITS["bf16"]), rounded)


def from_bits(bits: Any, kind: str) -> Array:
    """Numbers of a format from unsigned integers of its size."""
    item = item_of(kind)
    if item != kind:
        halves = UNSIGNED[SIZE[item]]
        bits = np.ascontiguousarray(np.atleast_1d(bits)).view(halves).reshape(-1, 2)
    if item == "bf16":
        return bf16_to_f32(bits)
    return np.asarray(bits).view(FLOAT[SIZE[item]])


def to_bits(values: Any, kind: str) -> Array:
    """Round to a format; unsigned integers of its size."""
    item = item_of(kind)
    if item == "bf16":
        if np.asarray(values).dtype == np.float64:
            values = to_f32_odd(values)
        bits = f32_to_bf16(values)
    else:
        bits = np.asarray(values, FLOAT[SIZE[item]]).view(UNSIGNED[SIZE[item]])
    if item == kind:
        return bits
    return np.ascontiguousarray(bits).view(UNSIGNED[SIZE[kind]])[..., 0]


def flush(values: Any) -> Any:
    """Subnormal f32 numbers as zeros of their sign."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, values * np.float32(0), values)


def saturate(values: Any) -> Any:
    """Clamp to [0, 1]; NaN becomes +0."""
    zero = values.dtype.type(0)
    return np.where(values > 0, np.minimum(values, values.dtype.type(1)), zero)


def to_f32_odd(values: Any) -> Any:
    """Doubles as f32, the last bit set where that is not exact."""
    values = np.asarray(values, np.float64)
    near = values.astype(np.float32)
    bits = near.view(np.uint32)
    even_inexact = (near != values) & (bits & np.uint32(1) == 0) & ~np.isnan(values)
    too_large = np.abs(near.astype(np.float64)) > np.abs(values)
    return (
        np.where(even_inexact, np.where(too_large, bits - 1, bits | 1), bits)
        .astype(np.uint32)
        .view(np.float32)
    )


def to_f32(values: Any, mode: str) -> Any:
    """Doubles (exact or rounded to odd) as f32, rounded by rn, rz, rm, rp or rna."""
    values = np.asarray(values, np.float64)
    near = values.astype(np.float32)
    if mode == "rn":
        return near
    wide = near.astype(np.float64)
    down = np.where(wide > values, np.nextafter(near, np.float32(-np.inf)), near)
    up = np.where(wide < values, np.nextafter(near, np.float32(np.inf)), near)
    if mode == "rz":
        return np.where(values < 0, up, down)
    if mode == "rm":
        return down
    if mode == "rp":
        return up
    raise NotImplementedError(f"rounding {mode}")


def _two_sum(x: Any, y: Any) -> tuple[Any, Any]:
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def odd_sum(x: Any, y: Any) -> Any:
    """The sum of doubles rounded to odd."""
    total, error = _two_sum(np.asarray(x, np.float64), np.asarray(y, np.float64))
    total = np.atleast_1d(total)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & np.isfinite(error) & (bits & 1 == 0)
    outwards = (error > 0) == (total > 0)
    return np.where(inexact, np.where(outwards, bits + 1, bits - 1), bits).view(np.float64)


def fma_f32(x: Any, y: Any, z: Any) -> Any:
    """x·y + z rounded once to nearest.

    The product of two f32 is exact in double precision. Rounding the sum to a double and then to
    f32 can only go wrong where the double lies half-way between two f32 or the result is subnormal.
    """
    rough = np.atleast_1d(np.multiply(x, y, dtype=np.float64) + z)
    result = rough.astype(np.float32)
    halfway = (rough.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    halfway |= np.abs(rough) < 1.2e-38
    if halfway.any():
        shape = rough.shape
        x, y, z = (np.broadcast_to(v, shape)[halfway] for v in (x, y, z))
        result[halfway] = odd_sum(np.multiply(x, y, dtype=np.float64), z).astype(np.float32)
    return result


def fma_small(x: Any, y: Any, z: Any) -> Any:
    """x·y + z of f16 or bf16 numbers as doubles rounded to odd."""
    return odd_sum(np.multiply(x, y, dtype=np.float64), np.asarray(z, np.float64))


def _two_product(x: Any, y: Any) -> tuple[Any, Any]:
    """Dekker's exact product, away from overflow and underflow."""
    split = np.float64((1 << 27) + 1)
    a, b = x * split, y * split
    x1, y1 = a - (a - x), b - (b - y)
    x2, y2 = x - x1, y - y1
    product = x * y
    return product, x2 * y2 - (((product - x1 * y1) - x2 * y1) - x1 * y2)


def fma_f64(x: Any, y: Any, z: Any) -> Any:
    """x·y + z rounded once, where neither the product nor its error over- or underflows."""
    x, y, z = (np.asarray(v, np.float64) for v in (x, y, z))
    plain = x * y + z
    high, low = _two_product(x, y)
    first, second = _two_sum(z, low)
    top, rest = _two_sum(high, first)
    exact = top + odd_sum(second, rest)
    safe = np.isfinite(exact) & (np.abs(high) > 1e-250) & (np.abs(high) < 1e290)
    return np.where(safe, exact, plain)


def fma(x: Any, y: Any, z: Any, item: str) -> Any:
    """x·y + z in a format, to nearest."""
    function: Callable[..., Any] = {"f32": fma_f32, "f64": fma_f64}.get(item, fma_small)
    return function(x, y, z)
