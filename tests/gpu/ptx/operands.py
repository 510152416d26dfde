"""Registers of all lanes, and closures that read and write operands.

`at` selects lanes: a slice where they are contiguous, else ascending lane numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from tests.gpu.ptx.parse import Discarded, Immediate, Kernel, Name, Operand, Register, Special
from tests.gpu.ptx.types import FLOAT, SIZE, UNSIGNED, dtype_of

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
At: TypeAlias = "slice | Array"
Read: TypeAlias = Callable[[At], Any]
Write: TypeAlias = Callable[[At, Any], None]
Step: TypeAlias = Callable[[At], Any]


def select(at: At, chosen: Array) -> At:
    """The lanes of `at` for which `chosen` holds."""
    if isinstance(at, slice):
        lanes = np.flatnonzero(chosen)
        lanes += at.start
    else:
        lanes = at[chosen]
    return contiguous(lanes)


def contiguous(lanes: Array) -> At:
    """Ascending lane numbers, as a slice where there is no gap."""
    if lanes.size and lanes[-1] - lanes[0] + 1 == lanes.size:
        return slice(int(lanes[0]), int(lanes[-1]) + 1)
    return lanes


def numbers(at: At) -> Array:
    """Lane numbers."""
    return np.arange(at.start, at.stop) if isinstance(at, slice) else at


def count(at: At) -> int:
    """How many lanes."""
    return at.stop - at.start if isinstance(at, slice) else at.size


def constant(operand: Immediate, kind: str) -> Any:
    """A numpy scalar of a PTX type."""
    size = SIZE[kind]
    if kind == "pred":
        return np.bool_(operand.bits)
    bits = operand.bits
    if operand.type != "int" and kind in ("f32", "f64"):
        given = UNSIGNED[4 if operand.type == "f32" else 8](bits).view(FLOAT[SIZE[operand.type]])
        return FLOAT[size](given)
    if operand.type == "int" and kind in ("f32", "f64"):
        return FLOAT[size](bits)
    return UNSIGNED[size](bits & ((1 << 8 * size) - 1)).view(dtype_of(kind))


class Registers:
    """One array per register, of unsigned integers of its size (bool for predicates).

    Args:
        lanes: that are executed together.
        special: predefined registers by name, arrays of one number per lane or numbers.
        addresses: of variables.
    """

    def __init__(
        self, kernel: Kernel, lanes: int, special: dict[str, Any], addresses: dict[str, int]
    ) -> None:
        self.kernel = kernel
        self.lanes = lanes
        self.special = special
        self.addresses = addresses
        self.arrays: dict[str, Array] = {}

    def array(self, name: str) -> Array:
        """All lanes of a register."""
        found = self.arrays.get(name)
        if found is None:
            kind = self.kernel.registers[name]
            dtype = np.bool_ if kind == "pred" else UNSIGNED[SIZE[kind]]
            found = self.arrays[name] = np.zeros(self.lanes, dtype)
        return found

    def reader(self, operand: Operand, kind: str) -> Read:
        """Read as a PTX type: arrays or scalars; bf16 and pairs come as bits."""
        dtype = dtype_of(kind)
        if isinstance(operand, Register):
            array = self.array(operand.name)
            if operand.negated:
                return lambda at: ~array[at]
            if kind == "pred" and array.dtype != np.bool_:
                raise TypeError(f"{operand.name} is no predicate")
            if array.itemsize == SIZE[kind]:
                return array.view(dtype).__getitem__
            if array.itemsize < SIZE[kind]:
                raise TypeError(f"{operand.name} is narrower than .{kind}")
            narrow = UNSIGNED[SIZE[kind]]
            return lambda at: array[at].astype(narrow).view(dtype)
        if isinstance(operand, Immediate):
            value = constant(operand, kind)
            return lambda at: value
        if isinstance(operand, Name):
            if operand.name not in self.addresses:
                raise NotImplementedError(f"unknown name {operand.name}")
            address = UNSIGNED[SIZE[kind]](self.addresses[operand.name] + operand.offset)
            return lambda at: address
        if isinstance(operand, Special):
            if operand.name not in self.special:
                raise NotImplementedError(f"special register {operand.name}")
            held = self.special[operand.name]
            if isinstance(held, np.ndarray):
                if held.itemsize == SIZE[kind]:
                    return held.view(dtype).__getitem__
                return lambda at: held[at].astype(dtype)
            number = dtype(held)
            return lambda at: number
        raise NotImplementedError(f"operand {operand} as .{kind}")

    def writer(self, operand: Operand, kind: str) -> Write:
        """Write values of a PTX type, widened to the register by sign or zeros."""
        if isinstance(operand, Discarded):
            return lambda at, value: None
        if not isinstance(operand, Register):
            raise NotImplementedError(f"result {operand}")
        array = self.array(operand.name)
        if array.itemsize == SIZE[kind]:
            return array.view(dtype_of(kind)).__setitem__
        if array.itemsize < SIZE[kind]:
            raise TypeError(f"{operand.name} is narrower than .{kind}")
        if kind[0] == "s":
            wide = dtype_of(f"s{8 * array.itemsize}")
            return array.view(wide).__setitem__
        bits = UNSIGNED[SIZE[kind]]

        def write(at: At, value: Any) -> None:
            array[at] = np.asarray(value, dtype_of(kind)).view(bits)

        return write

    def target(self, operand: Operand, kind: str) -> Array | None:
        """The array of a result where its size is the type's, to be written by `out=`."""
        if isinstance(operand, Register):
            array = self.array(operand.name)
            if array.itemsize == SIZE[kind]:
                return array.view(dtype_of(kind))
        return None
