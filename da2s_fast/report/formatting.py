"""How numbers are written in reports. None, a value that was not taken, is a dash."""

from __future__ import annotations

from typing import Any

MISSING = "\N{EN DASH}"


def percent(value: float | None) -> str:
    """A fraction as a percentage: 0.9312 is ``93.1 %``."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of two fractions in percentage points: 0.021 is ``2.1``."""
    if value is None:
        return MISSING
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "\N{MINUS SIGN}")


def decimal(value: float | None) -> str:
    """Three significant digits or more: ``0.987``, ``12.3``, ``1234``."""
    if value is None:
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:#.3g}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.0f}"


def weight(value: float | None) -> str:
    """An operation or edge weight: ``0.970``."""
    return MISSING if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """``48.2 s``, ``3 min 12 s`` or ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def clock(seconds: float | None) -> str:
    """A short duration: ``0:48``, ``3:12`` or ``2:05:00``."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def quantity(value: float | None) -> str:
    """A count with its magnitude: ``812``, ``34.1 k``, ``3.36 M``."""
    if value is None:
        return MISSING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:#.3g} {letter}".replace(". ", " ")
    return f"{value:.0f}"


def setting(value: Any) -> str:
    """A value of config.yaml: ``1, 2, 3, 3`` for a list, ``yes`` for true, six digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
