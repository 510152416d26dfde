"""When a fused operation counts as right; the benchmarks use it too."""

from collections.abc import Mapping

import torch
from torch import Tensor

# Rounding of the result itself and of a few intermediate values, in units in the last place.
_FLOOR = 4


class Mismatch(AssertionError):
    """A result is less accurate than it must be."""


def _unit(dtype: torch.dtype) -> float:
    if not dtype.is_floating_point:
        return 0.0
    return 2.5e-11 if dtype == torch.float64 else torch.finfo(dtype).eps


def assert_as_accurate(
    results: Mapping[str, Tensor], eager: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> None:
    """Demand errors against float64 below twice those of eager PyTorch in the same precision.

    Below a few units in the last place of the largest number of a tensor, errors do not count.
    NaN and infinities must be where eager PyTorch has them. Float64 results are compared with
    float64 of another order of operations: there a relative 1e-10 is allowed.

    Raises:
        Mismatch: naming the tensor and the errors.
    """
    assert results.keys() == eager.keys() == exact.keys()
    for name in eager:
        _assert_as_accurate(name, results[name], eager[name], exact[name])


def _assert_as_accurate(name: str, got: Tensor, eager: Tensor, exact: Tensor) -> None:
    if (got.shape, got.dtype) != (eager.shape, eager.dtype):
        raise Mismatch(
            f"{name} is {got.dtype} {tuple(got.shape)}, eager {eager.dtype} {tuple(eager.shape)}"
        )
    finite = eager.isfinite() & exact.isfinite()
    if not torch.equal(got[~finite].nan_to_num(1, 2, 3), eager[~finite].nan_to_num(1, 2, 3)):
        raise Mismatch(f"{name} has other NaN or infinities than eager")
    if not finite.any():
        return
    truth = exact[finite].double()
    error = (got[finite].double() - truth).abs().max()
    floor = _FLOOR * _unit(eager.dtype) * truth.abs().max()
    allowed = 2 * (eager[finite].double() - truth).abs().max() + floor
    if not error <= allowed:
        raise Mismatch(f"{name} is off by {error:.3g}, allowed are {allowed:.3g}")
