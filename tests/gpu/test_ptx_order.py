"""Lanes that part meet again where the flow of control says, however blocks are laid out."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.ptx.errors import DivergentBarrier, MemoryFault
from tests.gpu.ptx.order import order_of
from tests.gpu.ptx.parse import parse
from tests.gpu.ptx.snippets import kernel, run

_STORE = "mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r0;"
# Exchanges %r0 with the neighbour, for which all lanes of the warp must be there.
_SWAP = "shfl.sync.bfly.b32 %r0, %r0, 1, 31, -1;"


def _lanes(body: str) -> torch.Tensor:
    out = torch.full((64,), -1, dtype=torch.int32)
    run(kernel(body, 1, threads=64), out, threads=64)
    return out


_MEET_ABOVE = f"""
    and.b32 %r1, %tid, 3; setp.eq.u32 %p0, %r1, 0;
    @%p0 bra $even; bra $odd;
    $even: mov.b32 %r0, 7; bra $meet;
    $meet: {_SWAP} bar.sync 0; {_STORE} ret;
    $odd: mov.b32 %r0, %tid; bra $meet;
"""


def test_branches_meet_above_one_of_them() -> None:
    lane = torch.arange(64, dtype=torch.int32) ^ 1
    assert torch.equal(_lanes(_MEET_ABOVE), torch.where(lane % 4 == 0, 7, lane))


# Lane l adds l + 1 in the inner loop, l % 3 times in the outer one; the last of each waits.
_LOOPS = f"""
    mov.b32 %r0, 0; rem.u32 %r1, %tid, 3; add.s32 %r1, %r1, 1; bra $outer;
    $behind: {_SWAP} bar.sync 0; {_STORE} ret;
    $next: sub.s32 %r1, %r1, 1; setp.eq.u32 %p0, %r1, 0; @%p0 bra $behind;
    $outer: mov.b32 %r2, %tid;
    $inner: add.s32 %r0, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra $next;
    sub.s32 %r2, %r2, 1; bra $inner;
"""


def test_loops_that_lanes_leave_at_different_times() -> None:
    lane = torch.arange(64, dtype=torch.int32) ^ 1
    assert torch.equal(_lanes(_LOOPS), (lane % 3 + 1) * (lane + 1))


# Before every barrier half of the lanes takes a way of its own, which is laid out at the end.
_BACK = f"""
    mov.b32 %r0, 0; mov.b32 %r1, 0; and.b32 %r2, %tid, 1;
    $loop: add.s32 %r1, %r1, 1; and.b32 %r3, %r1, 1; setp.eq.u32 %p0, %r3, %r2; @%p0 bra $far;
    add.s32 %r0, %r0, 100;
    $latch: setp.lt.u32 %p1, %r1, 5; @%p1 bra $loop; bra $end;
    $far: add.s32 %r0, %r0, 1; bar.sync 0; bra $latch;
    $end: {_STORE}
"""


def test_a_barrier_in_a_branch_is_one_of_half_a_warp_each_time() -> None:
    with pytest.raises(DivergentBarrier, match="some threads of a warp"):
        _lanes(_BACK)
    moved = _BACK.replace("bar.sync 0; bra $latch", "bra $latch")
    moved = moved.replace("$latch: ", "$latch: bar.sync 0; ")
    odd = torch.arange(64, dtype=torch.int32) % 2
    assert torch.equal(_lanes(moved), torch.where(odd == 1, 3 + 200, 2 + 300))


def test_lanes_that_go_round_wait_for_the_others() -> None:
    """Half of the lanes jump back at once, the others come by a longer way."""
    body = f"""
        mov.b32 %r0, 0; mov.b32 %r1, 0; and.b32 %r2, %tid, 1; setp.eq.u32 %p0, %r2, 0;
        $loop: {_SWAP} add.s32 %r0, %r0, %tid; add.s32 %r1, %r1, 1;
        setp.ge.u32 %p1, %r1, 4; @%p1 bra $end; @%p0 bra $loop;
        add.s32 %r0, %r0, 10; bra $loop;
        $end: {_STORE}
    """
    value, lane = torch.zeros(64, dtype=torch.int32), torch.arange(64, dtype=torch.int32)
    for step in range(4):
        value = value[lane ^ 1] + lane
        value += 10 * (lane % 2) * (step < 3)
    assert torch.equal(_lanes(body), value)


def test_turns_of_nested_loops() -> None:
    """They follow the nesting of the loops, with one to wait behind each loop."""
    parsed = parse(kernel(_LOOPS, 1))
    order = order_of(parsed)
    names = ("$outer", "$inner", "$next", "$behind")
    outer, inner, after, behind = (order.turns[order.block[parsed.labels[n]]] for n in names)
    waits_inner, waits_outer = sorted(order.back.values())
    assert outer < inner < waits_inner < after < waits_outer < behind


def test_a_parameter_chosen_by_its_address() -> None:
    body = """
        setp.lt.u32 %p0, %tid, 16; mov.b64 %d0, p1; mov.b64 %d1, p2;
        selp.b64 %d2, %d0, %d1, %p0; ld.param.b64 %d3, [%d2];
        mad.wide.u32 %d3, %tid, 4, %d3; ld.global.b32 %r0, [%d3];
    """
    out = torch.zeros(32)
    sources = torch.arange(32.0), -torch.arange(32.0)
    run(kernel(body + _STORE, 3), out, *sources)
    assert torch.equal(out, torch.where(torch.arange(32) < 16, *sources))
    with pytest.raises(MemoryFault, match="8 bytes at 24 of 24 bytes of parameters"):
        run(
            kernel(body.replace("ld.param.b64 %d3, [%d2]", "ld.param.b64 %d3, [%d2+8]"), 3),
            out,
            *sources,
        )
