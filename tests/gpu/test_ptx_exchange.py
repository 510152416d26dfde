"""Lanes that tell one another: shuffles, votes, atomics, matrices of a warp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.ptx.errors import KernelFault
from tests.gpu.ptx.rounding import bf16_to_f32
from tests.gpu.ptx.snippets import assert_same, evaluate, kernel, run

Array = np.ndarray[Any, Any]
_LANES = np.arange(64, dtype=np.uint32)


def _shuffled(mode: str, lane: int, by: int, clamp: int) -> tuple[int, bool]:
    """By the pseudocode of the PTX manual."""
    segment, bound = clamp >> 8 & 31, clamp & 31
    last = (lane & segment) | (bound & ~segment)
    first = lane & segment
    source = {
        "up": lane - by,
        "down": lane + by,
        "bfly": lane ^ by,
        "idx": first | (by & ~segment),
    }[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("segment", [0, 16, 24, 28])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str, segment: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    clamp = segment << 8 | (0 if mode == "up" else 31)
    for by in (0, 1, 3, 8, 16, 31):
        for operand, given in ((str(by), values), ("{1}", values)):
            code = f"shfl.sync.{mode}.b32 {{o0}}|%p0, {{0}}, {operand}, {clamp}, -1;"
            code += "selp.b32 {o1}, 1, 0, %p0;"
            by_lane = np.full(64, by, np.uint32)
            got, inside = evaluate(code, given, by_lane, results=[np.uint32, np.uint32])
            expected = [_shuffled(mode, lane, by, clamp) for lane in range(32)] * 2
            sources = np.array([source for source, _ in expected]) + _LANES // 32 * 32
            assert_same(got, values[sources])
            assert inside.astype(bool).tolist() == [i for _, i in expected]


def test_shuffle_among_some_lanes() -> None:
    code = """
    mov.b32 {o0}, 99; and.b32 %r40, {0}, 31; setp.lt.u32 %p0, %r40, 8;
    @%p0 shfl.sync.bfly.b32 {o0}, {0}, 1, 31, MASK;
    """
    (got,) = evaluate(code.replace("MASK", "255"), _LANES, results=[np.uint32])
    assert_same(got, np.where(_LANES % 32 < 8, _LANES ^ 1, 99))
    with pytest.raises(KernelFault, match="do not take part"):
        evaluate(code.replace("MASK", "-1"), _LANES, results=[np.uint32])
    with pytest.raises(KernelFault, match="does not name"):
        evaluate(code.replace("MASK", "15"), _LANES, results=[np.uint32])


def test_votes() -> None:
    code = """
    and.b32 %r40, {0}, 31; setp.lt.u32 %p0, %r40, 5; setp.lt.u32 %p1, {0}, 32;
    vote.sync.ballot.b32 {o0}, %p0, -1;
    vote.sync.any.pred %p2, !%p1, -1; selp.b32 {o1}, 1, 0, %p2;
    vote.sync.all.pred %p2, %p1, -1; selp.b32 {o2}, 1, 0, %p2;
    vote.sync.uni.pred %p2, %p0, -1; selp.b32 {o3}, 1, 0, %p2;
    activemask.b32 {o4};
    """
    results = evaluate(code, _LANES, results=[np.uint32] * 5)
    firsts, lasts = ([int(r[lane]) for r in results] for lane in (0, 63))
    assert firsts == [31, 0, 1, 0, 2**32 - 1]
    assert lasts == [31, 1, 0, 0, 2**32 - 1]


def test_matches() -> None:
    x = (_LANES % 3).astype(np.uint32)
    code = "match.any.sync.b32 {o0}, {0}, -1; match.all.sync.b32 {o1}|%p0, 5, -1;"
    code += "selp.b32 {o2}, 1, 0, %p0; elect.sync _|%p1, -1; selp.b32 {o3}, 1, 0, %p1;"
    found, all_same, same, first = evaluate(code, x, results=[np.uint32] * 4)
    for lane in range(64):
        row = x[lane // 32 * 32 :][:32]
        assert found[lane] == sum(1 << i for i in range(32) if row[i] == x[lane])
    assert (all_same == 2**32 - 1).all()
    assert (same == 1).all()
    assert np.flatnonzero(first).tolist() == [0, 32]


@pytest.mark.parametrize("kind", ["s32", "u32", "f32"])
def test_reductions_of_a_warp(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(-(2**31), 2**31, 64, np.int64).astype(np.int32)
    x = rng.normal(size=64).astype(np.float32) if kind == "f32" else values
    x = x.view(np.uint32) if kind == "u32" else x
    rows = x.reshape(2, 32)
    names = {"min": np.min, "max": np.max}
    if kind != "f32":
        names |= {"add": lambda r, axis: r.sum(axis, dtype=r.dtype)}
    for name, function in names.items():
        (got,) = evaluate(f"redux.sync.{name}.{kind} {{o0}}, {{0}}, -1;", x, results=[x.dtype])
        assert_same(got, np.repeat(function(rows, axis=1), 32))
    if kind == "f32":
        x[3] = np.nan
        code = "redux.sync.max.f32 {o0}, {0}, -1; redux.sync.max.NaN.f32 {o1}, {0}, -1;"
        plain, wary = evaluate(code, x, results=[x.dtype] * 2)
        assert plain[0] == np.nanmax(x[:32])
        assert np.isnan(wary[:32]).all()
        assert wary[40] == x[32:].max()
    else:
        code = "redux.sync.and.b32 {o0}, {0}, -1; redux.sync.or.b32 {o1}, {0}, -1;"
        both, either = evaluate(code, x, results=[x.dtype] * 2)
        assert both[0] == np.bitwise_and.reduce(rows[0])
        assert either[63] == np.bitwise_or.reduce(rows[1])


def _atomically(
    operation: str, kind: str, start: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Every lane works on the place `lane % len(start)`; what each found there."""
    size = start.element_size()
    register = {2: "%h", 4: "%r", 8: "%d"}[size]
    found = torch.zeros_like(values)
    body = f"""
    rem.u32 %r40, %index, {len(start)}; mad.wide.u32 %d40, %r40, {size}, %t0;
    mad.wide.u32 %d41, %index, {size}, %t1; ld.global.b{8 * size} {register}0, [%d41];
    atom.relaxed.gpu.global.{operation}.{kind} {register}1, [%d40], {register}0;
    mad.wide.u32 %d41, %index, {size}, %t2; st.global.b{8 * size} [%d41], {register}1;
    """
    run(kernel(body, 3), start, values, found, programs=len(values) // 32)
    return found


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", ["add", "min", "max", "and", "or", "xor", "exch"])
def test_atomics_take_turns(name: str, kind: str) -> None:
    bits = name in ("and", "or", "xor", "exch")
    dtype = torch.int32 if kind.endswith("32") else torch.int64
    values = torch.randint(-(2**31), 2**31 - 1, (64,)).to(dtype)
    start = torch.randint(-(2**31), 2**31 - 1, (3,)).to(dtype)
    wide = f"b{kind[1:]}" if bits else kind
    mask = (1 << int(kind[1:])) - 1
    unsigned = kind[0] == "u" and name in ("min", "max")
    functions = {
        "add": lambda a, b: a + b,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "exch": lambda a, b: b,
        "min": lambda a, b: min(a, b, key=lambda v: v & mask if unsigned else v),
        "max": lambda a, b: max(a, b, key=lambda v: v & mask if unsigned else v),
    }
    places, expected = start.tolist(), []
    for lane, value in enumerate(values.tolist()):
        expected.append(places[lane % 3])
        total = functions[name](places[lane % 3], value) & mask
        places[lane % 3] = total - (mask + 1) if total > mask >> 1 else total
    found = _atomically(name, wide, start, values)
    assert start.tolist() == places
    assert found.tolist() == expected


def test_counting_atomics() -> None:
    start, values = torch.tensor([0, 5], dtype=torch.int32), torch.full((32,), 3, dtype=torch.int32)
    found = _atomically("inc", "u32", start, values)
    assert found[0::2].tolist() == [0, 1, 2, 3] * 4
    assert found[1::2].tolist() == [5, *([0, 1, 2, 3] * 4)[:15]]
    start = torch.tensor([2], dtype=torch.int32)
    assert _atomically("dec", "u32", start, values)[:8].tolist() == [2, 1, 0, 3, 2, 1, 0, 3]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("f32", torch.float32),
        ("f64", torch.float64),
        ("f16", torch.float16),
        ("bf16", torch.bfloat16),
    ],
)
def test_sums_are_added_in_order(kind: str, dtype: torch.dtype) -> None:
    start, values = torch.zeros(3, dtype=dtype), torch.randn(64).to(dtype)
    places, expected = torch.zeros(3, dtype=dtype), []
    for lane in range(64):
        expected.append(places[lane % 3].item())
        places[lane % 3] += values[lane]
    noftz = "add.noftz" if dtype.itemsize == 2 else "add"
    found = _atomically(noftz, kind, start, values)
    assert torch.equal(start, places)
    assert found.tolist() == expected


