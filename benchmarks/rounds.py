"""Interleaved rounds: every round measures the machine's limits and then each row once.

Whatever disturbs the machine meanwhile disturbs all rows alike, and ratios are taken within a
round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import psutil

from benchmarks import exactness
from benchmarks.cases import Case, Row
from benchmarks.limits import Limits, Rates
from benchmarks.operations import operations
from benchmarks.process import Process, RowFailed
from benchmarks.results import Measurement, Result
from benchmarks.subject import Prepared, Subject
from tests.ops.compare import Mismatch

_ENOUGH_SECONDS, _MOST_ROUNDS = 10, 30
_SHARE_OF_FREE = 0.8


class Job:
    """One row of a table, to be measured.

    Args:
        case: what is computed.
        row: by whom.
        batch: images per step.
        device: "cpu" or "cuda".
        build: returns the subject, in the process that measures it; the case's by default.
        limit: seconds that its first step may take.
    """

    def __init__(
        self,
        case: Case,
        row: Row,
        batch: int,
        device: str = "cpu",
        *,
        build: Callable[[], Any] | None = None,
        limit: float | None = None,
    ) -> None:
        self.case, self.row, self.batch, self.limit = case, row, batch, limit
        self.build = build or partial(_subject, case, row, device)
        self.result = Result(
            row, batch * operations(case, row.wanted), batch * case.least_bytes(row.wanted)
        )


def _subject(case: Case, row: Row, device: str) -> Subject:
    """The case's, run as the row says."""
    subject = case.subject(row, device)
    subject.autocast, subject.graph = row.autocast, row.graph
    return subject


def check_and_measure(  # noqa: PLR0917
    benchmark: Any,
    options: Any,
    case: Case,
    rows: Sequence[Row],
    device: str,
    rivals: Sequence[Job] = (),
) -> Measurement:
    """Compare the rows of one case with eager PyTorch, then measure them.

    Args:
        benchmark: pytest-benchmark's fixture; it times whole rounds and keeps all numbers.
        options: of the command line.
        case: what is computed.
        rows: by whom.
        device: "cpu" or "cuda".
        rivals: more rows, which are no case's own.
    """
    exactness.check(case, rows, device)
    jobs = [*(Job(case, row, options.batch, device) for row in rows), *rivals]
    return measure_jobs(benchmark, options, jobs, device)


def measure_jobs(benchmark: Any, options: Any, jobs: Sequence[Job], device: str) -> Measurement:
    """Measure rows that were compared, see `check_and_measure`."""
    benchmark.group = "interleaved rounds of all rows"
    found = measure(benchmark.pedantic, jobs, rounds=options.rounds, device=device)
    benchmark.extra_info.update(found.as_json())
    return found


def measure(
    repeat: Callable[..., object],
    jobs: Sequence[Job],
    *,
    rounds: int,
    device: str,
) -> Measurement:
    """Prepare all rows, then time them in turn.

    Args:
        repeat: called with a round and `rounds`, runs it so often: pytest-benchmark's `pedantic`.
        jobs: the rows.
        rounds: at least so many; more where they are short.
        device: "cpu" or "cuda".

    Raises:
        Mismatch: rows do not compute the same at full size.
        RowFailed: one of ours could not be measured.
    """
    with ExitStack() as stack:

        def start(build: Callable[[], Any]) -> Process:
            process = Process(build)
            stack.callback(process.close)
            return process

        limits = start(partial(Limits, device))
        running: list[tuple[Process, Job]] = []
        early = device != "cpu"  # side by side, because nothing on a GPU is timed yet
        processes = [start(job.build) if early else None for job in jobs]
        for job, process in zip(jobs, processes, strict=True):
            process = process or start(job.build)
            try:
                job.result.prepared = process.call("prepare", job.batch, limit=job.limit)
                running.append((process, job))
            except RowFailed as failure:
                process.close()
                if job.row.engine == "ours":
                    raise
                job.result.failure = str(failure)
        _check(jobs)
        running = [(process, job) for process, job in running if not job.result.failure]
        rates: list[Rates] = []
        released = _released([job for _, job in running], device)

        def one_round() -> None:
            rates.append(limits.call("measure"))
            # Another row begins each time: none always follows the same one.
            shift = len(rates) % max(len(running), 1)
            for process, job in running[shift:] + running[:shift]:
                job.result.seconds.append(process.call("measure", job.batch))
                if job.row.name in released:
                    process.call("release")

        # Without first steps that compile.
        first = [job.result.prepared for _, job in running if job.limit is None]
        one = sum(prepared.seconds for prepared in first if prepared)
        count = max(rounds, min(_MOST_ROUNDS, int(_ENOUGH_SECONDS / max(one, 0.3 * len(jobs)))))
        repeat(one_round, rounds=count)
    return Measurement([job.result for job in jobs], rates)


def _released(jobs: Sequence[Job], device: str) -> set[str]:
    """Names of the rows that give their memory back after each turn, for all to fit.

    Allocators keep a step's memory for the next one: several gigabytes in each process.
    """
    peaks = {job.row.name: job.result.prepared.peak_bytes for job in jobs if job.result.prepared}
    known = {name: peak for name, peak in peaks.items() if peak is not None and device == "cpu"}
    found = set(peaks) - set(known)
    free = _SHARE_OF_FREE * psutil.virtual_memory().available - max(known.values(), default=0)
    for name, peak in sorted(known.items(), key=lambda item: item[1]):
        free -= peak
        if free < 0:
            found.add(name)
    return found


def _check(jobs: Sequence[Job]) -> None:
    """Rows of one case at one batch must agree; a rival that does not gets no time."""
    groups: dict[tuple[Case, int], list[tuple[Job, Prepared]]] = {}
    for job in jobs:
        # Autocast is as wrong as it is, and nothing to compare with.
        if job.result.prepared and not job.row.autocast:
            groups.setdefault((job.case, job.batch), []).append((job, job.result.prepared))
    for (first, expected), *others in groups.values():
        for job, prepared in others:
            both = {first.row.name: expected, job.row.name: prepared}
            try:
                exactness.check_full_size(both, [first.row, job.row])
            except Mismatch as mismatch:
                if job.row.engine == "ours":
                    raise
                job.result.failure = str(mismatch)
