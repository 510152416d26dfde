"""Integer instructions of the PTX machine against Python's integers."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gpu.ptx.snippets import assert_same, evaluate

_KINDS = ["s16", "u16", "s32", "u32", "s64", "u64"]


def _dtype(kind: str) -> np.dtype[Any]:
    return np.dtype(kind.replace("s", "i")[0] + str(int(kind[1:]) // 8))


def _values(kind: str) -> np.ndarray[Any, Any]:
    """The edges of a type and some numbers between."""
    dtype = _dtype(kind)
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    edges = [0, 1, 2, 3, 7, 31, 32, int(info.max), int(info.max) - 1, int(info.min)]
    edges += [int(info.min) + 1] + ([-1, -2, -7] if info.min else [])
    drawn = rng.integers(info.min, info.max, 12, dtype, endpoint=True)
    return np.concatenate([np.array(edges, dtype), drawn])


def _pairs(kind: str) -> tuple[Any, Any]:
    values = _values(kind)
    x, y = zip(*itertools.product(values, values), strict=True)
    return np.array(x, values.dtype), np.array(y, values.dtype)


def _wrap(value: int, kind: str) -> int:
    size = int(kind[1:])
    value &= (1 << size) - 1
    return value - (1 << size) if kind[0] == "s" and value >> (size - 1) else value


def _quotient(x: int, y: int) -> int:
    if y == 0:
        return -1
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


_TWO: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda x, y, size: x + y,
    "sub": lambda x, y, size: x - y,
    "mul.lo": lambda x, y, size: x * y,
    "mul.hi": lambda x, y, size: x * y >> size,
    "div": lambda x, y, size: _quotient(x, y),
    "rem": lambda x, y, size: x - _quotient(x, y) * y if y else x,
    "min": lambda x, y, size: min(x, y),
    "max": lambda x, y, size: max(x, y),
}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("name", list(_TWO))
def test_two_operands(name: str, kind: str) -> None:
    x, y = _pairs(kind)
    (got,) = evaluate(f"{name}.{kind} {{o0}}, {{0}}, {{1}};", x, y, results=[x.dtype])
    size = int(kind[1:])
    expected = [
        _wrap(_TWO[name](a, b, size), kind) for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    assert_same(got, np.array(expected, x.dtype))


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind: str) -> None:
    x, y = _pairs(kind)
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    z = np.resize(_values(wide), x.size)
    code = f"mul.wide.{kind} {{o0}}, {{0}}, {{1}}; mad.wide.{kind} {{o1}}, {{0}}, {{1}}, {{2}};"
    product, total = evaluate(code, x, y, z, results=[z.dtype, z.dtype])
    triples = list(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    assert_same(product, np.array([a * b for a, b, _ in triples], z.dtype))
    assert_same(total, np.array([_wrap(a * b + c, wide) for a, b, c in triples], z.dtype))


@pytest.mark.parametrize("half", ["lo", "hi"])
@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_mad(kind: str, half: str) -> None:
    x, y = _pairs(kind)
    z = np.resize(_values(kind), x.size)
    code = f"mad.{half}.{kind} {{o0}}, {{0}}, {{1}}, {{2}};"
    (got,) = evaluate(code, x, y, z, results=[z.dtype])
    by = int(kind[1:]) if half == "hi" else 0
    triples = zip(x.tolist(), y.tolist(), z.tolist(), strict=True)
    assert_same(got, np.array([_wrap((a * b >> by) + c, kind) for a, b, c in triples], z.dtype))


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "s16", "s32", "s64", "u32"])
def test_shifts_are_not_wrapped(kind: str) -> None:
    signed = kind[0] == "s"
    plain = kind if signed else f"u{kind[1:]}"
    values = _values(plain)
    by = np.array([0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 200, 0xFFFFFFFF], np.uint32)
    x, n = (np.array(v) for v in zip(*itertools.product(values, by), strict=True))
    size = int(kind[1:])
    if not signed:
        bits_kind = f"b{size}"
        (got,) = evaluate(f"shl.{bits_kind} {{o0}}, {{0}}, {{1}};", x, n, results=[x.dtype])
        shifted = [
            _wrap(a << min(b, 64), plain) for a, b in zip(x.tolist(), n.tolist(), strict=True)
        ]
        assert_same(got, np.array(shifted, x.dtype))
    (got,) = evaluate(f"shr.{kind} {{o0}}, {{0}}, {{1}};", x, n, results=[x.dtype])
    shifted = [a >> min(b, 64) for a, b in zip(x.tolist(), n.tolist(), strict=True)]
    assert_same(got, np.array(shifted, x.dtype))


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(side: str, mode: str) -> None:
    low, high = _pairs("u32")
    for amount in (0, 1, 8, 31, 32, 33, 63):
        code = f"shf.{side}.{mode}.b32 {{o0}}, {{0}}, {{1}}, {amount};"
        (got,) = evaluate(code, low, high, results=[np.uint32])
        by = amount & 31 if mode == "wrap" else min(amount, 32)
        expected = []
        for a, b in zip(low.tolist(), high.tolist(), strict=True):
            pair = b << 32 | a
            expected.append((pair << by >> 32 if side == "l" else pair >> by) & 0xFFFFFFFF)
        assert_same(got, np.array(expected, np.uint32))


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_bits_are_counted(kind: str) -> None:
    size = int(kind[1:])
    x = np.concatenate([_values(f"u{size}"), np.uint64(1) << np.arange(size, dtype=np.uint64)])
    x = x.astype(f"u{size // 8}")
    code = f"popc.{kind} {{o0}}, {{0}}; clz.{kind} {{o1}}, {{0}}; brev.{kind} {{o2}}, {{0}};"
    code += f"bfind.u{size} {{o3}}, {{0}}; not.{kind} {{o4}}, {{0}}; cnot.{kind} {{o5}}, {{0}};"
    results = evaluate(
        code, x, results=[np.uint32, np.uint32, x.dtype, np.uint32, x.dtype, x.dtype]
    )
    for number, got in zip(x.tolist(), zip(*results, strict=True), strict=True):
        text = f"{number:0{size}b}"
        length = number.bit_length()
        expected = (text.count("1"), size - length, int(text[::-1], 2), (length - 1) & 0xFFFFFFFF)
        assert tuple(map(int, got)) == (*expected, ~number & ((1 << size) - 1), int(number == 0))


def test_leading_bit_of_negative_numbers() -> None:
    x = np.array([0, -1, 1, -2, 5, -5, 2**31 - 1, -(2**31)], np.int32)
    (got,) = evaluate("bfind.s32 {o0}, {0};", x, results=[np.uint32])
    assert got.tolist() == [2**32 - 1, 2**32 - 1, 0, 0, 2, 2, 30, 30]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields_are_taken_out(kind: str) -> None:
    size = int(kind[1:])
    values = _values(kind)
    fields = [(0, 0), (0, 1), (3, 4), (0, size), (size - 1, 1), (size - 4, 8), (size, 3), (5, 255)]
    for start, length in fields:
        code = f"bfe.{kind} {{o0}}, {{0}}, {start}, {length};"
        (got,) = evaluate(code, values, results=[values.dtype])
        expected = []
        for x in values.tolist():
            unsigned = x & ((1 << size) - 1)
            sign = unsigned >> max(min(start + length - 1, size - 1), 0) & 1
            if kind[0] == "u" or length == 0:
                sign = 0
            drawn = [
                unsigned >> (start + k) & 1 if k < length and start + k < size else sign
                for k in range(size)
            ]
            expected.append(_wrap(sum(bit << k for k, bit in enumerate(drawn)), kind))
        assert_same(got, np.array(expected, values.dtype))


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_fields_are_put_in(kind: str) -> None:
    size = int(kind[1:])
    x, y = _pairs(f"u{size}")
    for start, length in ((0, 0), (0, 8), (4, 12), (size - 3, 8), (0, size), (size, 4)):
        code = f"bfi.{kind} {{o0}}, {{0}}, {{1}}, {start}, {length};"
        (got,) = evaluate(code, x, y, results=[x.dtype])
        mask = (((1 << length) - 1) << start) & ((1 << size) - 1)
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        expected = [((a << start) & mask) | (b & ~mask) for a, b in pairs]
        assert_same(got, np.array(expected, x.dtype))


def test_any_function_of_three_bits() -> None:
    rng = np.random.default_rng(1)
    a, b, c = rng.integers(0, 2**32, (3, 64), np.uint32)
    for table, function in (
        (0xE8, lambda a, b, c: (a & b) | (a & c) | (b & c)),
        (0x96, lambda a, b, c: a ^ b ^ c),
        (0x1A, lambda a, b, c: (a & b | c) ^ a),
    ):
        code = f"lop3.b32 {{o0}}, {{0}}, {{1}}, {{2}}, {table};"
        (got,) = evaluate(code, a, b, c, results=[np.uint32])
        assert_same(got, function(a, b, c))


def test_bytes_are_permuted() -> None:
    a, b = np.array([0x83828180], np.uint32), np.array([0x07060504], np.uint32)
    control = np.array([0x3210, 0x7654, 0x0123, 0x4F80, 0x9BC4], np.uint32)
    (got,) = evaluate("prmt.b32 {o0}, {0}, {1}, {2};", a, b, control, results=[np.uint32])
    assert [hex(v) for v in got] == [
        "0x83828180",
        "0x7060504",
        "0x80818283",
        "0x400ff80",
        "0xffff0004",
    ]


@pytest.mark.parametrize("name", ["add", "sub"])
def test_carries_join_halves(name: str) -> None:
    x, y = _pairs("u64")
    code = """
    mov.b64 {{%r40, %r41}}, {0}; mov.b64 {{%r42, %r43}}, {1};
    NAME.cc.u32 %r44, %r40, %r42; NAMEc.u32 %r45, %r41, %r43;
    mov.b64 {o0}, {{%r44, %r45}};
    """.replace("NAME", name)
    (got,) = evaluate(code, x, y, results=[np.uint64])
    assert_same(got, x + y if name == "add" else x - y)


def test_long_product_by_carries() -> None:
    """A 64-bit product from halves, as range reduction of sines has it."""
    x, y = _pairs("u32")
    z = np.resize(_values("u32"), x.size)
    code = """
    mad.lo.cc.u32 %r40, {0}, {1}, {2};
    madc.hi.u32 %r41, {0}, {1}, 0;
    mov.b64 {o0}, {{%r40, %r41}};
    """
    (got,) = evaluate(code, x, y, z, results=[np.uint64])
    assert_same(got, x.astype(np.uint64) * y + z)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u16"])
def test_comparisons(kind: str) -> None:
    x, y = _pairs(kind)
    compared = {name: name for name in ("eq", "ne", "lt", "le", "gt", "ge")}
    if kind[0] == "u":
        compared |= {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    for name, meaning in compared.items():
        code = f"setp.{name}.{kind} %p0, {{0}}, {{1}}; selp.b32 {{o0}}, 1, 0, %p0;"
        (got,) = evaluate(code, x, y, results=[np.uint32])
        assert_same(got, getattr(operator, meaning)(x, y).astype(np.uint32))


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparisons_combined_with_predicates(name: str) -> None:
    x, y = _pairs("s32")
    z = np.arange(x.size, dtype=np.uint32) % 2
    code = f"""
    setp.ne.u32 %p1, {{2}}, 0;
    setp.lt.{name}.s32 %p0|%p2, {{0}}, {{1}}, !%p1;
    selp.b32 {{o0}}, 1, 0, %p0; selp.b32 {{o1}}, 1, 0, %p2;
    """
    first, second = evaluate(code, x, y, z, results=[np.uint32, np.uint32])
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    assert_same(first, combine(x < y, z == 0).astype(np.uint32))
    assert_same(second, combine(x >= y, z == 0).astype(np.uint32))


def test_saturating_sums() -> None:
    x, y = _pairs("s32")
    code = "add.sat.s32 {o0}, {0}, {1}; sub.sat.s32 {o1}, {0}, {1};"
    total, difference = evaluate(code, x, y, results=[np.int32, np.int32])
    wide, other = x.astype(np.int64), y.astype(np.int64)
    assert_same(total, np.clip(wide + other, -(2**31), 2**31 - 1))
    assert_same(difference, np.clip(wide - other, -(2**31), 2**31 - 1))


def test_packed_registers_come_apart() -> None:
    x = _values("u64")
    code = """
    mov.b64 {{%r40, %r41}}, {0}; mov.b32 {{%h20, %h21}}, %r40;
    mov.b32 %r42, {{%h21, %h20}}; mov.b64 {o0}, {{%r41, %r42}};
    mov.b64 {{_, {o1}}}, {0};
    """
    swapped, upper = evaluate(code, x, results=[np.uint64, np.uint32])
    halves = x.view(np.uint16).reshape(-1, 4)
    assert_same(swapped, np.ascontiguousarray(halves[:, [2, 3, 1, 0]]).view(np.uint64)[:, 0])
    assert_same(upper, x >> np.uint64(32))


def test_predicated_lanes_keep_their_values() -> None:
    x = np.arange(50, dtype=np.int32)
    code = """
    mov.b32 {o0}, 7;
    rem.s32 %r40, {0}, 3; setp.eq.s32 %p0, %r40, 1;
    @%p0 add.s32 {o0}, {0}, 100;
    @!%p0 sub.s32 {o0}, {o0}, {0};
    """
    (got,) = evaluate(code, x, results=[np.int32])
    assert_same(got, np.where(x % 3 == 1, x + 100, 7 - x))


def test_loops_of_different_length_join_again() -> None:
    x = np.arange(100, dtype=np.int32)
    code = """
    mov.b32 {o0}, 0; mov.b32 %r40, 0; rem.s32 %r41, {0}, 7;
    $loop:
    setp.ge.s32 %p0, %r40, %r41;
    @%p0 bra $done;
    add.s32 {o0}, {o0}, %r40; add.s32 %r40, %r40, 1;
    bra.uni $loop;
    $done:
    mov.b32 %r42, {o0};
    shfl.sync.bfly.b32 {o1}, %r42, 1, 31, -1;
    """
    total, neighbour = evaluate(code, x, results=[np.int32, np.int32])
    n = x % 7
    assert_same(total, n * (n - 1) // 2)
    assert_same(neighbour, total[np.arange(100) ^ 1])
