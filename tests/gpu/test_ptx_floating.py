"""Floating-point instructions of the PTX machine against fractions, numpy and torch."""

from __future__ import annotations

import itertools
import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.ptx.rounding import bf16_to_f32, f32_to_bf16, fma_f64
from tests.gpu.ptx.snippets import assert_same, evaluate

Array = np.ndarray[Any, Any]
_INF, _NAN = float("inf"), float("nan")
_NUMPY = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def _values(kind: str) -> Array:
    """Zeros, subnormals, edges, infinities, NaN and some numbers between."""
    if kind == "bf16":
        return f32_to_bf16(_values("f32"))
    info = np.finfo(_NUMPY[kind])
    edges = [0.0, -0.0, 1.0, -1.0, 1.5, 0.5, 0.1, -3.0, _INF, -_INF, _NAN, 2.5, 3.5, -0.5]
    edges += [info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal, info.tiny / 3]
    edges += [1 + float(info.eps), 65503.9, 65520.0, 2.0**-25]
    drawn = np.random.default_rng(0).normal(0, 10, 12)
    with np.errstate(all="ignore"):
        return np.concatenate([np.array(edges), drawn]).astype(_NUMPY[kind])


def _pairs(kind: str) -> tuple[Array, Array]:
    values = _values(kind)
    x, y = zip(*itertools.product(values, values), strict=True)
    return np.array(x, values.dtype), np.array(y, values.dtype)


def _float(values: Array) -> Array:
    return bf16_to_f32(values) if values.dtype == np.uint16 else values


def _torch(values: Array) -> torch.Tensor:
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _assert_bf16(got: Array, expected: torch.Tensor) -> None:
    assert_same(bf16_to_f32(got), expected.float().numpy())


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_arithmetic(name: str, kind: str) -> None:
    x, y = _pairs(kind)
    (got,) = evaluate(f"{name}.rn.{kind} {{o0}}, {{0}}, {{1}};", x, y, results=[x.dtype])
    expected = getattr(torch, name)(_torch(x), _torch(y))
    if kind == "bf16":
        _assert_bf16(got, expected)
    else:
        assert_same(got, expected.numpy())


def _round(exact: Fraction, kind: str) -> float:
    """To nearest, ties to even, subnormals and overflow included."""
    formats = {"f16": (11, -24, 16), "bf16": (8, -133, 128), "f32": (24, -149, 128)}
    digits, least, most = formats[kind]
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    rounded = round(magnitude / unit) * unit
    result = _INF if rounded >= Fraction(2) ** most else float(rounded)
    return -result if exact < 0 else result


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_fused_multiply_add_rounds_once(kind: str) -> None:
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(3, 1500)) * 2.0 ** rng.integers(-12, 12, (3, 1500))
    with np.errstate(all="ignore"):
        x, y, z = drawn.astype(np.float32)
        # Sums at and beside the middle of two numbers, where rounding twice goes wrong.
        one, eps = np.float32(1), {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23}[kind]
        x[:4], y[:4], z[:4] = one + eps, [eps / 2, eps / 2, -eps / 2, eps / 2], [1, -1, 1, 3]
        x[4:8], y[4:8], z[4:8] = 1 + 8 * eps, [1 - eps, 1, 1 + eps, 1], [2.0**-40] * 4
        tiny = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149}[kind]
        x[8:10], y[8:10], z[8:10] = 2.0**-10 * 3, tiny * 2.0**9, [0, tiny]
    if kind == "bf16":
        x, y, z = (f32_to_bf16(v) for v in (x, y, z))
    else:
        x, y, z = (v.astype(_NUMPY[kind]) for v in (x, y, z))
    (got,) = evaluate(f"fma.rn.{kind} {{o0}}, {{0}}, {{1}}, {{2}};", x, y, z, results=[x.dtype])
    triples = zip(*(_float(v).astype(float).tolist() for v in (x, y, z)), strict=True)
    exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in triples]
    expected = np.array([_round(e, kind) for e in exact], np.float32)
    nonzero = expected != 0
    assert_same(_float(got)[nonzero].astype(np.float32), expected[nonzero])


def test_double_fused_multiply_add_rounds_once() -> None:
    rng = np.random.default_rng(4)
    x, y, z = rng.normal(size=(3, 2000)) * 2.0 ** rng.integers(-40, 40, (3, 2000))
    got = fma_f64(x, y, z)
    for a, b, c, d in zip(x, y, z, got, strict=True):
        assert d == float(Fraction(a) * Fraction(b) + Fraction(c))


