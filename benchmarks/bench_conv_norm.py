"""conv_norm against eager PyTorch: the stem of the super-networks and NAS-Bench-201's blocks."""

import functools
import itertools

import pytest
import torch

from benchmarks.measure import COPY, copy_of, rows, synchronized
from da2s_fast.ops import conv_norm
from tests.ops.compare import assert_as_accurate
from tests.ops.test_conv_norm import evaluate, make_case

# Input, output channels, stride, ReLU. Images need no gradient: the first layer has none to give.
STEM = ((64, 3, 32, 32), 48, 1, False)
BLOCKS = [
    ((64, 16, 32, 32), 32, 2, True),
    ((64, 32, 16, 16), 32, 1, True),
    ((64, 32, 16, 16), 64, 2, True),
    ((64, 64, 8, 8), 64, 1, True),
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize(("device", "row"), [row for row in rows(COPY) if row[1] != "triton"])
@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
@pytest.mark.parametrize(
    ("subject", "layout"), list(itertools.product([STEM, *BLOCKS], LAYOUTS)), ids=str
)
def bench_conv_norm(  # noqa: PLR0917 - pytest's
    benchmark, subject, layout, passes, device, row
):
    shape, out, stride, relu = subject
    benchmark.group = f"conv_norm {shape} to {out}, stride {stride} {layout} {passes}"
    backward = passes == "forward+backward"
    case = make_case(shape, out, 3, stride, relu)
    tensors = [tensor.to(device) for tensor in case[:4]]
    tensors[0] = tensors[0].contiguous(memory_format=LAYOUTS[layout])
    case = case._replace(**dict(zip(case._fields, tensors, strict=False)))
    if row == COPY:
        # Forward reads x and writes the output; backward reads x and the output's gradient and,
        # but for the images, writes x's.
        written = conv_norm(*case[:4], **case.options())[0].nbytes
        read = (1 + backward * (1 if subject == STEM else 2)) * case.x.nbytes
        benchmark(synchronized(device, copy_of(read + (1 + backward) * written, device)))
        return
    function = functools.partial(conv_norm, backend=row)
    reference = functools.partial(conv_norm, backend="reference")
    exact = evaluate(reference, case.to(torch.float64))
    assert_as_accurate(evaluate(function, case), evaluate(reference, case), exact)

    leaves = [tensor.requires_grad_(backward) for tensor in case[:4]]
    if subject == STEM:
        leaves[0] = case.x.detach()
    learned = [leaf for leaf in leaves if leaf.requires_grad]
    gradient = torch.randn_like(function(*leaves, **case.options())[0])

    def step() -> None:
        output, _ = function(*leaves, **case.options())
        if backward:
            torch.autograd.grad(output, learned, gradient)

    benchmark(synchronized(device, step))
