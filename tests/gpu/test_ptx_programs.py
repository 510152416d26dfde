"""Programs of one launch that wait for one another: how they may, and what is found wrong."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.ptx.errors import NoProgress, Race
from tests.gpu.ptx.snippets import kernel, run

# Program t adds one to what programs t - 1 and t - 2 wrote, of other warps and of its own.
_CHAIN = """
    setp.ne.u32 %p0, %tid, 0; mov.b32 %r0, dynamic; @%p0 bra $go;
    atom.relaxed.gpu.global.add.s32 %r1, [%t0], 1;
    st.shared.b32 [%r0], %r1;
    $go: bar.sync 0;
    ld.shared.b32 %r2, [%r0]; mad.wide.u32 %d1, %r2, 4, %t1;
    setp.ge.u32 %p1, %tid, 2; @%p1 bra $ready;
    sub.s32 %r3, %r2, %tid; sub.s32 %r3, %r3, 1; setp.lt.s32 %p1, %r3, 0; @%p1 bra $ready;
    mad.wide.u32 %d0, %r3, 4, %t1; bra $poll;
    $sleep: nanosleep.u32 20;
    $poll: ld.acquire.gpu.global.s32 %r4, [%d0];
    setp.lt.s32 %p2, %r4, 1; @%p2 bra $sleep;
    $ready: bar.sync 0; // before reading
    mov.b32 %r5, 1;
    mul.wide.u32 %d2, %r2, 256; add.s64 %d2, %d2, %t2;
    mad.wide.u32 %d3, %tid, 4, %d2; xor.b32 %r6, %tid, 32; mad.wide.u32 %d4, %r6, 4, %d2;
    setp.lt.u32 %p3, %r2, 1; @%p3 bra $write; ld.global.b32 %r7, [%d4-256]; add.s32 %r5, %r5, %r7;
    setp.lt.u32 %p3, %r2, 2; @%p3 bra $write; ld.global.b32 %r7, [%d3-512]; add.s32 %r5, %r5, %r7;
    $write: st.global.b32 [%d3], %r5;
    bar.sync 0; // behind writing
    @%p0 bra $end;
    red.release.gpu.global.add.s32 [%d1], 1;
    $end: mov.b32 %r5, 0;
"""
_ACQUIRE, _RELEASE = "ld.acquire.gpu.global.s32 %r4, [%d0];", "red.release.gpu.global.add.s32"
_BEFORE, _BEHIND = "bar.sync 0; // before reading", "bar.sync 0; // behind writing"
# Lanes that run together: one program's, some programs', all.
_LANES = pytest.mark.parametrize("lanes", [64, 256, 1 << 14])


def _run(*changes: tuple[str, str], lanes: int, programs: int = 9) -> torch.Tensor:
    """Execute the chain, changed; what is in its rows."""
    body = _CHAIN
    for old, new in changes:
        assert body.count(old) == 1, old
        body = body.replace(old, new)
    # One counter more than there are programs.
    tensors = torch.zeros(1), torch.zeros(programs + 1), torch.zeros(programs, 64)
    ticket, counters, rows = (tensor.int() for tensor in tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.machine._LANES", lanes)
        text = kernel(body, 3, threads=64)
        run(text, ticket, counters, rows, programs=programs, threads=64, shared=4)
    assert ticket.item() == programs
    return rows


def _expected(programs: int = 9) -> torch.Tensor:
    numbers = [1, 2]
    while len(numbers) < programs:
        numbers.append(1 + sum(numbers[-2:]))
    return torch.tensor(numbers, dtype=torch.int32)[:, None].expand(-1, 64)


@_LANES
def test_programs_wait_for_earlier_ones(lanes: int) -> None:
    assert torch.equal(_run(lanes=lanes), _expected())


def test_sleepers_cost_few_jumps() -> None:
    """All programs run together, and each waits for the one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.schedule._RUNS", 40 * 15)
        assert torch.equal(_run(lanes=1 << 14, programs=40), _expected(40))


