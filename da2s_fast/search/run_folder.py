"""The folder a search leaves behind: settings, log, metrics, checkpoint, genotype, summary."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from da2s_fast.errors import UserError
from da2s_fast.search.checkpoint import load_checkpoint, save_checkpoint, write_text
from da2s_fast.search.settings import ResolvedSettings, SearchSettings

logger = logging.getLogger("da2s_fast")

Metrics = dict[str, Any]
CONFIG_FILE = "config.yaml"


class Session(Protocol):
    """What a run restores: all that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, to the same bits."""


class RunFolder:
    """Reads and writes the files of one run.

    Every file but the log is replaced as a whole, so that a crash leaves nothing torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def new(cls, path: Path) -> RunFolder:
        """An empty folder; UserError when a run is there already or it cannot be made."""
        try:
            if (path / CONFIG_FILE).exists():
                raise UserError(
                    f"{path} holds a run already; continue it with --resume or choose another "
                    "folder"
                )
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the run folder {path}: {error.strerror}") from error
        return cls(path)

    @classmethod
    def create(cls, path: Path, settings: ResolvedSettings) -> RunFolder:
        """Start a new search; UserError as for `new`."""
        folder = cls.new(path)
        config = dataclasses.asdict(settings)
        keep = settings.keep()
        config["keep"] = {kind: list(counts) for kind, counts in keep.items()}
        del config["keep_normal"], config["keep_reduce"]
        write_text(path / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
        return folder

    def settings(self) -> SearchSettings:
        """The settings of the run; UserError when there is no run or its settings are damaged."""
        file = self.path / CONFIG_FILE
        try:
            config = yaml.safe_load(file.read_text())
            keep = config.pop("keep")
            return SearchSettings(
                **config, keep_normal=keep["normal"], keep_reduce=keep.get("reduce", [])
            )
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no run: there is no {CONFIG_FILE} in it") from None
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

    def restore(self, session: Session) -> list[Metrics]:
        """Put a session where the last checkpoint was taken; return the history until there.

        Raises:
            UserError: the checkpoint cannot be read, or does not fit the session.
        """
        state, history = self.load()
        try:
            session.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.checkpoint} does not fit the settings and the data of its run "
                f"({type(error).__name__}); restore {CONFIG_FILE} and the data as they were"
            ) from error
        return history

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
