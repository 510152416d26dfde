"""Which measurements of a run are plotted, and how they are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from da2s_fast.errors import UserError
from da2s_fast.nn.topology import CellTopology
from da2s_fast.report.plots import Line, plot_lines, plot_small
from da2s_fast.report.run import RunRecord
from da2s_fast.report.style import state_names
from da2s_fast.spaces import get_space

_EDGE_SLOTS = (4, 2, 6, 7, 8, 5, 9, 10, 1, 3, 11, 0)  # neighbours far apart in colour


@dataclass(frozen=True)
class Chart:
    """A plot with what is written above it."""

    title: str
    note: str
    lines: tuple[Line, ...]
    drawing: Markup


@dataclass(frozen=True)
class Panel:
    """A small plot of one edge or one node; ``kept`` names the operation that was chosen."""

    source: str
    target: str
    kept: str | None
    drawing: Markup


@dataclass(frozen=True)
class Entry:
    """A name and its colour in the legend of several plots."""

    name: str
    slot: int
    dashed: bool = False


@dataclass(frozen=True)
class Panels:
    """Small plots of one cell kind that share a legend."""

    kind: str
    legend: tuple[Entry, ...]
    panels: tuple[Panel, ...]


def overview(record: RunRecord) -> list[Chart]:
    """The charts of a whole search; a measurement that was never taken has no line."""
    charts = [
        _chart(
            record,
            "Accuracy before and after cutting",
            "On the architecture's images, without retraining; the shaded area is the gap.",
            (
                ("super-network", "accuracy_super", 4, False),
                ("cut", "accuracy_cut", 1, False),
                ("super-network, BN re-estimated", "accuracy_super_bn", 4, True),
                ("cut, BN re-estimated", "accuracy_cut_bn", 1, True),
            ),
            percent=True,
            between=("accuracy_super", "accuracy_cut"),
        ),
        _chart(
            record,
            "How discrete the super-network is",
            "The nearer max p and kept β are to 100 %, the less the cut takes away.",
            (
                ("mean max p", "mean_max_p", 7, False),
                ("mean kept β", "kept_beta", 6, False),
                ("skip connections in the normal cell", "skip_fraction", 2, True),
            ),
            percent=True,
            limits=(-0.03, 1.03),
        ),
        _chart(
            record,
            "Losses",
            "Of the weights on their images, of the architecture on its own.",
            (("weights", "train_loss", 4, False), ("architecture", "arch_loss", 8, False)),
        ),
        _chart(
            record,
            "Terms of the discretization loss",
            "Before they are weighted by the control functions.",
            (
                ("entropy of the operations", "operation_entropy", 7, False),
                ("edge term", "edge_loss", 6, False),
            ),
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _chart(
    record: RunRecord,
    title: str,
    note: str,
    series: tuple[tuple[str, str, int, bool], ...],
    *,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
    between: tuple[str, str] | None = None,
) -> Chart | None:
    lines, keys = [], []
    for name, key, slot, dashed in series:
        values = record.series(key)
        if np.isfinite(values).any():
            lines.append(Line(name, values, slot, dashed))
            keys.append(key)
    if not lines:
        return None
    pair = None
    if between is not None and set(between) <= set(keys):
        pair = (keys.index(between[0]), keys.index(between[1]))
    drawing = plot_lines(
        [epoch.epoch for epoch in record.epochs],
        lines,
        label=f"{title}, by epoch",
        percent=percent,
        limits=limits,
        between=pair,
    )
    return Chart(title, note, tuple(lines), drawing)


def operation_curves(
    record: RunRecord, cells: Mapping[str, CellTopology], slots: Mapping[str, int]
) -> list[Panels]:
    """The operation weights p of every edge, one line per operation.

    Raises:
        UserError: the recorded weights do not have the shape the settings say.
    """
    operations = record.operations
    result = []
    for kind, weights in _stacked(record, "p").items():
        names, edges = _edges(record, kind, weights.shape[1])
        if weights.shape[2] != len(operations):
            raise UserError(
                f"{record.path} is damaged: metrics.jsonl has weights of {weights.shape[2]} "
                f"operations, config.yaml names {len(operations)}"
            )
        kept = _kept(cells.get(kind))
        panels = []
        for number, (source, target) in enumerate(edges):
            lines = [
                Line(name, weights[:, number, i], slots[name]) for i, name in enumerate(operations)
            ]
            drawing = plot_small(
                [epoch.epoch for epoch in record.epochs],
                lines,
                label=f"Operation weights of the {kind} cell, edge {names[source]} to node "
                f"{names[target]}",
            )
            chosen = kept.get((source, target))
            panels.append(Panel(names[source], names[target], chosen, drawing))
        legend = tuple(Entry(name, slots[name]) for name in operations)
        result.append(Panels(kind, legend, tuple(panels)))
    return result


def edge_curves(record: RunRecord) -> list[Panels]:
    """The edge weights g of every node, one line per edge.

    Empty for methods without edge weights, where every g stays the same.
    """
    stacked = _stacked(record, "edge_weights")
    finite = [w[np.isfinite(w)] for w in stacked.values()]
    values = np.concatenate([*finite, np.empty(0)])
    if values.size == 0 or np.ptp(values) == 0:
        return []
    top = float(np.ceil(values.max() * 2) / 2)
    result = []
    for kind, weights in stacked.items():
        names, edges = _edges(record, kind, weights.shape[1])
        legend = {names[s]: _EDGE_SLOTS[s % len(_EDGE_SLOTS)] for s, _ in edges}
        panels = []
        for node in dict.fromkeys(target for _, target in edges):
            lines = [
                Line(names[source], weights[:, number], legend[names[source]])
                for number, (source, target) in enumerate(edges)
                if target == node
            ]
            drawing = plot_small(
                [epoch.epoch for epoch in record.epochs],
                lines,
                label=f"Edge weights of the {kind} cell, node {names[node]}",
                top=top,
            )
            panels.append(Panel("", names[node], None, drawing))
        result.append(Panels(kind, tuple(map(Entry, legend, legend.values())), tuple(panels)))
    return result


def _stacked(record: RunRecord, name: str) -> dict[str, np.ndarray]:
    """Recorded arrays by cell kind, the epochs first; NaN where an epoch has none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for epoch in record.epochs:
        for kind, array in getattr(epoch, name).items():
            if shapes.setdefault(kind, array.shape) != array.shape:
                raise UserError(
                    f"{record.path} is damaged: in metrics.jsonl the shape of {name}.{kind} "
                    f"changes from {shapes[kind]} to {array.shape} in epoch {epoch.epoch}"
                )
    return {
        kind: np.stack(
            [getattr(epoch, name).get(kind, np.full(shape, np.nan)) for epoch in record.epochs]
        )
        for kind, shape in shapes.items()
    }


def _edges(record: RunRecord, kind: str, number: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of the states, and (source, target) of every edge, of the run's space."""
    space = get_space(str(record.config.get("space")), nodes=record.config.get("nodes"))
    if space.num_edges != number:
        raise UserError(
            f"{record.path} is damaged: metrics.jsonl has {number} edges of the {kind} cell, "
            f"config.yaml says {space.num_edges}"
        )
    return state_names(space.inputs, space.nodes), space.edges


def _kept(cell: CellTopology | None) -> dict[tuple[int, int], str]:
    """The chosen operation of every kept edge."""
    if cell is None:
        return {}
    return {
        (edge.source, target): edge.operation
        for target, edges in enumerate(cell.nodes, start=cell.inputs)
        for edge in edges
    }