_LATER = """
    mov.u32 %r2, %ctaid.x; mad.wide.u32 %d0, %r2, 4, %t0;
    and.b32 %r3, %r2, 1; setp.ne.u32 %p0, %r3, 0; @%p0 bra $odd;
    $poll: ld.acquire.gpu.global.u32 %r4, [%d0+4];
    setp.ne.u32 %p1, %r4, 0; @%p1 bra $end; nanosleep.u32 20; bra $poll;
    $odd: red.release.gpu.global.add.s32 [%d0], 1;
    $end: mov.b32 %r5, 0;
"""


@pytest.mark.parametrize("lanes", [32, 64, 1 << 14])
def test_waiting_for_a_later_program(lanes: int) -> None:
    """Even programs may wait for the next one if both run together, else nobody comes."""
    counters = torch.zeros(8, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.machine._LANES", lanes)
        if lanes == 32:
            message = r"wait for counters that nobody increments, 1 of them: 0; .*\n  at 'nanosleep"
            with pytest.raises(NoProgress, match=message):
                run(kernel(_LATER, 1), counters, programs=8)
        else:
            run(kernel(_LATER, 1), counters, programs=8)
            assert counters.tolist() == [0, 32] * 4


@_LANES
def test_waiting_for_too_large_a_count(lanes: int) -> None:
    waiting = {
        64: "1 of them: 1;",
        256: "3 of them: 1, 2, 3;",
        1 << 14: "8 of them: 1, 2, 3, 4, ...",
    }
    with pytest.raises(NoProgress, match=f"counters that nobody increments, {waiting[lanes]}"):
        _run(("setp.lt.s32 %p2, %r4, 1", "setp.lt.s32 %p2, %r4, 2"), lanes=lanes)


def test_looking_without_sleeping() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.schedule._RUNS", 2000)
        with pytest.raises(NoProgress, match="jumps"):
            _run(("nanosleep.u32 20;", ""), lanes=1 << 14)


@_LANES
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ld.acquire", "ld.relaxed"),
        ("ld.acquire.gpu", "ld.acquire.cta"),
        ("ld.acquire.gpu", "ld.volatile"),
        (_ACQUIRE, "ld.relaxed.gpu.global.s32 %r4, [%d0]; fence.acq_rel.cta;"),
        ("red.release", "red.relaxed"),
        ("red.release.gpu", "red.release.cta"),
        (_RELEASE, "fence.acq_rel.cta; red.relaxed.gpu.global.add.s32"),
        (_BEFORE, ""),
        (_BEHIND, ""),
        (
            f"{_BEHIND}\n    @%p0 bra $end;\n    {_RELEASE}",
            "membar.gl; bar.sync 0; @%p0 bra $end; red.relaxed.gpu.global.add.s32",
        ),
        ("$end: ", "$end: bar.sync 0; st.global.b32 [%d3], %r5;"),
    ],
    ids=[
        "relaxed load",
        "load of a block",
        "volatile load",
        "load and fence of a block",
        "relaxed atomic",
        "atomic of a block",
        "fence of a block and atomic",
        "no barrier before reading",
        "no barrier behind writing",
        "no fence behind the barrier",
        "write behind the release",
    ],
)
def test_what_does_not_order_programs(old: str, new: str, lanes: int) -> None:
    with pytest.raises(Race, match=r"tensor2, which program \d (wrote|read) without a release"):
        _run((old, new), lanes=lanes)


@_LANES
def test_a_store_covers_what_was_released(lanes: int) -> None:
    """It counts by the atomic that looks, and the release is not seen any more."""
    look = _ACQUIRE, "atom.acquire.gpu.global.add.s32 %r4, [%d0], 0;"
    store = f"{_RELEASE} [%d1], 1; mov.b32 %r8, 1; st.KIND.gpu.global.b32 [%d1], %r8;"
    release = f"{_RELEASE} [%d1], 1;", store.replace("KIND", "release")
    assert torch.equal(_run(look, release, lanes=lanes), _expected())
    with pytest.raises(Race, match=r"tensor2, which program \d wrote without a release"):
        _run(look, (release[0], store.replace("KIND", "relaxed")), lanes=lanes)


