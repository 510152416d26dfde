"""The report page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from da2s_fast.errors import UserError
from da2s_fast.nn.topology import CellTopology
from da2s_fast.report import formatting
from da2s_fast.report.cells import cell_edges, draw_cell
from da2s_fast.report.curves import edge_curves, operation_curves, overview
from da2s_fast.report.run import RunRecord, load_run
from da2s_fast.report.style import operation_slots, split_subscript
from da2s_fast.report.verdict import judge
from da2s_fast.spaces import Genotype

_COLUMNS = (
    ("train loss", "train_loss", formatting.decimal),
    ("train accuracy", "train_accuracy", formatting.percent),
    ("architecture loss", "arch_loss", formatting.decimal),
    ("before", "accuracy_super", formatting.percent),
    ("after", "accuracy_cut", formatting.percent),
    ("gap", "gap", formatting.points),
    ("before, BN", "accuracy_super_bn", formatting.percent),
    ("after, BN", "accuracy_cut_bn", formatting.percent),
    ("max p", "mean_max_p", formatting.decimal),
    ("kept p", "kept_p", formatting.decimal),
    ("kept β", "kept_beta", formatting.decimal),
    ("skips", "skip_fraction", formatting.percent),
    ("learning rate", "lr", formatting.decimal),
    ("time", "seconds", formatting.duration),
)


def write_report(run_dir: str | Path) -> Path:
    """Write report.html into a run folder and return its path.

    A run that has not finished gets a report on the epochs so far.

    Raises:
        UserError: the run folder cannot be read, or the page cannot be written.
    """
    record = load_run(run_dir)
    path = record.path / "report.html"
    write_page(path, render("report.html.j2", **_content(record)))
    return path


def render(template: str, **content: Any) -> str:
    """Fill in a template of this package; all texts are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("da2s_fast.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "points", "decimal", "duration", "quantity", "setting"):
        environment.filters[name] = getattr(formatting, name)
    environment.filters["state"] = _state
    environment.filters["kind_title"] = _kind_title
    style = Markup(environment.loader.get_source(environment, "style.css")[0])  # type: ignore[union-attr]
    return environment.get_template(template).render(style=style, **content)


def write_page(path: Path, text: str) -> None:
    """Write a page so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A hostile name may hold half a surrogate pair, which UTF-8 cannot write.
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class _Cell:
    kind: str
    drawing: Markup
    upright: Markup


def _content(record: RunRecord) -> dict[str, Any]:
    genotype, problem = _parse(record.genotype)
    cells = {} if genotype is None else _cells(genotype)
    used = [edge.operation for cell in cells.values() for edge in cell.edges]
    slots = operation_slots([*record.operations, *used])
    return {
        "run": record,
        "verdict": judge(record),
        "measured": [("architecture images", "search"), ("test images", "test")],
        "cells": [_drawn(kind, cell, slots) for kind, cell in cells.items()],
        "genotype_problem": problem,
        "unchanged_since": _unchanged_since(record),
        "commands": _commands(record),
        "overview": overview(record),
        "operation_curves": operation_curves(record, cells, slots),
        "edge_curves": edge_curves(record),
        "settings": flatten(record.config),
        "columns": _COLUMNS,
    }


def _parse(text: str | None) -> tuple[Genotype | None, str | None]:
    """The genotype, or None and why it cannot be drawn; the rest of the page does not need it."""
    if text is None:
        return None, "No architecture has been recorded yet."
    try:
        return Genotype.parse(text), None
    except UserError as error:
        return None, f"The cells are not drawn: {error}"


def _cells(genotype: Genotype) -> dict[str, CellTopology]:
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    return {kind: cell for kind, cell in cells.items() if cell is not None}


def _drawn(kind: str, cell: CellTopology, slots: Mapping[str, int]) -> _Cell:
    drawings = (
        draw_cell(
            cell_edges(cell),
            inputs=cell.inputs,
            nodes=len(cell.nodes),
            concat=cell.concat,
            slots=slots,
            upright=upright,
        )
        for upright in (False, True)
    )
    return _Cell(kind, *drawings)


def _unchanged_since(record: RunRecord) -> int | None:
    """The first epoch of the last stretch with the same genotype."""
    since = None
    for epoch in reversed(record.epochs):
        if epoch.genotype is None or epoch.genotype != record.genotype:
            break
        since = epoch.epoch
    return since


def _commands(record: RunRecord) -> list[tuple[str, str]]:
    """What can be done next, as (what for, command)."""
    path = record.path.resolve()
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    run = shlex.quote(str(path))
    if not record.finished:
        return [("Go on with the search", f"da2s search --resume {run}")]
    return [
        ("Train the found network from scratch", f"da2s retrain {run}"),
        ("Set this run beside others", f"da2s compare {run} OTHER_RUN"),
    ]


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: ``{"keep": {"normal": 2}}`` as ``{"keep.normal": 2}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _state(name: str) -> Markup:
    base, subscript = split_subscript(name)
    return Markup("{}<sub>{}</sub>").format(base, subscript) if subscript else Markup.escape(base)


def _kind_title(kind: str) -> str:
    return {"normal": "Normal cell", "reduce": "Reduction cell"}.get(kind, f"{kind} cell")