@pytest.mark.parametrize(("kind", "dtype"), [("f16x2", torch.float16), ("bf16x2", torch.bfloat16)])
def test_sums_of_pairs_and_vectors(kind: str, dtype: torch.dtype) -> None:
    x, total = torch.randn(32, 8).to(dtype), torch.zeros(8, dtype=dtype)
    body = f"""
    mad.wide.u32 %at, %index, 16, %t0; ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%at];
    red.relaxed.gpu.global.add.noftz.v4.{kind} [%t1], {{%r0, %r1, %r2, %r3}};
    """
    run(kernel(body, 2), x, total)
    expected = torch.zeros(8, dtype=dtype)
    for row in x:
        expected += row
    assert torch.equal(total, expected)


def test_compare_and_swap() -> None:
    lock, order = torch.zeros(1, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    body = """
    add.u32 %r1, %index, 1;
    atom.global.gpu.acq_rel.cas.b32 %r0, [%t0], %index, %r1;
    mad.wide.u32 %at, %index, 4, %t1; st.global.b32 [%at], %r0;
    """
    run(kernel(body, 2), lock, order)
    assert lock.item() == 32
    assert order.tolist() == list(range(32))


def test_atomics_in_shared_memory() -> None:
    out = torch.zeros(8, dtype=torch.int32)
    body = """
    mov.b32 %r0, dynamic; and.b32 %r1, %tid, 7; shl.b32 %r1, %r1, 2; add.s32 %r1, %r0, %r1;
    setp.lt.u32 %p0, %tid, 8; @%p0 st.shared.b32 [%r1], 0; bar.sync 0;
    red.shared.add.u32 [%r1], %tid; bar.sync 0;
    @%p0 ld.shared.b32 %r2, [%r1];
    mad.wide.u32 %at, %tid, 4, %t0; @%p0 st.global.b32 [%at], %r2;
    """
    run(kernel(body, 1, threads=64), out, threads=64, shared=64)
    assert torch.equal(out, torch.arange(64, dtype=torch.int32).view(8, 8).sum(0).int())


def _words(matrix: Array) -> Array:
    return np.ascontiguousarray(matrix).view(np.uint32).ravel()


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_from_and_to_shared_memory(trans: str) -> None:
    x = torch.arange(4 * 64, dtype=torch.int16)
    y = torch.zeros(4, 32, 2, dtype=torch.int16)
    z = torch.zeros_like(x)
    body = f"""
    mov.b32 %r0, dynamic; shl.b32 %r1, %tid, 4; add.s32 %r1, %r0, %r1;
    mad.wide.u32 %at, %tid, 16, %t0; ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%at];
    st.shared.v4.b32 [%r1], {{%r4, %r5, %r6, %r7}}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r1];
    mad.wide.u32 %at, %tid, 4, %t1; st.global.b32 [%at], %r4; st.global.b32 [%at+128], %r5;
    st.global.b32 [%at+256], %r6; st.global.b32 [%at+384], %r7;
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r1], {{%r4, %r5, %r6, %r7}};
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r1];
    mad.wide.u32 %at, %tid, 16, %t2; st.global.v4.b32 [%at], {{%r4, %r5, %r6, %r7}};
    """
    run(kernel(body, 3), x, y, z, shared=512)
    matrices = x.view(4, 8, 8)
    if trans:
        matrices = matrices.transpose(1, 2)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        assert torch.equal(y[:, lane], matrices[:, row, column : column + 2])
    assert torch.equal(x, z)


def test_transposed_matrix() -> None:
    x = np.arange(64, dtype=np.uint16).reshape(8, 8)
    code = "movmatrix.sync.aligned.m8n8.trans.b16 {o0}, {0};"
    (got,) = evaluate(code, _words(x), results=[np.uint32])
    assert_same(got, _words(x.T))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_tensor_core_products(kind: str, depth: int) -> None:
    """Fragments are filled as the PTX manual's formulas say, lane by lane."""
    rng = np.random.default_rng(2)
    a, b, c = rng.normal(size=(16, depth)), rng.normal(size=(depth, 8)), rng.normal(size=(16, 8))
    c = c.astype(np.float32)
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    halves = [
        torch.from_numpy(m).to(dtype).view(torch.int16).numpy().view(np.uint16) for m in (a, b)
    ]
    a_bits, b_bits = halves
    decode = bf16_to_f32 if kind == "bf16" else (lambda v: v.view(np.float16))
    exact = decode(a_bits).astype(np.float64) @ decode(b_bits).astype(np.float64) + c
    na, nb = depth // 4, depth // 8
    fa, fb = np.zeros((32, na, 2), np.uint16), np.zeros((32, nb, 2), np.uint16)
    fc, expected = np.zeros((32, 4), np.float32), np.zeros((32, 4), np.float32)
    for lane in range(32):
        group, place = lane // 4, lane % 4
        for i in range(2 * na):
            row = group + (8 if i % 4 >= 2 else 0)
            fa[lane, i // 2, i % 2] = a_bits[row, place * 2 + i % 2 + (8 if i >= 4 else 0)]
        for i in range(2 * nb):
            fb[lane, i // 2, i % 2] = b_bits[place * 2 + i % 2 + (8 if i >= 2 else 0), group]
        for i in range(4):
            where = group + (8 if i >= 2 else 0), place * 2 + i % 2
            fc[lane, i], expected[lane, i] = c[where], exact[where]
    registers = [fa[:, i].copy().view(np.uint32)[:, 0] for i in range(na)]
    registers += [fb[:, i].copy().view(np.uint32)[:, 0] for i in range(nb)]
    registers += [np.ascontiguousarray(fc[:, i]) for i in range(4)]
    _check_product(f"m16n8k{depth}", kind, (na, nb), registers, expected)


@pytest.mark.parametrize("depth", [4, 8])
def test_products_of_tf32(depth: int) -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((16, depth), (depth, 8), (16, 8)))
    # What the tensor core does not look at must not matter.
    cut = [
        (m.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(float) for m in (a, b)
    ]
    exact = cut[0] @ cut[1] + c
    na, nb = depth // 2, depth // 4
    registers = [np.zeros(32, np.float32) for _ in range(na + nb + 4)]
    expected = np.zeros((32, 4), np.float32)
    for lane in range(32):
        group, place = lane // 4, lane % 4
        for i in range(na):
            registers[i][lane] = a[group + 8 * (i % 2), place + 4 * (i // 2)]
        for i in range(nb):
            registers[na + i][lane] = b[place + 4 * i, group]
        for i in range(4):
            where = group + 8 * (i // 2), place * 2 + i % 2
            registers[na + nb + i][lane], expected[lane, i] = c[where], exact[where]
    _check_product(f"m16n8k{depth}", "tf32", (na, nb), registers, expected)


def _check_product(
    shape: str, kind: str, counts: tuple[int, int], registers: list[Array], expected: Array
) -> None:
    na, nb = counts
    names = [f"{{{i}}}" for i in range(na + nb + 4)]
    vectors = [", ".join(part) for part in (names[:na], names[na : na + nb], names[na + nb :])]
    a, b, c = ("{{" + vector + "}}" for vector in vectors)
    out = "{{{o0}, {o1}, {o2}, {o3}}}"
    code = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {out}, {a}, {b}, {c};"
    results = evaluate(code, *registers, results=[np.float32] * 4)
    for i, got in enumerate(results):
        assert_same(got, expected[:, i])


def test_half_a_warp_has_no_matrix() -> None:
    code = "setp.lt.u32 %p0, {0}, 16; @%p0 movmatrix.sync.aligned.m8n8.trans.b16 {o0}, {0};"
    with pytest.raises(KernelFault, match="some lanes of a warp"):
        evaluate(code, _LANES[:32], results=[np.uint32])
