"""One MixedOp as a drop-in for DARTS-family code: output, gradients of input, p and weights."""

import pytest

from benchmarks.cases import all_rows
from benchmarks.compiled import WHOLE, compiled_jobs, results_and_compile_times
from benchmarks.measure import DEVICES
from benchmarks.modules import Edge
from benchmarks.rounds import check_and_measure

SIZES = {16: 32, 32: 16, 64: 8}  # channels and image size of the three stages


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", SIZES)
def bench_mixed_op(benchmark, options, publish, channels, stride, device):  # noqa: PLR0917
    size = SIZES[channels]
    case = Edge(channels, stride, size)
    with compiled_jobs(options, case, WHOLE, device) as rivals:
        found = check_and_measure(benchmark, options, case, all_rows(case), device, rivals)
    title = f"MixedOp, 8 operations, C={channels}, {size}x{size}, stride {stride}"
    publish(results_and_compile_times(f"{title}, batch {options.batch}, {device}", found))
