"""The folder a search leaves behind: settings, log, metrics, checkpoint, genotype, summary."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from da2s_fast.errors import UserError
from da2s_fast.search.checkpoint import load_checkpoint, save_checkpoint, write_text
from da2s_fast.search.settings import ResolvedSettings, SearchSettings

logger = logging.getLogger("da2s_fast")

Metrics = dict[str, Any]


class RunFolder:
    """Reads and writes the files of one run.

    Every file but the log is replaced as a whole, so that a crash leaves nothing torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, settings: ResolvedSettings) -> RunFolder:
        """Start a new run; UserError when a run is there already or nothing can be written."""
        try:
            if (path / "config.yaml").exists():
                raise UserError(
                    f"{path} holds a run already; continue it with --resume or choose another "
                    "folder"
                )
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the run folder {path}: {error.strerror}") from error
        folder = cls(path)
        config = dataclasses.asdict(settings)
        keep = settings.keep()
        config["keep"] = {kind: list(counts) for kind, counts in keep.items()}
        del config["keep_normal"], config["keep_reduce"]
        write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return folder

    def settings(self) -> SearchSettings:
        """The settings of the run; UserError when there is no run or its settings are damaged."""
        file = self.path / "config.yaml"
        try:
            config = yaml.safe_load(file.read_text())
            keep = config.pop("keep")
            return SearchSettings(
                **config, keep_normal=keep["normal"], keep_reduce=keep.get("reduce", [])
            )
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no run: there is no config.yaml in it") from None
        except (
            OSError,
            UnicodeDecodeError,
            yaml.YAMLError,
            TypeError,
            KeyError,
            AttributeError,
        ) as error:
            reason = " ".join(str(error).split())  # YAML's errors have several lines
            raise UserError(f"{file} cannot be read as the settings of a run: {reason}") from error

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """The metrics file, one line of JSON per epoch."""
        return self.path / "metrics.jsonl"

    def save(self, state: dict[str, Any], history: list[Metrics]) -> None:
        """Write the checkpoint and, after it, the metrics it contains."""
        save_checkpoint(self.checkpoint, {"state": state, "history": history})
        self.write_metrics(history)

    def load(self) -> tuple[dict[str, Any], list[Metrics]]:
        """The last checkpoint's state and history."""
        content = load_checkpoint(self.checkpoint)
        return content["state"], content["history"]

    def write_metrics(self, history: list[Metrics]) -> None:
        """Replace the metrics, one line per epoch."""
        lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
        write_text(self.metrics, lines)

    def write_result(self, genotype: str, summary: dict[str, Any]) -> None:
        """Write genotype.txt and summary.json."""
        write_text(self.path / "genotype.txt", genotype + "\n")
        write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Inside, the package's log goes to log.txt as well."""
        try:
            handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the log in {self.path}: {error.strerror}") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()
