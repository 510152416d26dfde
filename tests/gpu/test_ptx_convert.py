"""cvt of the PTX machine against Python's and torch's conversions."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.ptx.rounding import bf16_to_f32, f32_to_bf16
from tests.gpu.ptx.snippets import assert_same, evaluate
from tests.gpu.test_ptx_floating import _values as floats
from tests.gpu.test_ptx_integer import _dtype, _wrap
from tests.gpu.test_ptx_integer import _values as integers

_INTEGERS = ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"]
_NUMPY = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def _held(kind: str) -> Any:
    """Registers have at least 16 bits: bytes come widened."""
    return np.dtype(kind.replace("s", "i")[0] + "2") if kind[1:] == "8" else _dtype(kind)


def _range(kind: str) -> tuple[int, int]:
    bits = int(kind[1:])
    if kind[0] == "s":
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


@pytest.mark.parametrize("saturating", [False, True])
@pytest.mark.parametrize("into", _INTEGERS)
@pytest.mark.parametrize("source", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers(source: str, into: str, saturating: bool) -> None:
    x = integers(source)
    sat = ".sat" if saturating else ""
    (got,) = evaluate(f"cvt{sat}.{into}.{source} {{o0}}, {{0}};", x, results=[_held(into)])
    low, high = _range(into)
    values = x.tolist()
    expected = [min(max(v, low), high) if saturating else _wrap(v, into) for v in values]
    assert_same(got, np.array(expected, got.dtype))


_WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("mode", list(_WHOLE))
@pytest.mark.parametrize("into", ["s16", "u16", "s32", "u32", "s64", "u64", "s8", "u8"])
@pytest.mark.parametrize("source", ["f16", "f32", "f64"])
def test_to_integers_clamps(source: str, into: str, mode: str) -> None:
    x = floats(source)
    (got,) = evaluate(f"cvt.{mode}.{into}.{source} {{o0}}, {{0}};", x, results=[_held(into)])
    bits = int(into[1:])
    low, high = _range(into)
    for value, result in zip(x.astype(float).tolist(), got.tolist(), strict=True):
        if math.isnan(value):
            wide = source == "f64" or bits == 64
            expected = _wrap(1 << (bits - 1), into) if wide else 0
        elif math.isinf(value):
            expected = high if value > 0 else low
        else:
            expected = min(max(_WHOLE[mode](value), low), high)
        assert result == expected, value


@pytest.mark.parametrize("mode", list(_WHOLE))
def test_whole_numbers_stay_floats(mode: str) -> None:
    x = floats("f32")
    (got,) = evaluate(f"cvt.{mode}.f32.f32 {{o0}}, {{0}};", x, results=[np.float32])
    function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    assert_same(got, function(x))


@pytest.mark.parametrize("into", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("source", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_from_integers(source: str, into: str) -> None:
    x = integers(source)
    result = np.uint16 if into == "bf16" else _NUMPY[into]
    (got,) = evaluate(f"cvt.rn.{into}.{source} {{o0}}, {{0}};", x, results=[result])
    if into == "bf16":
        expected = torch.tensor([float(v) for v in x.tolist()], dtype=torch.float64).bfloat16()
        assert_same(bf16_to_f32(got), expected.float().numpy())
    else:
        with np.errstate(over="ignore"):
            assert_same(got, x.astype(result))


@pytest.mark.parametrize(("source", "into"), [*permutations(["f16", "bf16", "f32", "f64"], 2)])
def test_floats(source: str, into: str) -> None:
    x = floats(source)
    wide = bf16_to_f32(x) if source == "bf16" else x
    size = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
    narrowing = size[into] < size[source] or {into, source} == {"f16", "bf16"}
    rn = ".rn" if narrowing else ""
    result = np.uint16 if into == "bf16" else _NUMPY[into]
    (got,) = evaluate(f"cvt{rn}.{into}.{source} {{o0}}, {{0}};", x, results=[result])
    names = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
    expected = torch.from_numpy(np.array(wide, np.float64)).to(getattr(torch, names[into]))
    values = bf16_to_f32(got) if into == "bf16" else got
    if into == "bf16":
        assert_same(values, expected.float().numpy())
    else:
        assert_same(values, expected.numpy())


def test_double_to_brain_float_rounds_once() -> None:
    # Just above the middle of two bf16 numbers, by less than f32 can tell.
    x = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 2.0**-8 - 2.0**-40])
    (got,) = evaluate("cvt.rn.bf16.f64 {o0}, {0};", x, results=[np.uint16])
    assert bf16_to_f32(got).tolist() == [1 + 2.0**-7, 1, 1]


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_two_numbers_into_a_pair(kind: str) -> None:
    x = floats("f32")
    y = np.roll(x, 7)
    (got,) = evaluate(f"cvt.rn.{kind}.f32 {{o0}}, {{0}}, {{1}};", x, y, results=[np.uint32])
    halves = got.view(np.uint16).reshape(-1, 2)
    for column, values in ((1, x), (0, y)):
        half = np.ascontiguousarray(halves[:, column])
        if kind == "bf16x2":
            assert_same(half, f32_to_bf16(values))
        else:
            with np.errstate(over="ignore"):
                assert_same(half.view(np.float16), values.astype(np.float16))


def test_towards_zero() -> None:
    x = floats("f32")
    code = "cvt.rz.f16.f32 {o0}, {0}; cvt.rz.bf16.f32 {o1}, {0};"
    half, brain = evaluate(code, x, results=[np.float16, np.uint16])
    finite = np.isfinite(x)
    for got in (half.astype(np.float64), bf16_to_f32(brain).astype(np.float64)):
        assert (np.abs(got[finite]) <= np.abs(x[finite])).all()
        assert (np.isnan(got) == np.isnan(x)).all()
    assert half[x == np.finfo(np.float32).max] == np.finfo(np.float16).max
    kept = bf16_to_f32(brain)[finite].view(np.uint32)
    assert (kept == x[finite].view(np.uint32) & 0xFFFF0000).all()


def test_tf32_has_ten_bits() -> None:
    one, unit = 1.0, 2.0**-10
    x = np.array([one + unit / 2, one + unit / 2 + 2.0**-20, one + 1.5 * unit, -one - unit / 2])
    x = x.astype(np.float32)
    code = "cvt.rna.tf32.f32 {o0}, {0}; cvt.rn.tf32.f32 {o1}, {0};"
    away, even = evaluate(code, x, results=[np.float32, np.float32])
    assert away.tolist() == [one + unit, one + unit, one + 2 * unit, -one - unit]
    assert even.tolist() == [one, one + unit, one + 2 * unit, -one]


def test_relu_and_saturation() -> None:
    x = floats("f32")
    code = "cvt.rn.relu.bf16.f32 {o0}, {0}; cvt.sat.f32.f32 {o1}, {0};"
    brain, clamped = evaluate(code, x, results=[np.uint16, np.float32])
    expected = f32_to_bf16(np.where(x < 0, np.float32(0), np.abs(x)))
    assert_same(bf16_to_f32(brain), bf16_to_f32(expected))
    assert_same(clamped, np.where(x > 0, np.minimum(x, 1), 0).astype(np.float32))
