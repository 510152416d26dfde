"""PTX's types and the numpy types that hold them."""

from __future__ import annotations

import numpy as np

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOAT = {2: np.float16, 4: np.float32, 8: np.float64}

# Pairs of 16-bit floats and of f32 fill one register.
SIZE = {
    "pred": 1,
    "tf32": 4,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "f32x2": 8,
    **{f"f{8 * size}": size for size in FLOAT},
    **{f"{kind}{8 * size}": size for kind in "bus" for size in UNSIGNED},
}


def dtype_of(name: str) -> type[np.generic]:
    """The numpy type of a register's bits read as a PTX type; bf16 and pairs have only bits."""
    if name == "pred":
        return np.bool_
    if name in ("f16", "f32", "f64"):
        return FLOAT[SIZE[name]]
    return SIGNED[SIZE[name]] if name[0] == "s" else UNSIGNED[SIZE[name]]


def differ(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which rows of unsigned integers hold other values.

    Two NaN are one: a GPU gives all that it computes the same bits, where numpy's depend on the
    order of the operands.
    """
    differs = found != rows
    if differs.any() and rows.itemsize in (4, 8):
        kind = FLOAT[rows.itemsize]
        differs &= ~(np.isnan(found.view(kind)) & np.isnan(np.ascontiguousarray(rows).view(kind)))
    return differs.any(axis=1)
