"""The searches of the package as Python functions."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from da2s_fast.data import ImageData, load_data
from da2s_fast.report import write_report
from da2s_fast.search.checks import check_names
from da2s_fast.search.forecast import forecast
from da2s_fast.search.loop import SearchResult, run_search
from da2s_fast.search.run_folder import Metrics, RunFolder
from da2s_fast.search.session import SearchSession
from da2s_fast.search.settings import SearchSettings
from da2s_fast.terminal import progress_bar
from da2s_fast.train import derived_size
from da2s_fast.wording import counted

logger = logging.getLogger("da2s_fast")


def search(
    data: str | Path | ImageData = "digits",
    *,
    run_dir: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> SearchResult:
    """Search an architecture for a data set.

    Args:
        data: name or path as in `SearchSettings.data`, or a loaded `ImageData`.
        run_dir: new folder for log, metrics, checkpoint, genotype and report; none by default.
        progress: show a progress bar.
        **settings: fields of `SearchSettings`, for example method="darts", epochs=10.

    Returns:
        Genotype, history and super-network, see `SearchResult`.

    Raises:
        UserError: data or settings that cannot be used.
        DivergedError: the loss became NaN or infinite.
    """
    name = data.name if isinstance(data, ImageData) else str(data)
    check_names(settings, SearchSettings)
    wanted = SearchSettings(data=name, **settings)
    images = data if isinstance(data, ImageData) else _load(wanted)
    resolved = wanted.resolved(images)
    session = SearchSession(resolved, images)
    folder = RunFolder.create(Path(run_dir), resolved) if run_dir is not None else None
    return _run(session, folder, [], progress)


def resume(
    run_dir: str | Path, *, data: ImageData | None = None, progress: bool = True
) -> SearchResult:
    """Continue a search that was interrupted, to the same bits as if it had not been.

    Args:
        run_dir: the run folder.
        data: the images, when `search` was given loaded ones; otherwise they are loaded anew.
        progress: show a progress bar.

    Raises:
        UserError: no run there, or its checkpoint or data cannot be read.
    """
    folder = RunFolder(Path(run_dir))
    settings = folder.settings()
    images = data if data is not None else _load(settings)
    session = SearchSession(settings.resolved(images), images)
    # Before the first checkpoint there are no metrics either: such a run starts from its settings.
    history: list[Metrics] = []
    if folder.checkpoint.exists() or folder.metrics.exists():
        history = folder.restore(session)
    return _run(session, folder, history, progress)


def _load(settings: SearchSettings) -> ImageData:
    return load_data(settings.data, image_size=settings.image_size, limit=settings.limit)


def _run(
    session: SearchSession, folder: RunFolder | None, history: list[Metrics], progress: bool
) -> SearchResult:
    with folder.logging() if folder else nullcontext():
        result = _with_progress(session, folder, history, progress)
        # The search itself knows nothing of training.
        result.summary["derived"] = derived_size(result.genotype, session.data)
        if folder:
            folder.write_result(str(result.genotype), result.summary)
            write_report(folder.path)
    return result


def _with_progress(
    session: SearchSession, folder: RunFolder | None, history: list[Metrics], progress: bool
) -> SearchResult:
    settings = session.settings
    logger.info(
        "%s on %s in the %s space: %s, %s, %s, seed %d, %s",
        settings.method,
        session.data,
        settings.space,
        counted(settings.epochs, "epoch"),
        counted(settings.cells, "cell"),
        counted(settings.channels, "channel"),
        settings.seed,
        settings.device,
    )
    if history:
        logger.info("%d of %s done", len(history), counted(settings.epochs, "epoch"))
    if len(history) < settings.epochs:
        expected = forecast(session)
        left = expected.seconds * (1 - len(history) / settings.epochs)
        logger.info("forecast: %s", dataclasses.replace(expected, seconds=left))
    logger.info("super, cut: accuracy before and after cutting; p, beta: 1 when discrete")
    with progress_bar("search", shown=progress) as on_step:
        return run_search(session, folder, history, on_step)
