"""torch.compile on every cell of the eager super-networks, with its compile time and a limit.

If it ends in time, its steps are measured in rounds with eager PyTorch and ours.
"""

import tempfile
from functools import partial

import pytest

from benchmarks import exactness
from benchmarks.cases import EAGER, Row, our_rows
from benchmarks.compiled import compiled_subject
from benchmarks.measure import DEVICES
from benchmarks.networks import DA2S, PC_DARTS, TITLES
from benchmarks.process import Process, RowFailed
from benchmarks.rounds import Job, measure
from benchmarks.tables import Table, results_table, seconds

COMPILED = Row("torch.compile per cell", "eager")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [DA2S, PC_DARTS], ids=["da2s", "pc-darts"])
def bench_torch_compile(benchmark, options, publish, case, device):
    if options.compile_limit <= 0:
        pytest.skip("left out by --compile-limit 0")
    benchmark.group = "torch.compile, up to the end of the first step or to the limit"
    rows = [EAGER, *our_rows(case)]
    exactness.check(case, rows, device)
    title = f"torch.compile: {TITLES[case]}, batch {options.batch}, {device}"
    with tempfile.TemporaryDirectory() as cache:
        build = partial(compiled_subject, case, COMPILED, device, cache)
        process = Process(build)  # alone at first, so that compiling disturbs no other row
        try:
            table = compile_and_measure(benchmark, options, title, case, rows, device, process)
        finally:
            process.close()
    publish(table)


def compile_and_measure(benchmark, options, title, case, rows, device, process) -> Table:  # noqa: PLR0917
    arguments = ("prepare", options.batch)
    limit = {"limit": options.compile_limit}
    try:
        first = benchmark.pedantic(process.call, args=arguments, kwargs=limit, rounds=1)
    except RowFailed as failure:
        benchmark.extra_info["failure"] = str(failure)
        return Table(title, ["", "first step"], [[COMPILED.name, str(failure)]])
    jobs = [Job(case, row, options.batch, device) for row in [*rows, COMPILED]]
    jobs[-1].result.prepared = first
    found = measure(
        repeat, jobs, rounds=options.rounds, device=device, ready={COMPILED.name: process}
    )
    benchmark.extra_info.update(found.as_json())
    table = results_table(title, found)
    spent = first.seconds - jobs[-1].result.median
    table.notes.append(f"{COMPILED.name}: {seconds(spent)} to compile, before the first step")
    return table


def repeat(function, rounds: int) -> None:
    for _ in range(rounds):
        function()
