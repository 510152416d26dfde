"""Reading a run folder: settings, one record per epoch, and the summary of a finished search."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from da2s_fast.errors import UserError

_SCALARS = (
    "lr",
    "train_loss",
    "train_accuracy",
    "arch_loss",
    "operation_entropy",
    "edge_loss",
    "accuracy_super",
    "accuracy_cut",
    "gap",
    "accuracy_super_bn",
    "accuracy_cut_bn",
    "mean_max_p",
    "kept_p",
    "kept_beta",
    "skip_fraction",
    "seconds",
)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies (fractions in 0..1) of the super-network and of its cut, or None where not taken.

    The two with ``_bn`` were taken with BatchNorm statistics re-estimated on training batches.
    """

    super: float | None = None
    cut: float | None = None
    super_bn: float | None = None
    cut_bn: float | None = None

    @property
    def gap(self) -> float | None:
        """The discretization gap: what cutting costs, as a fraction."""
        return _difference(self.super, self.cut)

    @property
    def gap_bn(self) -> float | None:
        """The gap with re-estimated BatchNorm statistics."""
        return _difference(self.super_bn, self.cut_bn)


@dataclass(frozen=True)
class Epoch:
    """What a search recorded after one epoch (counted from 1)."""

    epoch: int
    scalars: Mapping[str, float | None]
    p: Mapping[str, np.ndarray]
    """Operation weights by cell kind, float64 of shape (edges, operations)."""
    edge_weights: Mapping[str, np.ndarray]
    """Edge weights g by cell kind, float64 of shape (edges,)."""
    genotype: str | None

    def __getitem__(self, name: str) -> float | None:
        return self.scalars[name]


@dataclass(frozen=True)
class RunRecord:
    """Everything a run folder tells about a search."""

    path: Path
    config: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    summary: Mapping[str, Any] | None
    notes: tuple[str, ...] = field(default=())
    """Remarks of the reader, for example that the last line of metrics.jsonl was torn."""
    retrained: float | None = None
    """Test accuracy (0 to 1) after training from scratch, see `retrained_accuracy`."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def method(self) -> str:
        """Search method."""
        return str(self.config.get("method", "unknown method"))

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the candidate operations, in the order of the columns of ``p``."""
        return tuple(map(str, _listed(self.config.get("operations"))))

    @property
    def planned_epochs(self) -> int | None:
        """Number of epochs the settings ask for."""
        epochs = self.config.get("epochs")
        return epochs if isinstance(epochs, int) else None

    @property
    def finished(self) -> bool:
        """Whether the search came to its end and wrote a summary."""
        return self.summary is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the search, then remarks of the reader."""
        return (*map(str, _listed((self.summary or {}).get("warnings"))), *self.notes)

    @property
    def genotype(self) -> str | None:
        """Text of the found architecture: the summary's, else the last epoch's."""
        text = (self.summary or {}).get("genotype")
        if text:
            return str(text)
        return next((e.genotype for e in reversed(self.epochs) if e.genotype), None)

    @property
    def seconds(self) -> float | None:
        """Duration of the search; the sum over the epochs while there is no summary."""
        total = self.total("seconds")
        if total is not None:
            return total
        known = [e["seconds"] for e in self.epochs if e["seconds"] is not None]
        return float(sum(known)) if known else None

    def total(self, name: str) -> float | None:
        """A number of the summary, or None."""
        return _number((self.summary or {}).get(name), f"{self.path / 'summary.json'}, {name}")

    def derived(self, name: str) -> float | None:
        """A number about the network that is derived from the architecture, or None.

        "parameters" and "multiply_adds", at the size of "channels" and "cells".
        """
        values = (self.summary or {}).get("derived") or {}
        where = f"{self.path / 'summary.json'}, derived"
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected an object of numbers, got {values!r:.60}")
        return _number(values.get(name), f"{where}.{name}")

    def last(self, name: str) -> float | None:
        """The summary's value of a measurement, else the last one recorded."""
        value = self.total(name)
        if value is not None:
            return value
        return next((e[name] for e in reversed(self.epochs) if e[name] is not None), None)

    def series(self, name: str) -> np.ndarray:
        """One measurement over the epochs, float64 of shape (epochs,), NaN where not taken."""
        values = [e[name] for e in self.epochs]
        return np.array([math.nan if v is None else v for v in values], dtype=np.float64)

    def accuracies(self, part: str) -> Accuracies:
        """Accuracies on ``part`` ("search": the architecture's images, or "test") at the end.

        Without a summary, "search" gives those of the last measured epoch.
        """
        if self.summary is not None:
            values = self.summary.get(part) or {}
            where = f"{self.path / 'summary.json'}, {part}"
            if not isinstance(values, Mapping):
                raise UserError(f"{where}: expected an object of accuracies, got {values!r}")
            names = ("super", "cut", "super_bn", "cut_bn")
            return Accuracies(*(_number(values.get(n), f"{where}.{n}") for n in names))
        measured = [e for e in self.epochs if e["accuracy_super"] is not None]
        if part != "search" or not measured:
            return Accuracies()
        last = measured[-1]
        return Accuracies(
            last["accuracy_super"],
            last["accuracy_cut"],
            last["accuracy_super_bn"],
            last["accuracy_cut_bn"],
        )


