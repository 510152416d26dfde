"""mixed_sum against eager PyTorch, on the nodes of the DA2S super-network (C=16, batch 64)."""

import functools
import itertools

import pytest
import torch

from benchmarks.measure import COPY, copy_of, rows, synchronized
from da2s_fast.ops import mixed_sum
from tests.ops.compare import assert_as_accurate
from tests.ops.mixed_sum_cases import BATCH, NONE, Case, evaluate, make_case

KINDS = [BATCH, BATCH, NONE, BATCH, BATCH, BATCH, BATCH]  # the seven operations of an edge
SHAPES = [(64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (64, 4, 32, 32)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def prepare(shape: tuple[int, ...], layout: str, device: str) -> Case:
    case = make_case(shape, KINDS)
    move = functools.partial(torch.Tensor.to, device=device, memory_format=LAYOUTS[layout])
    return Case(
        [move(y) for y in case.inputs],
        case.weights.to(device),
        [norm and norm.to(device) for norm in case.norms],
        move(case.grad),
    )


@pytest.mark.parametrize(("device", "row"), rows(COPY))
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
@pytest.mark.parametrize(("shape", "layout"), list(itertools.product(SHAPES, LAYOUTS)), ids=str)
def bench_mixed_sum(benchmark, shape, layout, passes, device, row):  # noqa: PLR0917 - pytest's
    benchmark.group = f"mixed_sum {shape} {layout} {passes}"
    backward = passes == "forward+backward"
    case = prepare(shape, layout, device)
    size = case.grad.nbytes
    # Forward reads the inputs and writes the sum; backward reads its gradient and the inputs and
    # writes theirs.
    forward, backward_bytes = (len(KINDS) + 1) * size, (2 * len(KINDS) + 1) * size
    if row == COPY:
        benchmark(synchronized(device, copy_of(forward + backward * backward_bytes, device)))
        return
    function = functools.partial(mixed_sum, backend=row)
    reference = functools.partial(mixed_sum, backend="reference")
    exact = evaluate(reference, case.to(torch.float64))
    assert_as_accurate(evaluate(function, case), evaluate(reference, case), exact)

    inputs = [y.requires_grad_(backward) for y in case.inputs]
    weights = case.weights.requires_grad_(backward)

    def step() -> None:
        output = function(inputs, weights, case.norms)
        if backward:
            torch.autograd.grad(output, [*inputs, weights], case.grad)

    benchmark(synchronized(device, step))
