"""Settings and genotype of a training in its run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from da2s_fast.errors import UserError
from da2s_fast.search.checkpoint import write_text
from da2s_fast.search.run_folder import CONFIG_FILE, RunFolder
from da2s_fast.spaces import Genotype
from da2s_fast.train.settings import RetrainSettings

GENOTYPE_FILE = "genotype.txt"


def create_run(path: Path, genotype: Genotype, settings: RetrainSettings) -> RunFolder:
    """Start a new run folder; UserError when it holds a run or cannot be written."""
    folder = RunFolder.new(path)
    write_text(path / GENOTYPE_FILE, f"{genotype}\n")
    config = yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)
    write_text(path / CONFIG_FILE, config)
    return folder


def read_settings(path: Path) -> RetrainSettings:
    """Settings of the training in a run folder; UserError when there is none."""
    file = path / CONFIG_FILE
    try:
        return RetrainSettings(**yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} holds no run: there is no {CONFIG_FILE} in it") from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as the settings of a retraining: {error}") from None


def read_genotype(path: str | Path) -> Genotype:
    """The genotype in a text file, or in genotype.txt of a run folder (a search's, say).

    Raises:
        UserError: there is no such file, or no genotype in it.
    """
    path = Path(path)
    file = path / GENOTYPE_FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the genotype {file}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"cannot read the genotype {file}: it is not UTF-8 text") from None
    return Genotype.parse(text)
