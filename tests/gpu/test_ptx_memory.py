"""Memory and barriers of the PTX machine: what is wrong in a kernel is found and named."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tests.gpu.ptx.errors import (
    DivergentBarrier,
    KernelFault,
    MemoryFault,
    NoProgress,
    Race,
    UninitializedRead,
)
from tests.gpu.ptx.memory import GlobalMemory
from tests.gpu.ptx.snippets import kernel, run

_COPY = """
    mad.wide.u32 %at, %index, 4, %t0;
    ld.global.b32 %r0, [%at];
    mad.wide.u32 %at, %index, 4, %t1;
    st.global.b32 [%at], %r0;
"""


def test_copy() -> None:
    x, y = torch.randn(96), torch.full((96,), torch.nan)
    run(kernel(_COPY, 2), x, y, programs=3)
    assert torch.equal(x, y)


@pytest.mark.parametrize("which", [0, 1])
def test_one_element_too_far(which: int) -> None:
    """The neighbour in memory belongs to another tensor: views of one arena."""
    arena = torch.zeros(256)
    tensors = [arena[:96], arena[96:192]]
    tensors[which] = tensors[which][:95]
    pattern = rf"tensor{which} \(95,\) of 380 bytes, offset 380\n.*{['ld', 'st'][which]}\.global"
    with pytest.raises(MemoryFault, match=pattern):
        run(kernel(_COPY, 2), *tensors, programs=3)


def test_before_the_first_element() -> None:
    body = _COPY.replace("[%at];", "[%at-4];", 1)
    with pytest.raises(MemoryFault, match=r"tensor0 .*offset -4"):
        run(kernel(body, 2), torch.zeros(32), torch.zeros(32))


def test_addresses_of_nobody() -> None:
    body = "mov.u64 %at, 64; ld.global.b32 %r0, [%at];"
    with pytest.raises(MemoryFault, match="belongs to no tensor"):
        run(kernel(body, 1), torch.zeros(4))


def test_gaps_between_elements_are_nobodys() -> None:
    x, y = torch.zeros(64)[::2], torch.zeros(32)
    with pytest.raises(MemoryFault, match="between elements"):
        run(kernel(_COPY, 2), x, y)
    run(kernel(_COPY.replace("4, %t0", "8, %t0"), 2), x, y)


def test_misaligned_vectors() -> None:
    body = "mad.wide.u32 %at, %index, 4, %t0; ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%at];"
    with pytest.raises(MemoryFault, match=r"misaligned access of 16 bytes .*offset 4"):
        run(kernel(body, 1), torch.zeros(64))


def test_what_is_read_only() -> None:
    memory = GlobalMemory()
    address = memory.add_tensor("x", torch.zeros(4), writable=False)
    addresses = np.array([address], np.uint64)
    list(memory.find(addresses, 4, store=False))
    with pytest.raises(MemoryFault, match="read-only"):
        list(memory.find(addresses, 4, store=True))


def test_lanes_that_disagree_about_a_value() -> None:
    body = "st.global.b32 [%t0], %index;"
    with pytest.raises(KernelFault, match="different values to one address"):
        run(kernel(body, 1), torch.zeros(4))
    run(kernel(body.replace("%index", "7"), 1), torch.zeros(4, dtype=torch.int32))
    # NaN is NaN, whatever its sign.
    nan = "and.b32 %r0, %index, 1; shl.b32 %r0, %r0, 31; or.b32 %r0, %r0, 0x7fc00000;"
    run(kernel(nan + body.replace("%index", "%r0"), 1), torch.zeros(4))


# Every lane writes a word of shared memory and reads the one that lies BACK lanes further.
_EXCHANGE = """
    mov.b32 %r0, dynamic;
    shl.b32 %r1, %tid, 2; add.s32 %r1, %r0, %r1;
    st.shared.b32 [%r1], %index;
    bar.sync 0;
    add.s32 %r2, %tid, BACK; rem.u32 %r2, %r2, 128;
    shl.b32 %r2, %r2, 2; add.s32 %r2, %r0, %r2;
    ld.shared.b32 %r3, [%r2];
    mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r3;
