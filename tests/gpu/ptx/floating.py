"""Floating-point instructions.

Approximations (ex2.approx, rsqrt.approx, div.full and so on) are computed to the last bit or nearly
so, which a GPU does not promise: compare with tolerances that allow for its error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu.ptx.integer import Function, apply
from tests.gpu.ptx.operands import At, Step
from tests.gpu.ptx.parse import Instruction, Operand, Vector
from tests.gpu.ptx.rounding import (
    flush,
    fma,
    from_bits,
    item_of,
    odd_sum,
    saturate,
    to_bits,
    to_f32,
)
from tests.gpu.ptx.types import SIZE, UNSIGNED

if TYPE_CHECKING:
    from tests.gpu.ptx.machine import Machine

_MODES = ("rn", "rz", "rm", "rp")


def _bits(kind: str) -> str:
    return f"b{8 * SIZE[kind]}"


def compute(
    machine: Machine,
    function: Function,
    kind: str,
    operands: tuple[Operand, ...],
    kinds: tuple[str, ...] | None = None,
) -> Step:
    """A step that computes with numbers of a format, or operands of formats of their own.

    The first operand is the result.
    """
    result, *given = operands
    kinds = kinds or (kind,) * len(given)
    if all(k in ("f16", "f32", "f64") for k in (kind, *kinds)):
        return apply(machine, function, kind, operands, kinds)
    # Constants of formats that numpy lacks are given by their bits.
    reads = [
        machine.registers.reader(o, k if k in ("f32", "f64") else _bits(k))
        for o, k in zip(given, kinds, strict=True)
    ]
    write = machine.registers.writer(result, _bits(kind))

    def step(at: At) -> None:
        values = (
            read(at) if k in ("f32", "f64") else from_bits(read(at), k)
            for read, k in zip(reads, kinds, strict=True)
        )
        write(at, to_bits(function(*values), kind))

    return step


def _modified(instruction: Instruction, function: Function) -> Function:
    """With .ftz and .sat."""
    ftz, sat = "ftz" in instruction.opcode, "sat" in instruction.opcode
    if not ftz and not sat:
        return function

    def modified(*values: Any) -> Any:
        if ftz:
            values = tuple(flush(np.asarray(v)) for v in values)
        result = function(*values)
        if ftz:
            result = flush(result)
        return saturate(np.asarray(result)) if sat else result

    return modified


def _formats(instruction: Instruction) -> tuple[str, str]:
    """Of the result, and of the operands before the last where they are narrower."""
    first, second = instruction.opcode[-2:]
    return (first, second) if first == "f32" and second in ("f16", "bf16") else (second, second)


def _rounding(instruction: Instruction) -> str:
    return next((part for part in instruction.opcode if part in _MODES), "rn")


def arithmetic(machine: Machine, instruction: Instruction) -> Step:
    """Decode add, sub, mul and fma."""
    name, mode = instruction.opcode[0], _rounding(instruction)
    kind, narrow = _formats(instruction)
    item = item_of(kind)
    result, *operands = instruction.operands
    if "relu" in instruction.opcode or "oob" in instruction.opcode:
        raise NotImplementedError(str(instruction))
    function: Function
    if name in ("fma", "mad"):
        function = lambda x, y, z: fma(x, y, z, item)  # noqa: E731
    else:
        function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    if mode != "rn":
        if item != "f32":
            raise NotImplementedError(str(instruction))
        function = _directed(name, mode)
    elif narrow == "f16" and kind == "f32" and name != "fma":
        plain = function
        function = lambda x, y: plain(np.asarray(x, np.float32), y)  # noqa: E731
    kinds = (*(narrow for _ in operands[1:]), kind)
    return compute(machine, _modified(instruction, function), kind, (result, *operands), kinds)


def _directed(name: str, mode: str) -> Function:
    """f32 arithmetic that rounds in a direction."""

    def function(x: Any, y: Any, z: Any = None) -> Any:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if name == "mul":
            return to_f32(x * y, mode)
        if name in ("add", "sub"):
            exact, zero = odd_sum(x, y if name == "add" else -y), (x, y if name == "add" else -y)
        else:
            exact, zero = odd_sum(x * y, z), (x * y, np.asarray(z, np.float64))
        rounded = to_f32(exact, mode)
        if mode == "rm":
            # Opposite numbers make -0 when rounding down.
            opposite = (rounded == 0) & (zero[0] == -zero[1]) & (zero[0] != 0)
            rounded = np.where(opposite, np.float32(-0.0), rounded)
        return rounded

    return function


def _extreme(largest: bool, nan: bool) -> Function:
    """Minimum or maximum with -0 below +0; NaN loses, or wins."""
    which = (np.maximum, np.minimum) if nan else (np.fmax, np.fmin)
    plain: np.ufunc = which[0 if largest else 1]

    def two(x: Any, y: Any) -> Any:
        result = np.atleast_1d(plain(x, y))
        zero = result == 0
        if zero.any():
            bits = UNSIGNED[result.itemsize]
            x, y = (np.broadcast_to(v, result.shape)[zero] for v in (x, y))
            both = (x == 0) & (y == 0)
            combine = np.bitwise_and if largest else np.bitwise_or
            signed = combine(x.view(bits), y.view(bits)).view(result.dtype)
            result[zero] = np.where(both, signed, result[zero])
        return result

    return lambda first, *rest: _fold(two, first, rest)


def _fold(two: Function, first: Any, rest: tuple[Any, ...]) -> Any:
    for value in rest:
        first = two(first, value)
    return first


def extreme(machine: Machine, instruction: Instruction) -> Step:
    """Decode min and max of two or three numbers."""
    if "xorsign" in instruction.opcode or "abs" in instruction.opcode:
        raise NotImplementedError(str(instruction))
    result, *operands = instruction.operands
    function = _extreme(instruction.opcode[0] == "max", "NaN" in instruction.opcode)
    kind = instruction.opcode[-1]
    return compute(machine, _modified(instruction, function), kind, (result, *operands))


def signs(machine: Machine, instruction: Instruction) -> Step:
    """Decode neg, abs and copysign."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    functions: dict[str, Function] = {
        "neg": np.negative,
        "abs": np.abs,
        "copysign": lambda sign, value: np.copysign(value, sign),
    }
    result, *operands = instruction.operands
    function = _modified(instruction, functions[name])
    if item_of(kind) == "bf16" and name in ("neg", "abs"):
        # Bits, so that NaN keeps its payload.
        mask = 0x80008000 if kind == "bf16x2" else 0x8000
        flip = UNSIGNED[SIZE[kind]](mask)
        bits: Function = (lambda x: x ^ flip) if name == "neg" else (lambda x: x & ~flip)
        return apply(machine, bits, _bits(kind), (result, *operands))
    return compute(machine, function, kind, (result, *operands))


