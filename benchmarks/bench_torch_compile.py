"""torch.compile on every cell of the eager super-networks, with its compile time and a limit.

A network of three cells is compiled in the time that takes too long for eight.
"""

import pytest

from benchmarks.cases import EAGER, our_rows
from benchmarks.compiled import BY_CELL, compiled_jobs, results_and_compile_times
from benchmarks.measure import DEVICES
from benchmarks.networks import DA2S, PC_DARTS, SHORT, TITLES
from benchmarks.rounds import check_and_measure


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [SHORT, DA2S, PC_DARTS], ids=["short", "da2s", "pc-darts"])
def bench_torch_compile(benchmark, options, publish, case, device):
    if options.compile_limit <= 0:
        pytest.skip("left out by --compile-limit 0")
    rows = [EAGER, *our_rows(case)]
    with compiled_jobs(options, case, BY_CELL, device) as rivals:
        found = check_and_measure(benchmark, options, case, rows, device, rivals)
    title = f"torch.compile: {TITLES[case]}"
    publish(results_and_compile_times(f"{title}, batch {options.batch}, {device}", found))
