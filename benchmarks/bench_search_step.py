"""Where the time of a complete `da2s search` step goes, data and optimizers included."""

from functools import partial
from statistics import median

import pytest

from benchmarks import exactness
from benchmarks.cases import our_rows
from benchmarks.measure import DEVICES
from benchmarks.networks import DA2S, TITLES
from benchmarks.process import Process
from benchmarks.search_step import PARTS, STEPS, SearchStep
from benchmarks.tables import Table, seconds


@pytest.mark.parametrize("device", DEVICES)
def bench_search_step(benchmark, options, publish, device):
    benchmark.group = "complete steps of a search"
    exactness.check(DA2S, our_rows(DA2S)[:1], device)
    process = Process(partial(SearchStep, device, options.batch))
    found: list[dict[str, dict[str, float]]] = []
    try:
        operators = process.call("operators")
        benchmark.pedantic(
            lambda: found.append(process.call("measure")), rounds=max(options.rounds, 1)
        )
    finally:
        process.close()
    title = f"complete step of da2s search: {TITLES[DA2S]}, batch {options.batch}, {device}"
    table = parts_table(title, found)
    table.notes.append(f"fused operators called: {', '.join(operators) or 'none'}")
    publish(table)
    benchmark.extra_info["rounds"] = found


def parts_table(title: str, found: list[dict[str, dict[str, float]]]) -> Table:
    """Medians of the rounds: seconds of every part and its share of both steps together."""
    medians = {
        (step, part): median(one[step].get(part, 0.0) for one in found)
        for step in STEPS
        for part in PARTS
    }
    whole = sum(medians.values())
    table = Table(title, ["part", "architecture step", "weight step", "share of both"])
    for part in PARTS:
        times = [medians[step, part] for step in STEPS]
        table.rows.append([part, *map(_time, times), f"{sum(times) / whole:.1%}"])
    sums = [sum(medians[step, part] for part in PARTS) for step in STEPS]
    table.rows.append(["all", *map(seconds, sums), "100%"])
    table.notes.append(
        f"medians of {len(found)} rounds; the search draws both batches in front of both steps"
    )
    return table


def _time(value: float) -> str:
    return seconds(value) if value else ""
