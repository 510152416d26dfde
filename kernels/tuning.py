"""How kernels are launched, by kernel and compute capability.

Chosen by what ptxas says of registers; other choices were not tried on a GPU. An entry holds from
its architecture on, until the next; 80, the oldest that is supported, must be there.
"""

from __future__ import annotations

from typing import NamedTuple


class Parameters(NamedTuple):
    """How a kernel is launched.

    Attributes:
        warps: of a program at most; no thread is without numbers of a tile.
        stages: of software pipelining.
        registers: of a thread at most; None leaves that to ptxas.
    """

    warps: int = 4
    stages: int = 1
    registers: int | None = None


_FOUR, _EIGHT = {80: Parameters()}, {80: Parameters(warps=8)}

# Few channels are those without tensor shapes, at most 8, in single precision. There, and where
# `finish` adds up several blocks, ptxas spills rather than take the registers that are given here.
# More for `reach_states` on sm_90, which still spills 8 bytes, would halve the warps that fit.
TABLE: dict[str, dict[int, Parameters]] = {
    "begin": _FOUR,
    "candidate_sums": _FOUR,
    "convolve": _EIGHT,
    "convolve, second layers of few channels": {80: Parameters(warps=8, registers=80)},
    "discretization_loss": {80: Parameters(warps=1)},
    "finish": _EIGHT,
    "finish, several blocks": {80: Parameters(registers=64)},
    "leave": _FOUR,
    "mix": _EIGHT,
    "mixed_sum": _FOUR,
    "prepare": _FOUR,
    "reach_inner": _EIGHT,
    "reach_states": _EIGHT,
    "reach_states, few channels": {80: Parameters(warps=8, registers=128)},
    "separable_conv": _EIGHT,
    "settle": _FOUR,
    "update_running": {80: Parameters(warps=1)},
}
