"""Programs of one launch that wait for one another: how they may, and what is found wrong."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.ptx.errors import NoProgress
from tests.gpu.ptx.snippets import kernel, run

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
