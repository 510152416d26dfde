"""What networks of a found architecture reach when they are trained from scratch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from da2s_fast.report.run import RunRecord


@dataclass(frozen=True)
class Retraining:
    """A finished training from scratch: what was trained on what, how long, and its accuracy."""

    genotype: str
    data: str
    epochs: int
    test_accuracy: float


def is_retraining(path: Path) -> bool:
    """Whether a folder is the run folder of a training from scratch, finished or not."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and "drop_path" in config and "method" not in config


def read_retraining(path: Path) -> Retraining | None:
    """The result in a run folder; None where there is no finished training, or no whole one."""
    if not is_retraining(path):
        return None
    try:
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        found = Retraining(
            genotype=str(summary["genotype"]),
            data=str(summary["data"]),
            epochs=int(summary["epochs"]),
            test_accuracy=float(summary["test_accuracy"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if math.isfinite(found.test_accuracy) else None


def idle_trainings(paths: Iterable[Path], records: Sequence[RunRecord]) -> Iterator[str]:
    """Which of these trainings stand with none of the searches, each with the reason."""
    found = {(record.genotype, record.summary.get("data")) for record in records if record.summary}
    for path in paths:
        training = read_retraining(path)
        if training is None:
            yield (
                f"{path} counts nowhere: it is a training that has diverged, or is not finished; "
                f"continue it with da2s retrain --resume {shlex.quote(str(path))}"
            )
        elif (training.genotype, training.data) not in found:
            yield (
                f"{path} counts nowhere: what was trained there on {training.data} is the result "
                "of no search that is compared"
            )


def retrained_accuracy(record: RunRecord, others: Iterable[Path] = ()) -> float | None:
    """Test accuracy (0 to 1) of the architecture of a search after training from scratch.

    Trainings of its genotype on its data count if their folders lie in the run folder, beside it
    or are among the ``others``. Of several, those of the most epochs do, with their mean.
    """
    if record.summary is None:
        return None
    folder = record.path.resolve()
    near = [path for place in (folder, folder.parent) for path in place.iterdir() if path.is_dir()]
    paths = {path.resolve() for path in (*near, *others)}
    wanted = (record.genotype, record.summary.get("data"))
    found = [
        training
        for path in sorted(paths)
        if (training := read_retraining(path)) and (training.genotype, training.data) == wanted
    ]
    longest = max((training.epochs for training in found), default=0)
    return mean(t.test_accuracy for t in found if t.epochs == longest) if found else None