def load_run(path: str | Path) -> RunRecord:
    """Read the run folder ``path``.

    A last line of metrics.jsonl without its end (a search that was killed, or is still writing) is
    left out and noted; where an epoch was recorded twice the later record counts.

    Raises:
        UserError: the folder or a file in it is missing or cannot be understood.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a run folder: there is no such folder")
    config = _read_config(path / "config.yaml")
    epochs, notes = _read_metrics(path / "metrics.jsonl")
    summary = _read_summary(path / "summary.json")
    return RunRecord(path, config, epochs, summary, notes)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a complete run folder: {path.name} is missing"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is damaged: it is not YAML{place}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: expected settings by name, got {config!r:.60}")
    return config


def _read_summary(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    try:
        summary = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path} is damaged: expected an object, got {summary!r:.60}")
    return summary


def _read_metrics(path: Path) -> tuple[tuple[Epoch, ...], tuple[str, ...]]:
    lines = _read_text(path).split("\n")
    notes: tuple[str, ...] = ()
    epochs: dict[int, Epoch] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            # Only what follows the last newline can be half written.
            if number == len(lines):
                notes = (f"The last line of {path.name} is incomplete and was left out.",)
                break
            raise UserError(f"{where} is damaged: it is not JSON") from None
        epoch = _epoch(record, where)
        epochs[epoch.epoch] = epoch
    return tuple(epochs[number] for number in sorted(epochs)), notes


def _epoch(record: Any, where: str) -> Epoch:
    if not isinstance(record, dict):
        raise UserError(f"{where} is damaged: expected an object, got {record!r:.60}")
    number = record.get("epoch")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"{where} is damaged: epoch must be a whole number from 1, got {number!r}")
    genotype = record.get("genotype")
    return Epoch(
        epoch=number,
        scalars={name: _number(record.get(name), f"{where}, {name}") for name in _SCALARS},
        p=_arrays(record.get("p"), 2, f"{where}, p"),
        edge_weights=_arrays(record.get("edge_weights"), 1, f"{where}, edge_weights"),
        genotype=None if genotype is None else str(genotype),
    )


def _number(value: Any, where: str) -> float | None:
    """A finite number, or None for null, NaN and infinity."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: expected a number or null, got {value!r:.60}")
    return float(value) if math.isfinite(value) else None


def _arrays(value: Any, dimensions: int, where: str) -> Mapping[str, np.ndarray]:
    """Arrays by cell kind; a kind that is null is left out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected lists by cell kind, got {value!r:.60}")
    arrays = {}
    for kind, rows in value.items():
        if rows is None:
            continue
        try:
            array = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(())
        if array.ndim != dimensions:
            raise UserError(f"{where}.{kind}: expected {dimensions}-dimensional lists of numbers")
        arrays[str(kind)] = array
    return arrays


def _listed(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty list, and anything else as its only item."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
