"""Forward and backward of the super-network of NAS-Bench-201."""

import pytest

from benchmarks.cases import all_rows
from benchmarks.measure import DEVICES
from benchmarks.networks import NAS_BENCH_201, TITLES
from benchmarks.rounds import check_and_measure
from benchmarks.tables import results_table


@pytest.mark.parametrize("device", DEVICES)
def bench_nas_bench_201(benchmark, options, publish, device):
    case = NAS_BENCH_201
    found = check_and_measure(benchmark, options, case, all_rows(case), device)
    publish(results_table(f"{TITLES[case]}, batch {options.batch}, {device}", found))