"""


def _exchange(body: str, back: int = 40, shared: int = 512) -> torch.Tensor:
    out = torch.zeros(384, dtype=torch.int32)
    text = kernel(body.replace("BACK", str(back)), 1, threads=128)
    run(text, out, programs=3, threads=128, shared=shared)
    return out


def test_exchange_through_shared_memory() -> None:
    expected = torch.arange(384, dtype=torch.int32).view(3, 128).roll(-40, 1).flatten()
    assert torch.equal(_exchange(_EXCHANGE), expected)


def test_missing_barrier() -> None:
    with pytest.raises(
        Race, match=r"read of shared address \d+, which warps \d wrote .*st\.shared"
    ) as e:
        _exchange(_EXCHANGE.replace("bar.sync 0;", ""))
    assert "snippet" in str(e.value)
    assert "ld.shared" in str(e.value)


def test_missing_barrier_before_the_next_write() -> None:
    body = _EXCHANGE + "st.shared.b32 [%r1], %r3;"
    with pytest.raises(Race, match=r"write of shared address \d+, which .*ld\.shared"):
        _exchange(body)
    _exchange(_EXCHANGE + "bar.sync 0; st.shared.b32 [%r1], %r3;")


# Every lane writes a number of global memory and reads the one that lies BACK lanes further.
_THROUGH_GLOBAL = """
    mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %index;
    bar.sync 0;
    add.s32 %r2, %index, BACK; rem.u32 %r2, %r2, 384;
    mad.wide.u32 %at, %r2, 4, %t0; ld.global.b32 %r3, [%at];
    bar.sync 0;
    mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r3;
