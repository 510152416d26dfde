"""Suggestions for misspelt names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'a' or 'b'?)"`` with the names nearest to ``name``, or ``""``."""
    matches = get_close_matches(name, list(known), n=2, cutoff=0.5)
    if not matches:
        return ""
    return f" (did you mean {' or '.join(map(repr, matches))}?)"
