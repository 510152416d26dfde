"""torch.compile on every cell of the eager super-networks, with its compile time and a limit."""

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
from benchmarks.tables import results_table, seconds

COMPILED = Row("torch.compile per cell", "eager")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [DA2S, PC_DARTS], ids=["da2s", "pc-darts"])
def bench_torch_compile(benchmark, options, publish, case, device):
    if options.compile_limit <= 0:
        pytest.skip("left out by --compile-limit 0")
    benchmark.group = "interleaved rounds of all rows"
    rows = [EAGER, *our_rows(case)[:1]]
    exactness.check(case, rows, device)
    jobs = [Job(case, row, options.batch, device) for row in rows]
    with tempfile.TemporaryDirectory() as cache:
        build = partial(compiled_subject, case, COMPILED, device, cache)
        compiled = Job(case, COMPILED, options.batch, device, build)
        # Alone at first, so that compiling disturbs no other row.
        process = Process(build)
        try:
            compiled.result.prepared = process.call(
                "prepare", options.batch, limit=options.compile_limit
            )
        except RowFailed as failure:
            compiled.result.failure = str(failure)
        try:
            found = measure(
                benchmark,
                [*jobs, compiled],
                rounds=options.rounds,
                device=device,
                ready={COMPILED.name: process},
            )
        finally:
            process.close()
    title = f"{TITLES[case]}, batch {options.batch}, {device}, beside torch.compile"
    table = results_table(title, found)
    if compiled.result.prepared and compiled.result.seconds:
        spent = compiled.result.prepared.seconds - compiled.result.median
        table.notes.append(f"torch.compile: {seconds(spent)} to compile, before the first step")
    publish(table)