"""


def test_exchange_through_global_memory() -> None:
    body = _THROUGH_GLOBAL.replace("BACK", "0 ")
    assert torch.equal(_exchange(body), torch.arange(384, dtype=torch.int32))
    # Copies that a warp keeps to itself need no barrier.
    swap = body.replace("add.s32 %r2, %index, 0 ;", "xor.b32 %r2, %index, 1;")
    assert torch.equal(
        _exchange(swap.replace("bar.sync 0;", "")), torch.arange(384, dtype=torch.int32) ^ 1
    )
    swap = swap.replace("%index, 1;", "%index, 64;")
    assert torch.equal(_exchange(swap), torch.arange(384, dtype=torch.int32) ^ 64)


@pytest.mark.parametrize(
    ("barrier", "found"), [(0, "read of tensor0.* wrote"), (1, "write to tensor0.* read")]
)
def test_missing_barrier_for_global_memory(barrier: int, found: str) -> None:
    parts = _THROUGH_GLOBAL.replace("add.s32 %r2, %index, BACK", "xor.b32 %r2, %index, 64")
    before, middle, behind = parts.split("bar.sync 0;")
    body = before + ["", "bar.sync 0;"][barrier] + middle + ["bar.sync 0;", ""][barrier] + behind
    with pytest.raises(Race, match=rf"{found} without a barrier"):
        _exchange(body)


def test_what_another_program_wrote() -> None:
    with pytest.raises(Race, match=r"which program \d wrote"):
        _exchange(_THROUGH_GLOBAL, back=256)


def test_two_warps_write_one_word() -> None:
    body = "mov.b32 %r0, dynamic; and.b32 %r1, %tid, 60; add.s32 %r1, %r0, %r1;"
    with pytest.raises(Race, match="lanes write different values to shared address"):
        _exchange(body + "st.shared.b32 [%r1], %tid;")
    # Copies of one value are none, by one instruction.
    _exchange(body + "st.shared.b32 [%r1], 7;")
    nan = "and.b32 %r2, %tid, 64; shl.b32 %r2, %r2, 25; or.b32 %r2, %r2, 0x7fc00000;"
    _exchange(body + nan + "st.shared.b32 [%r1], %r2;")
    with pytest.raises(Race, match=r"write of shared address \d+, which warps 0, 2 wrote"):
        _exchange(body + "st.shared.b32 [%r1], 7; st.shared.b32 [%r1], 7;")


def test_shared_memory_nobody_wrote() -> None:
    body = _EXCHANGE.replace("st.shared", "@%p0 st.shared")
    body = "setp.ne.u32 %p0, %tid, 77;" + body
    with pytest.raises(UninitializedRead, match=f"shared address {4 * 77} "):
        _exchange(body)


def test_shared_memory_of_the_next_program_is_not_ones_own() -> None:
    with pytest.raises(MemoryFault, match="shared address 508 of 508"):
        _exchange(_EXCHANGE, shared=508)


def test_shared_memory_starts_anew_in_every_program() -> None:
    body = "setp.eq.u32 %p0, %index, %tid;" + _EXCHANGE.replace("st.shared", "@%p0 st.shared")
    with pytest.raises(UninitializedRead):
        _exchange(body)


def test_half_a_warp_at_a_barrier() -> None:
    body = "setp.lt.u32 %p0, %tid, 16; @%p0 bra $skip; bar.sync 0; $skip: mov.b32 %r0, 0;"
    with pytest.raises(DivergentBarrier, match="some threads of a warp"):
        _exchange(body)


def test_barrier_that_some_warps_skip() -> None:
    body = "setp.lt.u32 %p0, %tid, 64; @%p0 bra $skip; bar.sync 0; $skip: mov.b32 %r0, 0;"
    with pytest.raises(DivergentBarrier, match=r"64 threads|192 threads"):
        _exchange(body)


def test_different_barriers() -> None:
    body = """
    setp.lt.u32 %p0, %tid, 64; @%p0 bra $other; bar.sync 0; bra $end;
    $other: bar.sync 0; $end: mov.b32 %r0, 0;
    """
    with pytest.raises(DivergentBarrier, match="different barriers"):
        _exchange(body)


def test_barrier_of_some_warps() -> None:
    """Half of the warps synchronize under a number of their own."""
    body = """
    setp.ge.u32 %p0, %tid, 64; @%p0 bra $join;
    mov.b32 %r0, dynamic; shl.b32 %r1, %tid, 2; add.s32 %r1, %r0, %r1;
    st.shared.b32 [%r1], %tid;
    bar.sync 1, 64;
    xor.b32 %r2, %tid, 32; shl.b32 %r2, %r2, 2; add.s32 %r2, %r0, %r2;
    ld.shared.b32 %r3, [%r2];
    mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r3;
    $join: bar.sync 0;
    """
    out = _exchange(body).view(3, 128)[:, :64]
    assert torch.equal(out, (torch.arange(64, dtype=torch.int32) ^ 32).expand(3, 64))
    with pytest.raises(DivergentBarrier):
        _exchange(body.replace("bar.sync 1, 64", "bar.sync 1, 96"))


def test_reduction_over_a_barrier() -> None:
    body = """
    rem.u32 %r0, %tid, 3; setp.eq.u32 %p0, %r0, 0;
    bar.red.popc.u32 %r1, 0, %p0;
    mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r1;
    """
    assert _exchange(body).unique().tolist() == [43]


def test_waiting_for_a_later_program() -> None:
    body = "$spin: ld.global.b32 %r0, [%t0]; setp.eq.u32 %p0, %r0, 0; @%p0 bra $spin;"
    text = kernel(body, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.gpu.ptx.schedule._RUNS", 100)
        with pytest.raises(NoProgress):
            run(text, torch.zeros(4))


def test_unknown_instructions_are_named_when_reached() -> None:
    body = "@%p0 wgmma.fence.sync.aligned;"
    with pytest.raises(NotImplementedError, match=re.escape("wgmma.fence.sync.aligned")):
        run(kernel("setp.eq.u32 %p0, 0, 0;" + body, 1), torch.zeros(4))
    run(kernel("setp.eq.u32 %p0, 0, 1;" + body, 1), torch.zeros(4))


def test_local_memory() -> None:
    body = """
    .local .align 8 .b8 depot[16];
    mov.u64 %d0, depot; cvta.local.u64 %d1, %d0;
    st.local.b32 [%d0+4], %index; st.b32 [%d1], %tid;
    ld.local.v2.b32 {%r0, %r1}, [%d0]; sub.s32 %r0, %r1, %r0;
    mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r0;
    """
    assert torch.equal(_exchange(body), torch.arange(384, dtype=torch.int32) // 128 * 128)
    with pytest.raises(UninitializedRead, match="local"):
        _exchange(body.replace("[%d0+4], %index", "[%d0+8], %index"))
    with pytest.raises(MemoryFault, match="local address 16 of 16"):
        _exchange(body.replace("[%d0+4], %index", "[%d0+16], %index"))


def test_generic_addresses() -> None:
    body = _EXCHANGE.replace(
        "st.shared.b32 [%r1], %index;",
        "cvt.u64.u32 %d0, %r1; cvta.shared.u64 %d0, %d0; st.b32 [%d0], %index;",
    ).replace("st.global.b32 [%at]", "st.b32 [%at]")
    assert torch.equal(_exchange(body), _exchange(_EXCHANGE))


def test_constant_tables() -> None:
    table = ".const .align 4 .b32 table[4] = {10, 20, 0x1e, -40};\n"
    body = """
    and.b32 %r0, %tid, 3; mul.wide.u32 %d0, %r0, 4; mov.u64 %d1, table; add.s64 %d0, %d0, %d1;
    ld.const.b32 %r1, [%d0]; mad.wide.u32 %at, %index, 4, %t0; st.global.b32 [%at], %r1;
    """
    out = torch.zeros(32, dtype=torch.int32)
    text = kernel(body, 1).replace(".visible", table + ".visible")
    run(text, out)
    assert out.view(8, 4)[3].tolist() == [10, 20, 30, -40]


@pytest.mark.parametrize("kind", ["f32", "u32", "s32", "b32"])
def test_loads_move_bits_whatever_their_type(kind: str) -> None:
    """A type is what nvcc names, Triton a number of bits."""
    x, y = torch.randn(32), torch.zeros(32)
    run(kernel(_COPY.replace("global.b32", f"global.{kind}"), 2), x, y)
    assert torch.equal(x, y)


def test_narrow_loads_are_extended() -> None:
    x = torch.arange(-16, 16, dtype=torch.int8)
    out = torch.zeros(64, dtype=torch.int32)
    body = """
    cvt.u64.u32 %d0, %tid; add.s64 %d0, %d0, %t0;
    ld.global.s8 %r0, [%d0]; ld.global.u8 %r1, [%d0];
    mad.wide.u32 %at, %tid, 8, %t1; st.global.v2.b32 [%at], {%r0, %r1};
    """
    run(kernel(body, 2), x, out)
    assert torch.equal(out.view(-1, 2)[:, 0], x.int())
    assert torch.equal(out.view(-1, 2)[:, 1], x.int() & 255)


_STAGED = """
    mov.b32 %r0, dynamic; shl.b32 %r1, %tid, 4; add.s32 %r1, %r0, %r1;
    mad.wide.u32 %at, %tid, 16, %t0;
    cp.async.cg.shared.global [%r1], [%at], 16, SIZE;
    cp.async.commit_group;
    cp.async.wait_group LEFT;
    bar.sync 0;
    xor.b32 %r2, %tid, 32; shl.b32 %r2, %r2, 4; add.s32 %r2, %r0, %r2;
    ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r2];
    mad.wide.u32 %at, %tid, 16, %t1; st.global.v4.b32 [%at], {%r4, %r5, %r6, %r7};
