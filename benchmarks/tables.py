"""Tables of results, for the terminal and as Markdown."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.results import Measurement, Result
from da2s_fast import __version__
from da2s_fast.backends import build_info


@dataclass
class Table:
    """A title, rows of text, and notes below."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """To the terminal."""
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(f"\n[bold]{self.title}[/bold]")
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)

    def markdown(self) -> str:
        """As a section of a file."""
        lines = [f"### {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes), ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def console() -> Console:
    """Wide enough for every table where the output is no terminal."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=140)


RATIO = "speed-up"
COLUMNS = ["", "step", "fastest to slowest", RATIO, "of the limit", "peak memory"]


def results_table(title: str, measurement: Measurement) -> Table:
    """One line per row: time, ratio to the first row, share of the machine's limit, memory."""
    table = Table(title, list(COLUMNS))
    base = next((result for result in measurement.results if result.seconds), None)
    for result in measurement.results:
        table.rows.append(_cells(measurement, result, base))
    table.notes.append(limit_note(measurement))
    for result in measurement.results:
        if result.failure:
            table.notes.append(f"{result.row.name}: {result.failure}")
    table.notes += operator_notes(measurement)
    return table


def _cells(measurement: Measurement, result: Result, base: Result | None) -> list[str]:
    if not result.seconds or base is None:
        return [result.row.name, "none", "", "", "", ""]
    return [
        result.row.name,
        seconds(result.median),
        f"{seconds(min(result.seconds))} to {seconds(max(result.seconds))}",
        f"{result.speedup(base):.2f}x",
        f"{measurement.share(result):.0%}",
        size(result.prepared.peak_bytes if result.prepared else None),
    ]


def limit_note(measurement: Measurement) -> str:
    """What the limit is made of, with the first row's operations and bytes."""
    first, rate = measurement.results[0], measurement.rate
    worst = min(r.operations for r in measurement.rates) / 1e9
    return (
        f"limit of the first row: {first.operations / 1e9:.3g} GFLOP at "
        f"{rate.operations / 1e9:,.0f} GFLOP/s (sgemm; slowest round {worst:,.0f}) + "
        f"{first.least_bytes / 1e9:.3g} GB at {rate.bytes / 1e9:,.1f} GB/s (copy) = "
        f"{seconds(rate.seconds(first.operations, first.least_bytes))}; "
        f"{len(measurement.rates)} rounds"
    )


def operator_notes(measurement: Measurement) -> list[str]:
    """Which fused operators ours has called, so that a fallback shows."""
    used: dict[tuple[str, ...], list[str]] = {}
    for result in measurement.results:
        if result.row.engine == "ours" and result.prepared:
            used.setdefault(result.prepared.operators, []).append(result.row.name)
    return [
        f"fused operators called{by}: {', '.join(operators) or 'none'}"
        for operators, names in used.items()
        for by in [f" by {'; '.join(names)}" if len(used) > 1 else ""]
    ]


def machine() -> str:
    """What the numbers were measured on."""
    info = build_info()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}; "
        f"da2s_fast {__version__} ({info.get('instruction_set', 'not compiled')}), "
        f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line[:10] == "model name"]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def seconds(value: float) -> str:
    """A duration with three digits."""
    if value >= 7200:
        return f"{value / 3600:.1f} h"
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def size(value: int | None) -> str:
    """Bytes as gigabytes or megabytes of a thousand each."""
    if value is None:
        return "unknown"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
