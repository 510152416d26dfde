"""How instructions access global memory: what they order, and what races they allow."""

from __future__ import annotations

from dataclasses import dataclass

from tests.gpu.ptx.parse import Instruction, Kernel


@dataclass(frozen=True)
class Manner:
    """Of an instruction.

    Attributes:
        atomic: reads and writes at once.
        strong: is no race with other strong accesses: atomics, and ld and st that are relaxed,
            volatile, acquire or release.
        acquires, releases: from other programs and for them.
        coherent: sees what this launch writes.
    """

    atomic: bool
    strong: bool
    acquires: bool
    releases: bool
    coherent: bool


_ORDERS = {"acquire", "release", "acq_rel", "membar", "fence"}
_STRONG = {"relaxed", "acquire", "release", "volatile", "mmio"}


def manner_of(instruction: Instruction) -> Manner:
    """Of ld, st, atom, red, membar and fence."""
    name, parts = instruction.opcode[0], set(instruction.opcode[1:])
    wide = not parts & {"cta", "cluster"}
    if name in ("membar", "fence"):
        wide = "proxy" not in parts and bool(parts & {"gl", "gpu", "sys"})
        acquires, releases = wide and "release" not in parts, wide and "acquire" not in parts
    else:
        acquires = wide and bool(parts & {"acquire", "acq_rel"}) and name != "red"
        releases = wide and bool(parts & {"release", "acq_rel"})
    atomic = name in ("atom", "red")
    return Manner(
        atomic=atomic,
        strong=atomic or bool(parts & _STRONG),
        acquires=acquires,
        releases=releases,
        coherent=name != "ldu" and "nc" not in parts,
    )


def orders(kernel: Kernel) -> bool:
    """Whether a kernel may have a release or an acquire."""
    return not all(_ORDERS.isdisjoint(instruction.opcode) for instruction in kernel.instructions)
