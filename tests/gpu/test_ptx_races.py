"""Races of programs of one launch in global memory, apart from those over counters."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.ptx.errors import Race
from tests.gpu.ptx.snippets import kernel, run

# Programs that run together: one, or all.
_LANES = pytest.mark.parametrize("lanes", [64, 1 << 14])


def _run(body: str, *tensors: torch.Tensor, lanes: int, programs: int = 4) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.machine._LANES", lanes)
        run(kernel(body, len(tensors), threads=64), *tensors, programs=programs, threads=64)


def _rows(count: int = 4) -> torch.Tensor:
    return torch.zeros(count, 64, dtype=torch.int32)


# Every program reads the next program's row and its own, and writes its own one once the program
# before is done.
_NEXT = """
    mov.u32 %r0, %ctaid.x; mad.wide.u32 %d0, %r0, 4, %t0; mad.wide.u32 %at, %index, 4, %t1;
    ld.global.b32 %r1, [%at+256]; ld.global.b32 %r2, [%at]; add.s32 %r1, %r1, %tid;
    setp.eq.u32 %p0, %r0, 0; @%p0 bra $write;
    $poll: ld.acquire.gpu.global.b32 %r3, [%d0-4];
    setp.ne.u32 %p1, %r3, 0; @%p1 bra $write; nanosleep.u32 20; bra $poll;
    $write: bar.sync 0; st.global.b32 [%at], %r1; bar.sync 0;
    setp.ne.u32 %p1, %tid, 0; @%p1 bra $end; red.release.gpu.global.add.s32 [%d0], 1;
    $end: mov.b32 %r5, 0;
