"""Several runs side by side, and runs that differ only in the seed as mean and spread."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from da2s_fast.errors import UserError
from da2s_fast.report import formatting
from da2s_fast.report.curves import Chart
from da2s_fast.report.page import flatten, render, write_page
from da2s_fast.report.plots import Line, plot_lines
from da2s_fast.report.retrained import idle_trainings, is_retraining, retrained_accuracy
from da2s_fast.report.run import RunRecord, load_run
from da2s_fast.report.style import SLOTS
from da2s_fast.wording import counted

_SEED = "seed"
_NO_MATTER = (_SEED, "device")  # settings in which runs of one group may differ
_SLOTS = (4, 1, 6, 7, 2, 5, 8, 9, 10, 3, 11, 0)


@dataclass(frozen=True)
class Metric:
    """A column of the comparison; ``brief`` ones are shown in the terminal, too."""

    key: str
    title: str
    take: Callable[[RunRecord], float | None]
    write: Callable[[float | None], str]
    brief: bool = True


def _accuracy(part: str, name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: getattr(run.accuracies(part), name)


METRICS = (
    Metric("super", "before", _accuracy("search", "super"), formatting.points),
    Metric("cut", "after", _accuracy("search", "cut"), formatting.points),
    Metric("gap", "gap", _accuracy("search", "gap"), formatting.points),
    Metric("gap_bn", "gap, BN", _accuracy("search", "gap_bn"), formatting.points, brief=False),
    Metric("test_super", "test before", _accuracy("test", "super"), formatting.points, brief=False),
    Metric("test_cut", "test after", _accuracy("test", "cut"), formatting.points),
    Metric("test_gap", "test gap", _accuracy("test", "gap"), formatting.points, brief=False),
    Metric("retrained", "test trained", lambda run: run.retrained, formatting.points),
    Metric(
        "mean_max_p", "max p", lambda run: run.last("mean_max_p"), formatting.weight, brief=False
    ),
    Metric("kept_p", "kept p", lambda run: run.last("kept_p"), formatting.weight),
    Metric("kept_beta", "kept β", lambda run: run.last("kept_beta"), formatting.weight),
    Metric("seconds", "time", lambda run: run.seconds, formatting.clock),
    Metric(
        "parameters",
        "params",
        lambda run: run.derived("parameters"),
        formatting.quantity,
        brief=False,
    ),
    Metric(
        "multiply_adds", "mult adds", lambda run: run.derived("multiply_adds"), formatting.quantity
    ),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over the ``number`` runs that have a value."""

    mean: float | None
    std: float | None
    number: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The spread of the values that are there; no std for fewer than two."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(None, None, 0)
        return cls(mean(known), stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Row:
    """One run of the comparison."""

    record: RunRecord
    values: Mapping[str, float | None]

    @property
    def seed(self) -> str:
        """The seed as text, a dash where there is none."""
        return formatting.setting(self.record.config.get(_SEED))


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ in the seed at most."""

    label: str
    rows: tuple[Row, ...]

    @property
    def counted(self) -> str:
        """``3 seeds``, or ``3 runs of 2 seeds`` where a seed was run twice."""
        seeds, runs = len({row.seed for row in self.rows}), len(self.rows)
        text = counted(seeds, "seed")
        return text if seeds == runs else f"{runs} runs of {text}"

    def spread(self, key: str) -> Spread:
        """Mean and standard deviation of one metric."""
        return Spread.of(row.values[key] for row in self.rows)


@dataclass(frozen=True)
class Comparison:
    """Runs by group; ``table()`` for the terminal, ``write_html(path)`` for a page.

    ``notes`` say what of the folders given counts nowhere.
    """

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """All runs, group by group."""
        return tuple(row for group in self.groups for row in group.rows)

    def table(self) -> Table:
        """A rich table: the runs of each group, then their mean and standard deviation."""
        metrics = [metric for metric in self._metrics() if metric.brief]
        table = Table(
            title="Accuracy in % before and after cutting, and retrained; gap in points",
            caption=Text("\n".join(f"{i}: {g.label}" for i, g in enumerate(self.groups, 1))),
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=0,
            pad_edge=False,
        )
        table.add_column("run", overflow="fold")
        table.add_column("", justify="right")
        table.add_column("seed", justify="right")
        for metric in metrics:
            table.add_column(metric.title.replace(" ", "\n"), justify="right", no_wrap=True)
        for number, group in enumerate(self.groups, 1):
            for row in group.rows:
                name = row.record.name + ("" if row.record.finished else " (not finished)")
                values = [metric.write(row.values[metric.key]) for metric in metrics]
                table.add_row(Text(name), str(number), Text(row.seed), *values)
            if len(group.rows) > 1:
                spreads = [(metric.write, group.spread(metric.key)) for metric in metrics]
                means = [write(spread.mean) for write, spread in spreads]
                table.add_row(f"mean of {group.counted}", str(number), "", *means, style="bold")
                table.add_row("±", "", "", *(write(spread.std) for write, spread in spreads))
            table.add_section()
        return table

    def write_html(self, path: str | Path) -> Path:
        """Write the comparison as one HTML file that needs nothing else.

        Raises:
            UserError: the page cannot be written.
        """
        path = Path(path)
        page = render(
            "compare.html.j2",
            groups=self.groups,
            metrics=self._metrics(),
            track=_track,
            charts=self._charts(),
            link=lambda row: _link(row.record, path.parent),
        )
        write_page(path, page)
        return path

    def _metrics(self) -> list[Metric]:
        """The columns in which any run has a value."""
        return [m for m in METRICS if any(row.values[m.key] is not None for row in self.rows)]

    def _charts(self) -> list[Chart]:
        epochs = [epoch.epoch for row in self.rows for epoch in row.record.epochs]
        charts = []
        for title, note, key in (
            ("Discretization gap", "Accuracy that cutting costs, by epoch.", "gap"),
            ("Accuracy after cutting", "On the architecture's images, by epoch.", "accuracy_cut"),
            ("Mean max p", "How discrete the operation weights are, by epoch.", "mean_max_p"),
        ):
            lines = [
                Line(group.label, _by_epoch(row.record, key, max(epochs)), _SLOTS[number % SLOTS])
                for number, group in enumerate(self.groups)
                for row in group.rows
                if row.record.epochs
            ]
            if any(np.isfinite(line.values).any() for line in lines):
                axis = range(1, max(epochs) + 1)
                drawing = plot_lines(axis, lines, label=f"{title}: {note}", percent=True)
                legend = {line.name: line for line in lines}
                charts.append(Chart(title, note, tuple(legend.values()), drawing))
        return charts


def compare_runs(run_dirs: Sequence[str | Path]) -> Comparison:
    """Set runs side by side; a run that is named twice counts once.

    Runs with the same settings but for the seed form a group. Groups are called by their method
    and by the settings in which groups of the same method differ. Trainings from scratch among the
    folders are no runs of their own: their accuracy stands with the search of their genotype.

    Raises:
        UserError: no run of a search is given, or a run folder cannot be read.
    """
    paths = {Path(path).resolve(): Path(path) for path in run_dirs}
    trainings = [path for path in paths.values() if is_retraining(path)]
    searches = [path for path in paths.values() if path not in trainings]
    if not searches:
        raise UserError("there is nothing to compare: give one run folder of a search or more")
    grouped: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for path in searches:
        record = load_run(path)
        record = dataclasses.replace(record, retrained=retrained_accuracy(record, trainings))
        row = Row(record, {metric.key: metric.take(record) for metric in METRICS})
        grouped.setdefault(_identity(record), []).append(row)
    labels = _labels([rows[0].record for rows in grouped.values()])
    groups = [
        Group(label, tuple(rows)) for label, rows in zip(labels, grouped.values(), strict=True)
    ]
    records = [row.record for group in groups for row in group.rows]
    return Comparison(tuple(groups), tuple(idle_trainings(trainings, records)))


def _identity(record: RunRecord) -> tuple[tuple[str, str], ...]:
    settings = flatten(record.config)
    return tuple(sorted((k, repr(v)) for k, v in settings.items() if k not in _NO_MATTER))


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """One name per group of runs, as short as tells them apart."""
    labels = []
    for record in records:
        mine = flatten(record.config)
        differing: dict[str, Any] = {}
        for other in records:
            if other.method != record.method or other is record:
                continue
            theirs = flatten(other.config)
            for key in [*mine, *theirs]:
                if key not in _NO_MATTER and mine.get(key) != theirs.get(key):
                    differing[key] = mine.get(key)
        parts = [f"{key} {formatting.setting(value)}" for key, value in differing.items()]
        labels.append("; ".join([record.method, *parts]))
    return labels


def _track(group: Group) -> Markup:
    """A line from 0 to 100 % with the mean accuracies before and after cutting."""
    before, after = group.spread("super").mean, group.spread("cut").mean
    if before is None or after is None:
        return Markup("")
    ends = {"a": 8 + 134 * after, "b": 8 + 134 * before}
    return Markup(
        '<svg class="track" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 150 18" role="img" '
        'aria-label="accuracy falls from {} to {}"><line x1="8" y1="9" x2="142" y2="9"/>'
        '<line class="gap" x1="{a:.1f}" y1="9" x2="{b:.1f}" y2="9"/>'
        '<circle class="before" cx="{b:.1f}" cy="9" r="5"/>'
        '<circle class="after" cx="{a:.1f}" cy="9" r="3"/></svg>'
    ).format(formatting.percent(before), formatting.percent(after), **ends)


def _link(record: RunRecord, folder: Path) -> str | None:
    """Address of a run's report, relative to the page that links to it."""
    report = record.path / "report.html"
    if not report.exists():
        return None
    return quote(os.path.relpath(report, folder).replace(os.sep, "/"))


def _by_epoch(record: RunRecord, key: str, epochs: int) -> np.ndarray:
    """One measurement at epochs 1 to ``epochs``, NaN where the run has none."""
    values = np.full(epochs, math.nan)
    values[[epoch.epoch - 1 for epoch in record.epochs]] = record.series(key)
    return values