# All programs but the last add to one counter, for which the last one waits.
_SUM = """
    mov.u32 %r0, %ctaid.x; mad.wide.u32 %at, %index, 4, %t1; setp.eq.u32 %p0, %tid, 0;
    setp.eq.u32 %p1, %r0, 11; @%p1 bra $poll;
    st.global.b32 [%at], %index; bar.sync 0;
    @%p0 red.release.gpu.global.add.u32 [%t0], 1; bra $end;
    $sleep: nanosleep.u32 20;
    $poll: ld.acquire.gpu.global.u32 %r1, [%t0]; setp.lt.u32 %p2, %r1, COUNT; @%p2 bra $sleep;
    bar.sync 0;
    mov.b32 %r3, 0; mov.b32 %r4, 11; mad.wide.u32 %d0, %tid, 4, %t1;
    $add: ld.global.b32 %r2, [%d0]; add.u32 %r3, %r3, %r2; add.s64 %d0, %d0, 256;
    sub.u32 %r4, %r4, 1; setp.ne.u32 %p3, %r4, 0; @%p3 bra $add;
    st.global.b32 [%at], %r3;
    $end: mov.b32 %r5, 0;
"""


@_LANES
@pytest.mark.parametrize("count", [1, 2, 5, 10, 11, 12])
def test_how_many_to_wait_for(count: int, lanes: int) -> None:
    """Too small a count is found although all others are done when the last program looks."""
    counter, rows = torch.zeros(1, dtype=torch.int32), torch.zeros(12, 64, dtype=torch.int32)
    body = _SUM.replace("COUNT", str(count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.machine._LANES", lanes)
        if count != 11:
            with pytest.raises(Race if count < 11 else NoProgress) as found:
                run(kernel(body, 2, threads=64), counter, rows, programs=12, threads=64)
            assert count == 12 or f"which program {count} wrote" in str(found.value)
            return
        look, atomic = "ld.acquire.gpu.global.u32 %r1, [%t0]", "atom.acquire.add.u32 %r1, [%t0], 0"
        for text in (body, body.replace(look, atomic)):
            counter.zero_()
            run(kernel(text, 2, threads=64), counter, rows, programs=12, threads=64)
            assert torch.equal(rows[11], rows[:11].sum(0))


@_LANES
@pytest.mark.parametrize(
    "changes",
    [
        [("ld.acquire.gpu", "ld.acquire.sys")],
        [(_ACQUIRE, "atom.acquire.gpu.global.add.s32 %r4, [%d0], 0;")],
        [(_ACQUIRE, "ld.relaxed.gpu.global.s32 %r4, [%d0]; fence.acq_rel.gpu;")],
        [("ld.acquire.gpu", "ld.volatile"), (_BEFORE, "membar.gl; bar.sync 0;")],
        [(f"{_RELEASE} [%d1]", "atom.acq_rel.gpu.global.add.s32 %r8, [%d1]")],
        [(_RELEASE, "membar.gl; red.global.add.s32")],
        [(_RELEASE, "fence.acq_rel.sys; red.relaxed.gpu.global.add.s32")],
        [(f"{_RELEASE} [%d1], 1;", "mov.b32 %r8, 1; st.release.gpu.global.b32 [%d1], %r8;")],
        [
            (
                f"{_RELEASE} [%d1], 1;",
                f"{_RELEASE} [%d1], 0; red.relaxed.gpu.global.add.s32 [%d1], 1;",
            )
        ],
        [("setp.ge.u32 %p1, %tid, 2", "setp.ge.u32 %p1, %tid, 1")],
    ],
    ids=[
        "load of the system",
        "atomic acquires",
        "relaxed load and fence",
        "volatile load and fence",
        "atomic releases",
        "fence and atomic",
        "fence and relaxed atomic",
        "store releases",
        "atomic behind the release",
        "program t - 1 has waited for t - 2",
    ],
)
def test_what_orders_programs(changes: list[tuple[str, str]], lanes: int) -> None:
    assert torch.equal(_run(*changes, lanes=lanes), _expected())


# Program 1 reads what program 0 wrote before it released; two sleeps are time to acquire.
_WARPS = """
    mov.u32 %r0, %ctaid.x; mad.wide.u32 %at, %tid, 4, %t1; setp.ne.u32 %p0, %r0, 0;
    @%p0 bra $read;
    st.global.b32 [%at], %tid; bar.sync 0; mov.b32 %r1, 1;
    setp.ne.u32 %p1, %tid, 0; @%p1 bra $end; st.release.gpu.global.b32 [%t0], %r1; bra $end;
    $sleep: nanosleep.u32 20;
    $read: setp.lt.u32 %p1, %tid, 32; @%p1 bra $load;
    ld.acquire.gpu.global.b32 %r1, [%t0]; setp.eq.u32 %p2, %r1, 0; @%p2 bra $sleep;
    $load: setp.FIRST.u32 %p1, %tid, 32; @%p1 bra $end;
    nanosleep.u32 20; nanosleep.u32 20; ld.global.b32 %r2, [%at];
    $end: mov.b32 %r5, 0;
"""


@pytest.mark.parametrize("first", ["lt", "ge"])
def test_a_warp_knows_at_once_what_it_acquired(first: str) -> None:
    """And the other one does not know it."""
    flag, row = torch.zeros(1, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    text = kernel(_WARPS.replace("FIRST", first), 2, threads=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.machine._LANES", 64)
        if first == "lt":
            run(text, flag, row, programs=2, threads=64)
            return
        with pytest.raises(Race, match="tensor1, which program 0 wrote without a release"):
            run(text, flag, row, programs=2, threads=64)


# Program 0 writes a row and releases, one thread of program 1 passes that on, program 2 reads.
_RELAY = """
    mov.u32 %r0, %ctaid.x; mad.wide.u32 %at, %tid, 4, %t1; mov.b32 %r4, 7;
    setp.ne.u32 %p0, %tid, 0; setp.eq.u32 %p1, %r0, 1; setp.eq.u32 %p2, %r0, 2;
    mad.wide.u32 %d0, %r0, 4, %t0; @%p1 bra $relay; @%p2 bra $look;
    st.global.b32 [%at], %tid; bar.sync 0; @%p0 bra $end;
    red.release.gpu.global.add.s32 [%d0], 1; bra $end;
    $sleep: nanosleep.u32 20;
    $relay: @%p0 bra $meet; ld.acquire.gpu.global.b32 %r1, [%d0-4]; setp.eq.u32 %p3, %r1, 0;
    @%p3 bra $sleep; CHANGE
    $meet: BARRIER @%p0 bra $end; red.release.gpu.global.add.s32 [%d0], 1; bra $end;
    $wait: nanosleep.u32 20;
    $look: ld.acquire.gpu.global.b32 %r1, [%d0-4]; setp.eq.u32 %p3, %r1, 0; @%p3 bra $wait;
    bar.sync 0; ld.global.b32 %r2, [%at]; ld.acquire.gpu.global.b32 %r3, [%t0];
    add.s32 %r2, %r2, %r3; st.global.b32 [%at+256], %r2;
    $end: mov.b32 %r5, 0;
"""


@pytest.mark.parametrize("lanes", [64, 1 << 14])
@pytest.mark.parametrize(
    ("change", "barrier", "value"),
    [
        ("", "", 1),
        # Values that are known to be old are not seen.
        ("red.relaxed.gpu.global.add.s32 [%t0], 6;", "", 7),
        ("st.relaxed.gpu.global.b32 [%t0], %r4;", "", 7),
        ("st.global.b32 [%t0], %r4;", "bar.sync 0;", 7),
    ],
)
def test_what_a_thread_passes_on(change: str, barrier: str, value: int, lanes: int) -> None:
    counters, rows = torch.zeros(3, dtype=torch.int32), torch.zeros(2, 64, dtype=torch.int32)
    body = _RELAY.replace("CHANGE", change).replace("BARRIER", barrier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.machine._LANES", lanes)
        run(kernel(body, 2, threads=64), counters, rows, programs=3, threads=64)
    assert torch.equal(rows[1], torch.arange(64, dtype=torch.int32) + value)
