"""separable_conv against eager PyTorch, on the convolutions of the DA2S super-network (C=16)."""

import functools
import itertools

import pytest
import torch

from benchmarks.measure import COPY, copy_of, rows, synchronized
from da2s_fast.ops import separable_conv
from tests.ops.compare import assert_as_accurate
from tests.ops.test_separable_conv import evaluate, make_case

SHAPES = [(64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)]
KERNELS = [(3, 1), (5, 1), (3, 2), (5, 2)]  # size and dilation of the four candidates
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize(("device", "row"), rows(COPY))
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
@pytest.mark.parametrize(
    ("shape", "kernel", "layout"), list(itertools.product(SHAPES, KERNELS, LAYOUTS)), ids=str
)
def bench_separable_conv(  # noqa: PLR0917 - pytest's
    benchmark, shape, kernel, layout, passes, device, row
):
    benchmark.group = f"separable_conv {shape} k, dilation {kernel} {layout} {passes}"
    backward = passes == "forward+backward"
    k, dilation = kernel
    case = make_case(shape, shape[1], k, dilation=dilation)
    x = case.x.to(device=device, memory_format=LAYOUTS[layout])
    case = case._replace(x=x, spatial=case.spatial.to(device), channel=case.channel.to(device))
    if row == COPY:
        # Forward reads x and writes z; backward reads x and z's gradient and writes x's.
        benchmark(synchronized(device, copy_of((2 + 3 * backward) * x.nbytes, device)))
        return
    function = functools.partial(separable_conv, backend=row)
    reference = functools.partial(separable_conv, backend="reference")
    exact = evaluate(reference, case.to(torch.float64))
    assert_as_accurate(evaluate(function, case), evaluate(reference, case), exact)

    leaves = [tensor.requires_grad_(backward) for tensor in case[:3]]
    gradient = torch.randn_like(x)

    def step() -> None:
        output = function(*leaves, dilation=dilation)
        if backward:
            torch.autograd.grad(output, leaves, gradient)

    benchmark(synchronized(device, step))