def _via_double(function: Function) -> Function:
    """Computed in double precision, rounded once more to the format of the operand."""

    def compute_wide(*values: Any) -> Any:
        dtype = np.asarray(values[0]).dtype
        return function(*(np.asarray(v, np.float64) for v in values)).astype(dtype)

    return compute_wide


_SPECIAL: dict[str, Function] = {
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "rsqrt": _via_double(lambda x: 1 / np.sqrt(x)),
    "div": np.divide,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": _via_double(np.sin),
    "cos": _via_double(np.cos),
    "tanh": _via_double(np.tanh),
}
_EXACT: dict[str, Function] = {
    "sqrt": np.sqrt,
    "rcp": lambda x: 1 / x,
    "div": np.divide,
}


def special(machine: Machine, instruction: Instruction) -> Step:
    """Decode div, sqrt, rcp, rsqrt, ex2, lg2, sin, cos and tanh."""
    name, kind = instruction.opcode[0], instruction.opcode[-1]
    mode = _rounding(instruction)
    function = _SPECIAL[name]
    if mode != "rn":
        if kind != "f32" or name not in _EXACT:
            raise NotImplementedError(str(instruction))
        # A quotient or root of f32 numbers is never so near another f32 that its double is one.
        exact = _EXACT[name]
        function = lambda *v: to_f32(exact(*(np.asarray(x, np.float64) for x in v)), mode)  # noqa: E731
    result, *operands = instruction.operands
    return compute(machine, _modified(instruction, function), kind, (result, *operands))


_ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def comparison(name: str, floating: bool) -> Function:
    """The function of a comparison; of NaN, only the unordered ones hold."""
    if not floating:
        return _ORDERED[name]
    if name == "num":
        return lambda x, y: ~(np.isnan(x) | np.isnan(y))
    if name == "nan":
        return lambda x, y: np.isnan(x) | np.isnan(y)
    if name.endswith("u"):
        if name == "neu":
            return np.not_equal
        opposite = _ORDERED[_OPPOSITE[name[:-1]]]
        if name == "equ":
            return lambda x, y: np.equal(x, y) | np.isnan(x) | np.isnan(y)
        return lambda x, y: ~opposite(x, y)
    if name == "ne":
        return lambda x, y: np.less(x, y) | np.greater(x, y)
    return _ORDERED[name]


_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparing(machine: Machine, instruction: Instruction) -> Any:
    """The comparison of an instruction as a function of lanes, by its last type."""
    opcode, kind = instruction.opcode, instruction.opcode[-1]
    floating = kind.startswith(("f", "bf"))
    if item_of(kind) != kind:
        raise NotImplementedError(str(instruction))
    compare = comparison(opcode[1], floating)
    if "ftz" in opcode:
        plain = compare
        compare = lambda x, y: plain(flush(np.asarray(x)), flush(np.asarray(y)))  # noqa: E731
    as_bits = "b16" if kind == "bf16" else kind
    x, y = (machine.registers.reader(o, as_bits) for o in instruction.operands[1:3])
    if kind == "bf16":
        return lambda at: compare(from_bits(x(at), kind), from_bits(y(at), kind))
    return lambda at: compare(x(at), y(at))


def set_predicate(machine: Machine, instruction: Instruction) -> Step:
    """Decode setp."""
    holds = _comparing(machine, instruction)
    result = instruction.operands[0]
    results = result.items if isinstance(result, Vector) else (result,)
    writers = [machine.registers.writer(r, "pred") for r in results]
    if len(instruction.operands) == 3 and len(writers) == 1:
        write = writers[0]
        return lambda at: write(at, holds(at))
    combine = _COMBINE.get(instruction.opcode[2], lambda x, _: x)
    given = (
        machine.registers.reader(instruction.operands[3], "pred")
        if len(instruction.operands) == 4
        else lambda at: None
    )

    def step(at: At) -> None:
        found, third = holds(at), given(at)
        for value, write in zip((found, ~found), writers, strict=False):
            write(at, combine(value, third))

    return step


def set_value(machine: Machine, instruction: Instruction) -> Step:
    """Decode set: 1.0 or all ones where the comparison holds."""
    if len(instruction.operands) != 3:
        raise NotImplementedError(str(instruction))
    holds = _comparing(machine, instruction)
    kind = instruction.opcode[-2]
    if kind not in ("f32", "u32", "s32", "b32"):
        raise NotImplementedError(str(instruction))
    write = machine.registers.writer(instruction.operands[0], "b32")
    true = np.uint32(0x3F800000 if kind == "f32" else 0xFFFFFFFF)
    return lambda at: write(at, np.where(holds(at), true, np.uint32(0)))


def test_property(machine: Machine, instruction: Instruction) -> Step:
    """Decode testp."""
    tiny = np.finfo(np.float32 if instruction.opcode[-1] == "f32" else np.float64).tiny
    functions: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
        "subnormal": lambda x: (np.abs(x) < tiny) & (x != 0),
    }
    function = functions[instruction.opcode[1]]
    read = machine.registers.reader(instruction.operands[1], instruction.opcode[-1])
    write = machine.registers.writer(instruction.operands[0], "pred")
    return lambda at: write(at, function(read(at)))


DECODERS = {
    **dict.fromkeys(("add", "sub", "mul", "fma", "mad"), arithmetic),
    **dict.fromkeys(("min", "max"), extreme),
    **dict.fromkeys(("neg", "abs", "copysign"), signs),
    **dict.fromkeys(_SPECIAL, special),
}
ANY_TYPE = {"setp": set_predicate, "set": set_value, "testp": test_property}
