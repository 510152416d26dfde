"""Small cells on the drivers of the GPU's kernels, for the tests in the interpreter and of PTX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import backward, ends, forward, layout, tiling
from da2s_fast.ops.cell.triton.tables import tables_of
from tests.ops.cell_cases import BOTH, FEW, NAS_BENCH_201, PLANS, Case, as_results
from tests.ops.cell_cases import evaluate as evaluate_reference
from tests.ops.compare import assert_as_accurate

SMALL = {
    "cut": PLANS["cut"],
    "pools": PLANS["no weights"],
    "halves": CellPlan(3, ("skip_connect",), 1, True, ("reduce", "conv")),
    "dense, partial": CellPlan(4, NAS_BENCH_201, 1, True, ("identity",), 2, 1, False),
    "separable": CellPlan(3, FEW, 2, False, ("conv",)),
    "dilated": CellPlan(5, ("dil_conv_5x5", "avg_pool_3x3"), 1, True, ("identity",)),
}
# More channels than a tile has, and enough for tensor shapes.
WIDE = CellPlan(17, ("sep_conv_3x3",), 1, False, BOTH)


@contextmanager
def tiles_of(pixels: int) -> Iterator[None]:
    """Several tiles and chunks, read in several steps, and programs enough, even of tiny images."""
    caches = layout.layout_of, tables_of
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PIXELS", "CHUNK_PIXELS", "IMAGE_CHUNK_PIXELS"):
            patch.setattr(tiling, name, pixels)
        patch.setattr(tiling, "INPUT_CHUNK_NUMBERS", 1)
        patch.setattr(ends, "ENOUGH_PROGRAMS", 1)
        patch.setattr(ends, "_ADDED_CHUNKS", 1)
        for driver, name in ((forward, "_MERGED"), (ends, "_SUMMED")):
            patch.setattr(driver, name, 1)
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


def evaluate(case: Case, memory: str = "save", incoming: Tensor | None = None) -> dict[str, Tensor]:
    """As `evaluate` of the CPU's tests, by the drivers."""
    output, statistics, (inputs, p, g, weights) = gradients_of(case, memory, incoming)
    parts = weights.split([w.numel() for w in case.weights])
    gradients = (*inputs, p, *([] if case.g is None else [g]), *parts)
    return as_results(case, output, statistics, gradients)


def gradients_of(
    case: Case,
    memory: str = "save",
    incoming: Tensor | None = None,
    mask: list[bool] | None = None,
) -> tuple[Tensor, Tensor, tuple[list[Tensor], Tensor, Tensor, Tensor]]:
    """Output, statistics, and the gradients that the mask asks for, as the driver returns them."""
    save, plan = memory == "save", case.plan
    settings = case.frozen, list(plan.code), 1e-3, save
    running = case.running if case.frozen else []
    output, statistics, saved = forward.cell(
        case.inputs, case.p, case.g, case.weights, running, *settings
    )
    if incoming is None:
        torch.manual_seed(1)
        incoming = torch.randn(output.shape, dtype=torch.float64).to(output)
    mask = mask or [True] * len(case.inputs) + [True, case.g is not None, bool(case.weights)]
    gradients = backward.cell_backward(
        incoming, case.inputs, case.p, case.g, case.weights, statistics, saved, *settings, mask
    )
    return output, statistics, gradients


def check(
    case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu", memory: str = "save"
) -> dict[str, Tensor]:
    """Compare with the reference by the rules of `assert_as_accurate`."""
    exact = evaluate_reference(case.to(torch.float64), backend="reference")
    own = case.to(dtype)
    eager = exact if dtype == torch.float64 else evaluate_reference(own, backend="reference")
    found = evaluate(on(case.to(dtype), device), memory)
    found = {name: value.cpu() for name, value in found.items()}
    assert_as_accurate(*(map(together, (found, eager, exact))))
    return found


def on(case: Case, device: str | torch.device) -> Case:
    """The case's tensors on a device."""
    for name in ("inputs", "weights", "running"):
        setattr(case, name, [x.to(device) for x in getattr(case, name)])
    case.p = case.p.to(device)
    case.g = None if case.g is None else case.g.to(device)
    return case


def together(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """dL/dp and dL/dg as one tensor: the rounding errors of two numbers are luck."""
    return {
        **{name: value for name, value in results.items() if name not in ("p", "g")},
        "p and g": torch.cat([results[n].flatten() for n in ("p", "g") if n in results]),
    }
