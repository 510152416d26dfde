"""How the step's time grows with the batch and with the cells, and how far a large batch goes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks import exactness
from benchmarks.cases import Row, offers_memory, our_rows
from benchmarks.measure import DEVICES
from benchmarks.networks import DA2S, TITLES
from benchmarks.process import Process
from benchmarks.results import Measurement
from benchmarks.rounds import Job, measure_jobs
from benchmarks.tables import RATIO, Table, results_table, seconds, size

LARGE_FACTOR = 8  # times the usual 64
LARGE_LIMIT = 8e9  # bytes
RECOMPUTE = Row("ours, recompute", "ours", "recompute")


@pytest.mark.parametrize("device", DEVICES)
def bench_growth_with_batch(benchmark, options, publish, device):
    row = our_rows(DA2S)[0]
    batches = [max(1, int(options.batch * factor)) for factor in (0.25, 0.5, 1, 2)]
    jobs = [
        Job(DA2S, replace(row, name=f"{row.name}, batch {batch}"), batch, device)
        for batch in batches
    ]
    found = run(benchmark, options, jobs, device)
    publish(growth_table(f"time by batch: {TITLES[DA2S]}, {device}", found, batches))


@pytest.mark.parametrize("device", DEVICES)
def bench_growth_with_cells(benchmark, options, publish, device):
    cells = [3, 6, 9, 12]  # a third of them in each stage
    row, batch = our_rows(DA2S)[0], max(1, options.batch // 4)
    jobs = [
        Job(
            replace(DA2S, cells=count),
            replace(row, name=f"{row.name}, {count} cells"),
            batch,
            device,
        )
        for count in cells
    ]
    found = run(benchmark, options, jobs, device)
    title = f"time by cells: DA2S super-network, C=16, 7 operations, 32x32, batch {batch}, {device}"
    publish(growth_table(title, found, cells))


def run(benchmark, options, jobs: Sequence[Job], device: str) -> Measurement:
    for case in dict.fromkeys(job.case for job in jobs):
        exactness.check(case, [jobs[0].row], device)
    return measure_jobs(benchmark, options, jobs, device)


def growth_table(title: str, found: Measurement, counts: Sequence[int]) -> Table:
    """The usual table, with the time per image or cell and what a line through all times says."""
    table = results_table(title, found)
    times = [result.median for result in found.results]
    column = table.columns.index(RATIO)
    table.columns[column] = "step over count"
    for cells, time, count in zip(table.rows, times, counts, strict=True):
        cells[column] = seconds(time / count)
    slope, start = np.polyfit(counts, times, 1)
    worst = max(
        abs(start + slope * count - time) / time for count, time in zip(counts, times, strict=True)
    )
    table.notes.append(
        f"straight line through the medians: {start:.3g} s + {slope:.3g} s each; the medians are "
        f"off it by at most {worst:.0%}"
    )
    return table


@pytest.mark.parametrize("device", DEVICES)
def bench_large_batch(benchmark, options, publish, device):
    if not offers_memory(DA2S):
        pytest.skip("the library has no memory='recompute' yet")
    benchmark.group = "first step of a large batch"
    exactness.check(DA2S, [RECOMPUTE], device)
    batch = LARGE_FACTOR * options.batch
    process = Process(partial(DA2S.subject, RECOMPUTE, device))
    try:
        first = benchmark.pedantic(process.call, args=("prepare", batch), rounds=1)
    finally:
        process.close()
    fits = first.peak_bytes is not None and first.peak_bytes <= LARGE_LIMIT
    title = f"a large batch: {TITLES[DA2S]}, {device}, {RECOMPUTE.name}"
    table = Table(title, ["batch", "first step", "peak memory", "fits in 8 GB"])
    table.rows.append(
        [str(batch), seconds(first.seconds), size(first.peak_bytes), "yes" if fits else "no"]
    )
    benchmark.extra_info.update({"batch": batch, **vars(first)})
    publish(table)
