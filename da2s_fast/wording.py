"""Words that depend on numbers."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and its noun: ``1 epoch``, ``3 epochs``."""
    return f"{number} {noun}{'s' * (number != 1)}"
