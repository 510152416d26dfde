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
# With so many registers two programs fit on a multiprocessor.
_TWO_OF_EIGHT = {80: Parameters(warps=8, registers=128)}

# Few channels are those without tensor shapes, at most 8, in single precision; blocks are of
# channels. Left alone, ptxas aims at a number of warps that fit, and spills what is too much for
# that. Launches that are given registers do not spill with these, and as many warps fit as can; the
# same for all launches of a kernel would make others spill or cost them warps, hence the names.
# The shapes of several networks were tried, in float32 and bfloat16. Only with 8 channels
# `reach_states` still spills 16 bytes on sm_100; more registers would halve the warps that fit.
# From there on it spills with two blocks of which the second is not full, unless it may have more.
TABLE: dict[str, dict[int, Parameters]] = {
    "begin": _FOUR,
    "candidate_sums": _FOUR,
    "convolve": _EIGHT,
    "convolve, second layers of few channels": {80: Parameters(warps=8, registers=80)},
    "convolve, tensor shapes and moments": _TWO_OF_EIGHT,
    "discretization_loss": {80: Parameters(warps=1)},
    "finish": _EIGHT,
    "leave": _FOUR,
    "leave, tensor shapes in float32": {80: Parameters(registers=168), 90: Parameters()},
    "leave, FactorizedReduce in tensor shapes": {
        80: Parameters(registers=168),
        90: Parameters(registers=255),
    },
    "mix": _EIGHT,
    "mixed_sum": _FOUR,
    "mixed_sum, forward": {80: Parameters(), 100: Parameters(registers=255)},
    "mixed_sum, moments across of 32 bits and more": {80: Parameters(registers=96)},
    "prepare": _FOUR,
    "prepare, tensor shapes": {80: Parameters(registers=152), 90: Parameters(registers=144)},
    "reach_inner": _EIGHT,
    "reach_inner, one block in TF32": _TWO_OF_EIGHT,
    "reach_states": _EIGHT,
    "reach_states, few channels": _TWO_OF_EIGHT,
    "reach_states, one block in TF32": _TWO_OF_EIGHT,
    "reach_states, two blocks in float32": {**_TWO_OF_EIGHT, 100: Parameters(warps=8)},
    "separable_conv": _EIGHT,
    "settle": _EIGHT,
    "update_running": {80: Parameters(warps=1)},
}
