"""From an instruction to the step that executes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.gpu.ptx import (
    access,
    atomics,
    bits,
    convert,
    copies,
    exchange,
    floating,
    integer,
    matrix,
)
from tests.gpu.ptx.errors import KernelFault
from tests.gpu.ptx.manner import manner_of
from tests.gpu.ptx.operands import At, Step, numbers
from tests.gpu.ptx.parse import Instruction, Name
from tests.gpu.ptx.schedule import Jump, Sleep

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

# Hints.
_NOTHING = ("prefetch", "prefetchu", "griddepcontrol", "pragma")

_DECODERS = {
    **integer.DECODERS,
    **bits.DECODERS,
    **floating.ANY_TYPE,
    **access.DECODERS,
    **atomics.DECODERS,
    **convert.DECODERS,
    **copies.DECODERS,
    **exchange.DECODERS,
    **matrix.DECODERS,
}


def decode(machine: Machine, instruction: Instruction) -> Step:
    """A step, which raises if the instruction is not known: it may never be reached.

    A step takes the lanes that execute it and returns None, or where lanes go.
    """
    try:
        return _decode(machine, instruction)
    except (NotImplementedError, KeyError, ValueError, TypeError) as error:
        text = f"{machine.kernel.name}: {error!r} at {instruction}"

    def unknown(at: At) -> None:
        raise NotImplementedError(text)

    return unknown


def _decode(machine: Machine, instruction: Instruction) -> Step:
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    if name == "bra":
        return _jump(machine, instruction)
    if name in ("ret", "exit"):
        return _done
    if name == "trap":
        return _trap
    if name == "nanosleep":
        return Sleep
    if name in ("membar", "fence"):
        manner = manner_of(instruction)
        return lambda at: machine.races.fence(numbers(at), manner)
    if name in _NOTHING:
        return lambda at: None
    if name == "createpolicy":
        write = machine.registers.writer(instruction.operands[0], "b64")
        return lambda at: write(at, np.uint64(0))
    if name in floating.DECODERS and (kind.startswith(("f", "bf")) or name not in integer.DECODERS):
        return floating.DECODERS[name](machine, instruction)
    if name not in _DECODERS:
        raise NotImplementedError(f"unknown instruction {name}")
    if "cc" in instruction.opcode:
        return integer.carry(machine, instruction)
    return _DECODERS[name](machine, instruction)


def _jump(machine: Machine, instruction: Instruction) -> Step:
    label = instruction.operands[0]
    if not isinstance(label, Name):
        raise NotImplementedError("computed branches")
    target = machine.kernel.labels[label.name]
    return lambda at: Jump(at, target)


def _done(at: At) -> object:
    return Jump(at, None)


def _trap(at: At) -> None:
    raise KernelFault("trap: an assertion of the kernel failed")