def test_fused_multiply_add_of_special_values() -> None:
    x, y = _pairs("f32")
    for z in (0.0, -0.0, 1.0, _INF, _NAN):
        third = np.full_like(x, z)
        (got,) = evaluate("fma.rn.f32 {o0}, {0}, {1}, {2};", x, y, third, results=[np.float32])
        with np.errstate(all="ignore"):
            exact = x.astype(np.longdouble) * y + third
            expected = exact.astype(np.float32)
        assert_same(got, expected)


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2", "f32x2"])
def test_pairs(kind: str) -> None:
    item = kind[:-2]
    x, y = _pairs(item)
    x, y = x[: x.size // 2 * 2], y[: y.size // 2 * 2]
    whole = np.uint64 if item == "f32" else np.uint32
    code = f"add.{kind} {{o0}}, {{0}}, {{1}}; mul.{kind} {{o1}}, {{0}}, {{1}};"
    code += f"fma.rn.{kind} {{o2}}, {{0}}, {{1}}, {{1}};"
    results = evaluate(code, x.view(whole), y.view(whole), results=[whole] * 3)
    parts = [result.view(x.dtype) for result in results]
    single = f"add.{item} {{o0}}, {{0}}, {{1}}; mul.{item} {{o1}}, {{0}}, {{1}};"
    single += f"fma.rn.{item} {{o2}}, {{0}}, {{1}}, {{1}};"
    for got, expected in zip(parts, evaluate(single, x, y, results=[x.dtype] * 3), strict=True):
        assert_same(_float(got), _float(expected))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_extremes_treat_nan_and_zeros(kind: str) -> None:
    x, y = _pairs(kind)
    code = f"min.{kind} {{o0}}, {{0}}, {{1}}; max.{kind} {{o1}}, {{0}}, {{1}};"
    outs = [x.dtype] * 2
    if kind != "f64":
        code += f"min.NaN.{kind} {{o2}}, {{0}}, {{1}}; max.NaN.{kind} {{o3}}, {{0}}, {{1}};"
        outs = [x.dtype] * 4
    got = [_float(result) for result in evaluate(code, x, y, results=outs)]
    a, b = _float(x), _float(y)
    less = (a < b) | ((a == b) & np.signbit(a))
    small, large = np.where(less, a, b), np.where(less, b, a)
    nan = np.isnan(a) | np.isnan(b)
    other = np.where(np.isnan(a), b, a)
    assert_same(got[0], np.where(nan, other, small))
    assert_same(got[1], np.where(nan, other, large))
    if kind != "f64":
        assert_same(got[2], np.where(nan, np.nan, small))
        assert_same(got[3], np.where(nan, np.nan, large))


def test_three_operands() -> None:
    x, y = _pairs("f32")
    z = np.roll(x, 5)
    code = "max.f32 {o0}, {0}, {1}, {2}; min.NaN.f32 {o1}, {0}, {1}, {2};"
    largest, smallest = evaluate(code, x, y, z, results=[np.float32] * 2)
    assert (largest == np.fmax(np.fmax(x, y), z))[~np.isnan(largest)].all()
    assert np.array_equal(smallest, np.minimum(np.minimum(x, y), z), equal_nan=True)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_comparisons_of_nan(kind: str) -> None:
    x, y = _pairs(kind)
    a, b = _float(x), _float(y)
    nan = np.isnan(a) | np.isnan(b)
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "num", "nan"):
        for unordered in (False, True) if name not in ("num", "nan") else (False,):
            full = name + "u" * unordered
            code = f"setp.{full}.{kind} %p0, {{0}}, {{1}}; selp.b32 {{o0}}, 1, 0, %p0;"
            (got,) = evaluate(code, x, y, results=[np.uint32])
            if name in ("num", "nan"):
                expected = nan == (name == "nan")
            else:
                expected = np.where(nan, unordered, getattr(operator, name)(a, b))
            assert_same(got, expected.astype(np.uint32))


def test_set_and_selection_by_sign() -> None:
    x, y = _pairs("f32")
    code = "set.lt.f32.f32 {o0}, {0}, {1}; set.lt.u32.f32 {o1}, {0}, {1};"
    code += "slct.f32.f32 {o2}, {0}, {1}, {1}; slct.f32.s32 {o3}, {0}, {1}, {1};"
    f, u, by_float, by_int = evaluate(
        code, x, y, results=[np.float32, np.uint32, np.float32, np.float32]
    )
    assert_same(f, (x < y).astype(np.float32))
    assert_same(u, np.where(x < y, 0xFFFFFFFF, 0).astype(np.uint32))
    assert_same(by_float, np.where(y >= 0, x, y))
    assert_same(by_int, np.where(y.view(np.int32) >= 0, x, y))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_signs(kind: str) -> None:
    x = _values(kind)
    code = f"neg.{kind} {{o0}}, {{0}}; abs.{kind} {{o1}}, {{0}};"
    negative, positive = evaluate(code, x, results=[x.dtype] * 2)
    assert_same(_float(negative), -_float(x))
    assert_same(_float(positive), np.abs(_float(x)))


def test_copysign_and_properties() -> None:
    x, y = _pairs("f32")
    (got,) = evaluate("copysign.f32 {o0}, {0}, {1};", x, y, results=[np.float32])
    assert_same(got, np.copysign(y, x))
    values = _values("f32")
    names = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    code = "".join(
        f"testp.{name}.f32 %p0, {{0}}; selp.b32 {{o{i}}}, 1, 0, %p0;"
        for i, name in enumerate(names)
    )
    got = evaluate(code, values, results=[np.uint32] * len(names))
    tiny = np.finfo(np.float32).tiny
    small = (np.abs(values) < tiny) & (values != 0)
    finite = np.isfinite(values)
    expected = [finite, np.isinf(values), ~np.isnan(values), np.isnan(values)]
    expected += [finite & (values != 0) & ~small, small]
    for result, holds in zip(got, expected, strict=True):
        assert_same(result, holds.astype(np.uint32))