"""


def _staged(body: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(64, 4), torch.zeros(64, 4)
    run(kernel(body, 2, threads=64), x, y, threads=64, shared=1024)
    return x, y


def test_asynchronous_copies() -> None:
    x, y = _staged(_STAGED.replace("LEFT", "0").replace("SIZE", "16"))
    assert torch.equal(x.roll(32, 0), y)
    _, y = _staged(_STAGED.replace("LEFT", "0").replace("SIZE", "0"))
    assert not y.any()


@pytest.mark.parametrize("wait", ["cp.async.wait_group LEFT;", "cp.async.commit_group;"])
def test_asynchronous_copies_nobody_waited_for(wait: str) -> None:
    body = _STAGED.replace(wait, "").replace("LEFT", "0").replace("SIZE", "16")
    with pytest.raises(UninitializedRead):
        _staged(body)


def test_waiting_for_too_few_copies() -> None:
    with pytest.raises(UninitializedRead):
        _staged(_STAGED.replace("LEFT", "1").replace("SIZE", "16"))


def test_offsets_to_32_bit_addresses_wrap_around() -> None:
    """Nvcc counts down from the first byte, and adds more than it went below."""
    body = """
    mov.u32 %r0, dynamic;
    sub.u32 %r0, %r0, 32;
    mad.lo.u32 %r1, %tid, 4, %r0;
    st.shared.b32 [%r1+32], %tid;
    ld.shared.b32 %r2, [%r1+32];
    mad.wide.u32 %at, %index, 4, %t0;
    st.global.b32 [%at], %r2;
    """
    x = torch.zeros(32, dtype=torch.int32)
    run(kernel(body, 1), x, shared=128)
    assert torch.equal(x, torch.arange(32, dtype=torch.int32))
    below = body.replace("[%r1+32]", "[%r1+28]")
    with pytest.raises(MemoryFault, match="4 bytes at shared address 4294967292 of 128"):
        run(kernel(below, 1), x, shared=128)
