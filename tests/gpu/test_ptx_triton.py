"""Triton kernels on the PTX machine, for every architecture, against torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
import triton.language as tl

from da2s_fast.kernels.launch import Launch, launch, launched_by
from tests.gpu.ptx.compile import Compiled, compile_launch, resident
from tests.gpu.ptx.errors import MemoryFault, Race, UninitializedRead
from tests.gpu.ptx.launcher import PtxLauncher, poison
from tests.gpu.ptx.meter import total


@triton.jit
def _affine(xs, scales, out, count, shift, N: tl.constexpr, BLOCK: tl.constexpr):  # noqa: PLR0917
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros((BLOCK,), tl.float32) + shift
    for i in tl.static_range(N):
        total += tl.load(xs[i] + at, mask=inside, other=0.0).to(tl.float32) * scales[i]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _softmax(x, out, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * stride + at, mask=at < columns, other=-float("inf"))
    powers = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * columns + at, powers / tl.sum(powers, 0), mask=at < columns)


@triton.jit
def _stencil(x, weight, out, H, W, BLOCK: tl.constexpr):  # noqa: PLR0917
    plane = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // W, at % W
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(3):
        for j in range(3):
            y, z = row + i - 1, column + j - 1
            inside = (y >= 0) & (y < H) & (z >= 0) & (z < W) & (at < H * W)
            value = tl.load(x + plane * H * W + y * W + z, mask=inside, other=0.0)
            total += value * tl.load(weight + i * 3 + j)
    tl.store(out + plane * H * W + at, total, mask=at < H * W)


@triton.jit
def _matmul(  # noqa: PLR0917
    a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HOW: tl.constexpr
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(a + i[:, None] * K + k, mask=(i[:, None] < M) & (k < K), other=0.0)
        y = tl.load(b + k[:, None] * N + j, mask=(k[:, None] < K) & (j < N), other=0.0)
        total = tl.dot(x, y, total, input_precision=HOW)
    tl.store(c + i[:, None] * N + j, total, mask=(i[:, None] < M) & (j < N))


@triton.jit
def _channels(x, sums, largest, count, rows, C: tl.constexpr, R: tl.constexpr):  # noqa: PLR0917
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.arange(0, C)
    values = tl.load(x + row[:, None] * C + channel, mask=row[:, None] < rows, other=0.0)
    tl.atomic_add(sums + channel, tl.sum(values, 0), sem="relaxed")
    tl.atomic_max(largest + channel, tl.max(values, 0))
    tl.atomic_add(count, 1)


@triton.jit
def _scan(x, sums, ordered, n: tl.constexpr):
    at = tl.arange(0, n)
    values = tl.load(x + at)
    tl.store(sums + at, tl.cumsum(values, 0))
    tl.store(ordered + at, tl.sort(values))


@triton.jit
def _collatz(x, steps, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=1)
    taken = tl.zeros((BLOCK,), tl.int32)
    while tl.max(value, 0) > 1:
        more = value > 1
        value = tl.where(more, tl.where(value % 2 == 0, value // 2, 3 * value + 1), value)
        taken += more.to(tl.int32)
    tl.store(steps + at, taken, mask=at < n)


@triton.jit
def _optional(x, bias, out, n, flag, BLOCK: tl.constexpr):  # noqa: PLR0917
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    if bias is not None:
        value += tl.load(bias + at, mask=at < n)
    if flag:
        value = -value
    tl.store(out + at, value, mask=at < n)


@pytest.fixture(params=[80, 90, 100], ids=lambda arch: f"sm_{arch}")
def ptx(request: pytest.FixtureRequest) -> Iterator[PtxLauncher]:
    launcher = PtxLauncher(request.param)
    with launched_by(launcher):
        yield launcher


@pytest.fixture(autouse=True)
def _drawn() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("count", [1, 1000, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_elementwise_with_a_tail(ptx: PtxLauncher, dtype: torch.dtype, count: int) -> None:
    xs = tuple(torch.randn(count).to(dtype) for _ in range(3))
    out = torch.empty(count, dtype=dtype)
    poison(out)
    scales = (0.5, 2.0, -1.5)
    arguments = {"xs": xs, "scales": scales, "out": out, "count": count, "shift": 0.25}
    launch(_affine, (-(-count // 256),), **arguments, N=3, BLOCK=256)
    expected = sum(x.double() * s for x, s in zip(xs, scales, strict=True)) + 0.25
    torch.testing.assert_close(out, expected.to(dtype), rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("columns", [17, 1000])
def test_softmax(ptx: PtxLauncher, columns: int) -> None:
    x, out = torch.randn(5, columns), torch.empty(5, columns)
    poison(out)
    launch(_softmax, (5,), x=x, out=out, columns=columns, stride=columns, BLOCK=1024)
    torch.testing.assert_close(out, x.softmax(1), rtol=1e-6, atol=1e-7)


def test_stencil(ptx: PtxLauncher) -> None:
    x, weight, out = torch.randn(6, 1, 15, 15), torch.randn(1, 1, 3, 3), torch.empty(6, 1, 15, 15)
    poison(out)
    launch(_stencil, (2, 6), x=x, weight=weight, out=out, H=15, W=15, BLOCK=128)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_matmul(ptx: PtxLauncher) -> None:
    a, b, c = torch.randn(50, 40), torch.randn(40, 70), torch.empty(50, 70)
    poison(c)
    sizes = {"M": 50, "N": 70, "K": 40, "BM": 32, "BN": 32, "BK": 16}
    launch(_matmul, (2, 3), a=a, b=b, c=c, **sizes, HOW="ieee")
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensor_cores(dtype: torch.dtype, stages: int) -> None:
    """Of sm_80: later ones have instructions that the machine does not know."""
    a, b = torch.randn(64, 64).to(dtype), torch.randn(64, 96).to(dtype)
    c = torch.full((64, 96), torch.nan)
    sizes = {"M": 64, "N": 96, "K": 64, "BM": 32, "BN": 32, "BK": 32}
    ptx = PtxLauncher(80)
    with launched_by(ptx):
        launch(_matmul, (2, 3), stages=stages, a=a, b=b, c=c, **sizes, HOW="tf32")
    cut = (m.view(torch.int32) & -8192 if dtype == torch.float32 else m for m in (a, b))
    x, y = (m.view(dtype).double() for m in cut)
    torch.testing.assert_close(c.double(), x @ y, rtol=1e-5, atol=1e-5)
    assert any(name.startswith("mma") for name in ptx.meters[-1].instructions)


def test_atomics(ptx: PtxLauncher) -> None:
    x = torch.randn(100, 16)
    sums, largest = torch.zeros(16), torch.full((16,), -10.0)
    count = torch.zeros(1, dtype=torch.int32)
    tensors = {"x": x, "sums": sums, "largest": largest, "count": count}
    launch(_channels, (4,), **tensors, rows=100, C=16, R=32)
    torch.testing.assert_close(sums, x.sum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(largest, x.amax(0))
    assert count.item() == 4
    relaxed = {name for name in ptx.meters[-1].atomics if "relaxed" in name}
    assert relaxed
    assert len(relaxed) < len(ptx.meters[-1].atomics)


def test_scan_and_sort(ptx: PtxLauncher) -> None:
    x = torch.randn(256)
    sums, ordered = torch.empty(256), torch.empty(256)
    launch(_scan, (1,), x=x, sums=sums, ordered=ordered, n=256)
    torch.testing.assert_close(sums, x.cumsum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(ordered, x.sort().values)


def test_loops_of_different_length(ptx: PtxLauncher) -> None:
    x, steps = torch.arange(1, 301), torch.zeros(300, dtype=torch.int32)

    def count(value: int) -> int:
        return 0 if value == 1 else 1 + count(value // 2 if value % 2 == 0 else 3 * value + 1)

    launch(_collatz, (5,), x=x, steps=steps, n=300, BLOCK=64, warps=2)
    assert steps.tolist() == [count(int(v)) for v in x]


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_optional_arguments(ptx: PtxLauncher, with_bias: bool, flag: bool) -> None:
    x, out = torch.randn(30), torch.empty(30)
    bias = torch.randn(30) if with_bias else None
    launch(_optional, (1,), x=x, bias=bias, out=out, n=30, flag=flag, BLOCK=32, warps=1)
    expected = x + bias if bias is not None else x
    assert torch.equal(out, -expected if flag else expected)


def _softmax_changed(change: Callable[[str], str], arch: int = 90, **more: int) -> None:
    x = torch.randn(3, 1000)
    arguments = {"x": x, "out": torch.empty(3, 1000), "columns": 1000, "stride": 1000, **more}
    with launched_by(PtxLauncher(arch, change=change)):
        launch(_softmax, (3,), **arguments, BLOCK=1024)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_missing_barrier_is_found(arch: int) -> None:
    barriers = []
    _softmax_changed(
        lambda text: barriers.extend(re.finditer(r"bar\.sync[^;]*;", text)) or text, arch
    )
    assert len(barriers) >= 3
    for barrier in barriers:

        def without(text: str, place: tuple[int, int] = barrier.span()) -> str:
            return text[: place[0]] + text[place[1] :]

        with pytest.raises((Race, UninitializedRead), match=r"_softmax: .*shared address"):
            _softmax_changed(without, arch)


def test_one_element_too_many() -> None:
    with pytest.raises(
        MemoryFault, match=r"_softmax: read of .* x \(3, 1000\) of 12000 bytes, offset 12000"
    ):
        _softmax_changed(lambda text: text, columns=1001)


def test_wrong_stride() -> None:
    with pytest.raises(MemoryFault, match=r"x .*offset 12"):
        _softmax_changed(lambda text: text, stride=1008)


def test_store_that_never_reaches_shared_memory() -> None:
    with pytest.raises(UninitializedRead):
        _softmax_changed(lambda text: re.sub(r"st\.shared[^;]*;", "", text, count=1))


def test_pointers_that_are_not_aligned_as_compiled() -> None:
    def assume(text: str) -> str:
        return re.sub(r"ld\.global\.b32 \{ (%r\d+) \}", r"ld.global.v2.b32 { \1, \1 }", text)

    with pytest.raises(MemoryFault, match="misaligned access of 8 bytes"):
        _softmax_changed(assume)


def test_read_only_tensors() -> None:
    x = torch.zeros(3, 64)
    with (
        launched_by(PtxLauncher(80, read_only=["out"])),
        pytest.raises(MemoryFault, match="read-only"),
    ):
        launch(_softmax, (3,), x=x, out=x, columns=64, stride=64, BLOCK=64)


def test_sectors_of_a_launch() -> None:
    ptx = PtxLauncher(90)
    x, out = torch.randn(8, 1024), torch.empty(8, 1024)
    with launched_by(ptx):
        launch(_softmax, (8,), x=x, out=out, columns=1024, stride=1024, BLOCK=1024)
        launch(_softmax, (8,), x=x, out=out, columns=1000, stride=1024, BLOCK=1024)
    whole, part = ptx.meters
    sectors = 8 * 1024 * 4 // 32
    assert (whole.sectors_read, whole.sectors_written) == (sectors, sectors)
    assert whole.total("ld.global").sectors == whole.total("st.global").sectors == sectors
    assert whole.total("ld.global").bytes == x.nbytes
    # 1024 columns are known to be multiples of 16, 1000 are not.
    assert whole.share_of_128_bits == 1
    assert part.share_of_128_bits == 0
    assert part.sectors_read == 8 * 1000 * 4 // 32
    assert part.total("ld.global").instructions == 8 * 32
    both = total(ptx.meters)
    assert both.kernels == {"_softmax": 2}
    assert both.sectors_read == whole.sectors_read + part.sectors_read
    barriers = [m.instructions["barrier"] for m in (both, whole, part)]
    assert barriers[0] == barriers[1] + barriers[2]


def test_static_evidence() -> None:
    ptx = PtxLauncher(90)
    with launched_by(ptx):
        launch(
            _softmax, (1,), x=torch.zeros(64), out=torch.zeros(64), columns=64, stride=64, BLOCK=64
        )
    static = ptx.meters[0].compiled.static
    assert 8 <= static.registers <= 255
    assert static.spill_stores == static.spill_loads == static.stack == 0
    assert 0 < static.occupancy <= 1
    assert static.warps == 4


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [(32, 0, 4, 16), (128, 0, 4, 4), (255, 0, 8, 1), (16, 0, 1, 32), (32, 100 << 10, 4, 2)],
)
def test_residency(registers: int, shared: int, warps: int, blocks: int) -> None:
    assert resident(90, registers, shared, warps) == blocks


def _specialization(**arguments: object) -> Compiled:
    given = {"x": torch.zeros(64), "bias": None, "out": torch.zeros(64), "n": 3, "flag": True}
    started = Launch(_optional, (1,), given | {"BLOCK": 32} | arguments, 1, 1)
    return compile_launch(started, 80)


def test_arguments_are_specialized_as_by_the_jit() -> None:
    plain = _specialization()
    assert plain.signature == {
        "x": "*fp32",
        "bias": "constexpr",
        "out": "*fp32",
        "n": "i32",
        "flag": "u1",
        "BLOCK": "constexpr",
    }
    assert _specialization(n=1).signature["n"] == "constexpr"
    assert _specialization(n=2**40).signature["n"] == "i64"
    assert _specialization(n=2**63).signature["n"] == "u64"
    assert _specialization(bias=torch.zeros(64)).signature["bias"] == "*fp32"
    # Wide accesses need pointers and sizes that are multiples of 16.
    wide = {"n": 64, "BLOCK": 256}
    vector = re.compile(r"ld\.global\.v\d")
    assert vector.search(_specialization(**wide).ptx)
    assert not vector.search(_specialization(**wide | {"n": 63}).ptx)
    assert not vector.search(_specialization(**wide, x=torch.zeros(65)[1:]).ptx)


def test_kernels_are_compiled_once() -> None:
    arguments = {"x": torch.zeros(64), "bias": None, "out": torch.zeros(64), "n": 3, "flag": True}
    started = Launch(_optional, (1,), arguments | {"BLOCK": 32}, 1, 1)
    again = Launch(_optional, (9,), arguments | {"n": 5, "BLOCK": 32}, 1, 1)
    assert compile_launch(started, 80) is compile_launch(again, 80)


def test_unknown_parameters() -> None:
    with pytest.raises(TypeError):
        compile_launch(Launch(_optional, (1,), {"y": torch.zeros(4)}, 1, 1), 80)