_FUNCTIONS = {
    "sqrt.rn.f32": np.sqrt,
    "sqrt.approx.f32": np.sqrt,
    "rcp.rn.f32": lambda x: 1 / x,
    "rsqrt.approx.f32": lambda x: 1 / np.sqrt(x),
    "ex2.approx.f32": np.exp2,
    "lg2.approx.f32": np.log2,
    "sin.approx.f32": np.sin,
    "cos.approx.f32": np.cos,
    "tanh.approx.f32": np.tanh,
    "sqrt.rn.f64": np.sqrt,
    "rcp.rn.f64": lambda x: 1 / x,
}


@pytest.mark.parametrize("name", list(_FUNCTIONS))
def test_functions(name: str) -> None:
    kind = name[-3:]
    x = _values(kind)
    if name.startswith(("sin", "cos")):
        x = x[np.abs(x) < 1e4]
    (got,) = evaluate(f"{name} {{o0}}, {{0}};", x, results=[x.dtype])
    with np.errstate(all="ignore"):
        expected = _FUNCTIONS[name](x.astype(np.float64)).astype(x.dtype)
    np.testing.assert_allclose(got, expected, rtol=3e-7 if kind == "f32" else 0, atol=0)
    assert (np.signbit(got) == np.signbit(expected))[~np.isnan(expected)].all()


@pytest.mark.parametrize("name", ["div.rn.f32", "div.full.f32", "div.approx.f32", "div.rn.f64"])
def test_division(name: str) -> None:
    x, y = _pairs(name[-3:])
    (got,) = evaluate(f"{name} {{o0}}, {{0}}, {{1}};", x, y, results=[x.dtype])
    with np.errstate(all="ignore"):
        assert_same(got, x / y)


def test_flush_to_zero() -> None:
    x, y = _pairs("f32")
    tiny = np.finfo(np.float32).tiny
    (got,) = evaluate("mul.ftz.f32 {o0}, {0}, {1};", x, y, results=[np.float32])
    with np.errstate(all="ignore"):
        product = np.where(np.abs(x) < tiny, x * 0, x) * np.where(np.abs(y) < tiny, y * 0, y)
        expected = np.where(np.abs(product) < tiny, np.copysign(0, product), product)
    assert_same(got, expected.astype(np.float32))


def test_saturation() -> None:
    x, y = _pairs("f32")
    (got,) = evaluate("add.sat.f32 {o0}, {0}, {1};", x, y, results=[np.float32])
    with np.errstate(all="ignore"):
        total = x + y
    expected = np.where(np.isnan(total) | (total <= 0), 0, np.minimum(total, 1))
    assert_same(got, expected.astype(np.float32))


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma", "div", "sqrt", "rcp"])
def test_directed_rounding(name: str, mode: str) -> None:
    rng = np.random.default_rng(5)
    x, y, z = (rng.normal(size=(3, 300)) * 2.0 ** rng.integers(-30, 30, (3, 300))).astype(
        np.float32
    )
    if name == "sqrt":
        x = np.abs(x)
    count = {"fma": 3, "sqrt": 1, "rcp": 1}.get(name, 2)
    operands = ", ".join(f"{{{i}}}" for i in range(count))
    (got,) = evaluate(f"{name}.{mode}.f32 {{o0}}, {operands};", x, y, z, results=[np.float32])
    for a, b, c, d in zip(*(v.astype(float).tolist() for v in (x, y, z, got)), strict=True):
        p, q, r = Fraction(a), Fraction(b), Fraction(c)
        low, high = (
            Fraction(float(np.nextafter(np.float32(d), np.float32(s)))) for s in (-_INF, _INF)
        )
        if name == "sqrt":
            # Monotone: compare squares.
            exact, value, low, high = p, Fraction(d) ** 2, low**2, high**2
        else:
            value = Fraction(d)
            exact = {"add": p + q, "sub": p - q, "mul": p * q, "fma": p * q + r}.get(name)
            exact = exact if exact is not None else (p / q if name == "div" else 1 / p)
        down = mode == "rm" or (mode == "rz" and exact > 0)
        assert value <= exact < high if down else low < exact <= value


def test_sums_of_mixed_formats() -> None:
    x = np.resize(_values("bf16"), 600)
    y = np.resize(np.roll(_values("f32"), 3), 600)
    code = "add.rn.f32.bf16 {o0}, {0}, {1}; sub.rn.f32.bf16 {o1}, {0}, {1};"
    code += "fma.rn.f32.bf16 {o2}, {0}, {0}, {1};"
    total, difference, fused = evaluate(code, x, y, results=[np.float32] * 3)
    with np.errstate(all="ignore"):
        wide = bf16_to_f32(x)
        assert_same(total, wide + y)
        assert_same(difference, wide - y)
        assert_same(fused, (wide.astype(np.float64) ** 2 + y).astype(np.float32))
