"""A training step of the derived network of DARTS's published genotype: forward and backward."""

import pytest

from benchmarks.cases import all_rows
from benchmarks.compiled import WHOLE, compiled_jobs, results_and_compile_times
from benchmarks.measure import DEVICES
from benchmarks.modules import Derived
from benchmarks.rounds import check_and_measure


@pytest.mark.parametrize("device", DEVICES)
def bench_derived_network(benchmark, options, publish, device):
    case = Derived()
    with compiled_jobs(options, case, WHOLE, device) as rivals:
        found = check_and_measure(benchmark, options, case, all_rows(case), device, rivals)
    title = f"derived network (DARTS V2), C={case.channels}, L={case.cells}, 32x32"
    publish(results_and_compile_times(f"{title}, batch {options.batch}, {device}", found))
