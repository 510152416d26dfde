"""Colours shared by drawings, plots and pages.

Drawings name CSS variables, so that one inline SVG follows the light or dark scheme of its page;
the values are in templates/style.css.
"""

from __future__ import annotations

from collections.abc import Iterable

SLOTS = 12
"""Number of series colours, the CSS variables --s0 to --s11."""

_USUAL_SLOT = {
    "none": 0,
    "skip_connect": 1,
    "max_pool_3x3": 2,
    "avg_pool_3x3": 3,
    "sep_conv_3x3": 4,
    "nor_conv_3x3": 4,
    "sep_conv_5x5": 5,
    "nor_conv_1x1": 5,
    "dil_conv_3x3": 6,
    "dil_conv_5x5": 7,
}


def operation_slots(operations: Iterable[str]) -> dict[str, int]:
    """A colour slot per operation: the usual one, or for others the first that is free.

    With more operations than slots, colours repeat.
    """
    names = list(dict.fromkeys(operations))
    taken: dict[str, int] = {}
    for name in names:
        slot = _USUAL_SLOT.get(name)
        if slot is not None and slot not in taken.values():
            taken[name] = slot
    for name in names:
        if name not in taken:
            # From the last slot down: away from the colours that mean something.
            free = [slot for slot in reversed(range(SLOTS)) if slot not in taken.values()]
            taken[name] = free[0] if free else len(taken) % SLOTS
    return {name: taken[name] for name in names}


def state_names(inputs: int, nodes: int) -> list[str]:
    """Names of a cell's states: its inputs, then its nodes counted from 0.

    Two inputs are called as in the DARTS paper, the outputs of the two cells before.
    """
    return input_names(inputs) + [str(node) for node in range(nodes)]


def input_names(inputs: int) -> list[str]:
    """Names of a cell's inputs; ``c_{k-2}`` marks a subscript as in TeX."""
    if inputs == 1:
        return ["input"]
    return [f"c_{{k-{inputs - i}}}" for i in range(inputs)]


def split_subscript(name: str) -> tuple[str, str]:
    """``"c_{k-2}"`` as ("c", "k-2"); a name without subscript as (name, "")."""
    if name.endswith("}") and "_{" in name:
        base, _, subscript = name[:-1].partition("_{")
        return base, subscript
    return name, ""


def printable(text: str, limit: int | None = None) -> str:
    """``text`` without the control characters XML forbids, and cut to ``limit`` characters."""
    clean = "".join(c for c in text if c in "\t\n" or _allowed_in_xml(ord(c)))
    if limit is not None and len(clean) > limit:
        return clean[: limit - 1] + "…"
    return clean


def _allowed_in_xml(code: int) -> bool:
    return (
        0x20 <= code < 0x7F or 0xA0 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
    )