"""


@_LANES
def test_write_of_what_another_program_has_read(lanes: int) -> None:
    """It is found although its own program has read it since."""
    rows = _rows(5)
    _run(_NEXT, torch.zeros(4, dtype=torch.int32), rows, lanes=lanes)
    assert torch.equal(rows[:4], torch.arange(64, dtype=torch.int32).expand(4, 64))
    for body in (_NEXT.replace("acquire", "relaxed"), _NEXT.replace("release", "relaxed")):
        with pytest.raises(
            Race, match=r"write to tensor1, which program \d read without a release"
        ):
            _run(body, torch.zeros(4, dtype=torch.int32), _rows(5), lanes=lanes)


@_LANES
def test_write_of_what_all_programs_have_read(lanes: int) -> None:
    """The one that writes was the last to read."""
    body = """
        ld.global.b32 %r1, [%t0]; mov.u32 %r0, %ctaid.x; setp.eq.u32 %p0, %r0, 3;
        bar.sync 0; @%p0 st.global.b32 [%t0], 7;
    """
    with pytest.raises(Race, match="write to tensor0, which program 2 read without a release"):
        _run(body, _rows(), lanes=lanes)
    _run(body, _rows(), lanes=lanes, programs=3)


@_LANES
def test_kernels_that_order_nothing(lanes: int) -> None:
    """Memory that was read is written for the first time."""
    body = """
        mad.wide.u32 %at, %index, 4, %t0; ld.global.b32 %r1, [%at+256]; st.global.b32 [%at], %tid;
    """
    with pytest.raises(Race, match=r"write to tensor0, which program \d read without a release"):
        _run(body, _rows(5), lanes=lanes)


@_LANES
def test_two_programs_write_one_number(lanes: int) -> None:
    """Even if it is the same value, by one instruction or another."""
    body = "mad.wide.u32 %at, %tid, 4, %t0; st.global.b32 [%at], 7;"
    _run(body, _rows(), lanes=lanes, programs=1)
    with pytest.raises(Race, match=r"write to tensor0, which program \d wrote without a release"):
        _run(body, _rows(), lanes=lanes)
    apart = """
        mov.u32 %r0, %ctaid.x; setp.eq.u32 %p0, %r0, 1; @%p0 st.global.b32 [%t0], 7;
        @%p0 bra $end; st.global.b32 [%t0], 7; $end: mov.b32 %r0, 0;
    """
    with pytest.raises(Race, match=r"write to tensor0, which program \d wrote without a release"):
        _run(apart, _rows(), lanes=lanes, programs=2)


@_LANES
@pytest.mark.parametrize("width", [2, 4])
def test_every_number_of_a_vector_counts(width: int, lanes: int) -> None:
    """One program writes the last one of those that another one reads."""
    names = ["%r1", "%r2", "%r3", "%r4"][:width]
    body = f"""
        mul.wide.u32 %d0, %tid, {4 * width}; add.s64 %d0, %d0, %t0; mov.u32 %r0, %ctaid.x;
        setp.eq.u32 %p0, %r0, 0; @%p0 bra $one;
        ld.global.v{width}.b32 {{{", ".join(names)}}}, [%d0]; bra $end;
        $one: st.global.b32 [%d0+{4 * width - 4}], 7;
        $end: mov.b32 %r0, 0;
    """
    with pytest.raises(Race, match=r"tensor0, which program \d (wrote|read) without a release"):
        _run(body, torch.zeros(64, width, dtype=torch.int32), lanes=lanes, programs=2)


@_LANES
def test_tensors_that_overlap(lanes: int) -> None:
    """Every program writes to its row of one tensor, and reads the next row by way of another."""
    body = """
        mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %tid;
        mad.wide.u32 %at, %index, 4, %t1; ld.global.b32 %r0, [%at];
    """
    rows = _rows(5)
    _run(body, rows, rows[:4], lanes=lanes)
    _run(body, rows[:4], _rows(), lanes=lanes)
    with pytest.raises(Race, match=r"tensor\d, which program \d (wrote|read) without a release"):
        _run(body, rows[:4], rows[1:], lanes=lanes)


@_LANES
def test_reads_by_way_of_the_cache_that_is_not_coherent(lanes: int) -> None:
    """They find nothing that the launch wrote, not even what their own warp wrote."""
    body = """
        mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %tid; bar.sync 0;
        ld.global.b32 %r0, [%at]; ld.global.nc.b32 %r1, [%t1];
    """
    _run(body, _rows(), _rows(), lanes=lanes)
    with pytest.raises(
        Race, match=r"read of tensor0, which program 0 of this launch wrote, by way"
    ):
        _run(body.replace("ld.global.b32", "ld.global.nc.b32"), _rows(), _rows(), lanes=lanes)
    atomics = body.replace("st.global.b32 [%at], %tid", "red.global.add.u32 [%at], %tid")
    _run(atomics, _rows(), _rows(), lanes=lanes)
    with pytest.raises(
        Race, match="of this launch wrote, by way of the cache that is not coherent"
    ):
        _run(atomics.replace("ld.global.b32", "ld.global.nc.b32"), _rows(), _rows(), lanes=lanes)


_COUNT = "red.relaxed.gpu.global.add.u32 [%t0], 1;"


@pytest.mark.parametrize(
    ("before", "behind", "found"),
    [
        ("", "ld.global.b32 %r1, [%t0];", r"read of tensor0, which program \d changed"),
        ("", "st.global.b32 [%t0], 7;", r"write to tensor0, which program \d changed"),
        ("ld.global.b32 %r1, [%t0];", "", r"change of tensor0, which program \d read"),
        ("@%p0 st.global.b32 [%t0], 7;", "", r"change of tensor0, which program 0 wrote"),
        ("", "ld.relaxed.gpu.global.b32 %r1, [%t0];", None),
        ("", "ld.volatile.global.b32 %r1, [%t0];", None),
        ("", "st.relaxed.gpu.global.b32 [%t0], 7;", None),
    ],
)
def test_atomics_among_others(before: str, behind: str, found: str | None) -> None:
    body = f"""
        mov.u32 %r0, %ctaid.x; setp.eq.u32 %p0, %r0, 0;
        {before} bar.sync 0; {_COUNT} bar.sync 0; {behind}
    """
    if found is None:
        _run(body, _rows(), lanes=1 << 14)
        return
    with pytest.raises(Race, match=found):
        _run(body, _rows(), lanes=1 << 14)
