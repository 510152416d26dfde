"""Run folders that commands are given: of which kind they are, and what can be done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from da2s_fast.commands.arguments import read_settings
from da2s_fast.commands.output import in_shell
from da2s_fast.errors import UserError
from da2s_fast.search.settings import SearchSettings
from da2s_fast.train import ModelInfo, RetrainSettings
from da2s_fast.train.evaluate import MODEL_FILE, open_model
from da2s_fast.train.model_file import DerivedModel

Kind = Literal["search", "training"]
_SETTINGS: dict[Kind, type] = {"search": SearchSettings, "training": RetrainSettings}


def run_settings(folder: Path, kind: Kind) -> dict[str, Any]:
    """The settings of the run in a folder; UserError when it holds no run of this kind."""
    try:
        return read_settings(folder / "config.yaml", _SETTINGS[kind])
    except UserError as error:
        found = _kind_of(folder)
        reason = f"it is the run folder of a {found}; give that of a {kind}" if found else error
        raise UserError(f"{folder} holds no {kind}: {reason}") from None


def trained_model(source: Path, device: str | None = None) -> tuple[DerivedModel, ModelInfo]:
    """`open_model`, but a run folder without a model gets the command that will make one.

    Raises:
        UserError: there is no model.
    """
    if source.is_dir() and not (source / MODEL_FILE).exists():
        kind, folder = _kind_of(source), in_shell(source)
        if kind == "search":
            raise UserError(f"{source} holds a search: train what it found, da2s retrain {folder}")
        if kind == "training":
            raise UserError(
                f"the training in {source} has not finished; go on with it by da2s retrain "
                f"--resume {folder}"
            )
    return open_model(source, device)


def refuse_besides_resume(arguments: Namespace) -> None:
    """Demand that --resume comes without settings: a run goes on with its own."""
    others = [*arguments.settings, *({"config", "out"} & set(arguments.keys()))]
    if others:
        raise UserError(
            f"--resume goes on with the settings of {arguments.resume}: leave out "
            + ", ".join(others)
        )


def _kind_of(folder: Path) -> Kind | None:
    """What the settings in a run folder are settings of."""
    for kind, settings in _SETTINGS.items():
        try:
            read_settings(folder / "config.yaml", settings)
            return kind
        except UserError:
            continue
    return None
