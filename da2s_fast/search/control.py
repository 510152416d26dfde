"""Control functions: how strongly the discretization loss counts in each epoch (DA2S, sec. 3.3).

The authors' code fixes T = 50 epochs and a warm-up of E = 8 and lets the delayed log exceed 1 in
the last epoch; here T and E are arguments, and the values are clamped to [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ControlName = Literal["const", "linear", "log", "exp", "step", "sigmoid"]


def _quarters(progress: float) -> float:
    """0, 1/3, 2/3 and 1 in the four quarters of [0, 1]."""
    return min(math.floor(4 * progress), 3) / 3


_PLAIN: dict[str, Callable[[int, int], float]] = {
    "const": lambda t, T: 1.0,
    "linear": lambda t, T: (t - 1) / (T - 1),
    "log": lambda t, T: math.log(t) / math.log(T),
    "exp": lambda t, T: 2 ** ((t - T) / 5),
    "step": lambda t, T: _quarters(t / T),
    "sigmoid": lambda t, T: 1 / (1 + math.exp(-(t / 5 - T / 10))),
}

_DELAYED: dict[str, Callable[[int, int, int], float]] = {
    "const": lambda t, T, E: 1.0,
    "linear": lambda t, T, E: (t - E) / (T - E),
    "log": lambda t, T, E: math.log(t - E + 1) / math.log(T - E),
    "exp": lambda t, T, E: 2 ** ((t - T) / 5),
    "step": lambda t, T, E: _quarters((t - E) / (T - E)),
    "sigmoid": lambda t, T, E: 1 / (1 + math.exp(-((t - E) / 4 - (T - E) / 8))),
}


def control(
    name: ControlName, epoch: int, epochs: int, warmup: int = 0, *, clamp: bool = True
) -> float:
    """Value of a control function.

    Args:
        name: the function.
        epoch: t, counted from 1.
        epochs: T.
        warmup: E; from 1 on the delayed form is meant, 0 through the warm-up. Must stay below
            T - 1 (log(T - E) would divide by zero).
        clamp: keep the value in [0, 1].
    """
    if epochs <= 1:
        return 1.0
    if not warmup:
        value = _PLAIN[name](epoch, epochs)
    # The delayed log starts in epoch E itself (with log 1 = 0), the others after it.
    elif epoch < warmup or (epoch == warmup and name != "log"):
        value = 0.0
    else:
        value = _DELAYED[name](epoch, epochs, warmup)
    return min(max(value, 0.0), 1.0) if clamp else value
