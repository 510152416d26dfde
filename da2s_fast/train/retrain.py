"""Training a derived network from scratch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from da2s_fast.data import ImageData, load_data
from da2s_fast.determinism import deterministic
from da2s_fast.errors import DivergedError
from da2s_fast.search.monitor import FINITE_CHECK_STEPS, ScalarBoard
from da2s_fast.search.run_folder import Metrics, RunFolder
from da2s_fast.spaces import Genotype
from da2s_fast.terminal import progress_bar
from da2s_fast.train.counts import count_multiply_adds, count_parameters
from da2s_fast.train.evaluate import MODEL_FILE, evaluate
from da2s_fast.train.model_file import DerivedModel, ModelInfo, save_model
from da2s_fast.train.run_settings import create_run, read_genotype, read_settings
from da2s_fast.train.session import RetrainSession
from da2s_fast.train.settings import RetrainSettings
from da2s_fast.wording import counted

logger = logging.getLogger("da2s_fast")


@dataclass
class RetrainResult:
    """What a training gave.

    Attributes:
        model: the trained network.
        info: how it is built, its classes and normalization.
        history: one dict of metrics per epoch, as in metrics.jsonl.
        summary: accuracy, size and cost, as in summary.json.
        settings: the settings, resolved.
        run_dir: the run folder, if one was written.
    """

    model: DerivedModel
    info: ModelInfo
    history: list[Metrics]
    summary: dict[str, Any]
    settings: RetrainSettings
    run_dir: Path | None = None


def retrain(
    genotype: Genotype | str,
    settings: RetrainSettings,
    *,
    data: ImageData | None = None,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> RetrainResult:
    """Train the network of a genotype from scratch and measure it on the test images.

    Args:
        genotype: the architecture, or its text.
        settings: what to train it on and how.
        data: loaded images, instead of what ``settings.data`` names.
        run_dir: new folder for log, metrics, checkpoint and model; none by default.
        progress: show a progress bar on standard error.

    Raises:
        UserError: a genotype, data or settings that cannot be used.
        DivergedError: the loss became NaN or infinite.
    """
    genotype = Genotype.parse(genotype) if isinstance(genotype, str) else genotype
    data = data or _load(settings)
    settings = settings.resolved(genotype, data)
    session = RetrainSession(genotype, settings, data)
    folder = None
    if run_dir is not None:
        folder = create_run(Path(run_dir), genotype, settings)
        folder.save(session.state_dict(), [])
    return _run(session, folder, [], progress)


def resume_retraining(
    run_dir: str | Path, *, data: ImageData | None = None, progress: bool = True
) -> RetrainResult:
    """Continue an interrupted training, to the same bits as if it had not been interrupted.

    Args:
        run_dir: the run folder.
        data: the images, when `retrain` was given loaded ones; otherwise they are loaded anew.
        progress: show a progress bar on standard error.

    Raises:
        UserError: no training there, or its checkpoint or data cannot be read.
        DivergedError: the loss became NaN or infinite.
    """
    folder = RunFolder(Path(run_dir))
    settings, genotype = read_settings(folder.path), read_genotype(folder.path)
    data = data or _load(settings)
    session = RetrainSession(genotype, settings.resolved(genotype, data), data)
    return _run(session, folder, folder.restore(session), progress)


def _load(settings: RetrainSettings) -> ImageData:
    return load_data(settings.data, image_size=settings.image_size, limit=settings.limit)


def _run(
    session: RetrainSession, folder: RunFolder | None, history: list[Metrics], progress: bool
) -> RetrainResult:
    total = session.epochs * session.loader.steps_per_epoch
    with (
        deterministic(session.device),
        folder.logging() if folder else nullcontext(),
        progress_bar("retrain", shown=progress) as on_step,
    ):
        logger.info(
            "training on %s: %s, %s a step, %s, %s, seed %d, %s",
            session.data,
            counted(session.epochs, "epoch"),
            counted(session.loader.batch_size, "image"),
            counted(session.info.cells, "cell"),
            counted(session.info.channels, "channel"),
            session.settings.seed,
            session.device,
        )
        if history:
            logger.info("%d of %s done", len(history), counted(session.epochs, "epoch"))
        _run_epochs(session, folder, history, lambda done: on_step(done, total))
        return _finish(session, folder, history)


def _run_epochs(
    session: RetrainSession,
    folder: RunFolder | None,
    history: list[Metrics],
    on_step: Callable[[int], None],
) -> None:
    """Train from the epoch after ``history`` to the end; appends to ``history``."""
    done = len(history)
    with closing(ScalarBoard(folder.path if folder else None, done)) as board:
        for epoch in range(done + 1, session.epochs + 1):
            start = time.perf_counter()
            with session.random_states():
                metrics = _train_epoch(session, epoch, folder, on_step)
            measured = evaluate((session.model, session.info), session.data)
            _check_finite(measured.loss, session, epoch, folder)
            metrics |= {"test_loss": measured.loss, "test_accuracy": measured.accuracy}
            metrics["seconds"] = time.perf_counter() - start
            history.append(metrics)
            logger.info(
                "epoch %d/%d  loss %.3f  training accuracy %.1f%%  test accuracy %.1f%%",
                epoch,
                session.epochs,
                metrics["train_loss"],
                100 * metrics["train_accuracy"],
                100 * metrics["test_accuracy"],
            )
            board.write(metrics)
            if folder:
                folder.save(session.state_dict(), history)


def _train_epoch(
    session: RetrainSession, epoch: int, folder: RunFolder | None, on_step: Callable[[int], None]
) -> Metrics:
    session.begin_epoch(epoch)
    steps = session.loader.steps_per_epoch
    loss = hits = torch.zeros((), device=session.device)
    images = 0
    for step in range(1, steps + 1):
        step_loss, step_hits, count = session.step()
        loss, hits, images = loss + step_loss, hits + step_hits, images + count
        # NaN and Inf stay in the sum, so that a look now and then misses none.
        if step % FINITE_CHECK_STEPS == 0 or step == steps:
            _check_finite(loss.item(), session, epoch, folder)
        on_step((epoch - 1) * steps + step)
    return {
        "epoch": epoch,
        "lr": session.learning_rate,
        "drop_path": session.model.drop_path_prob,
        "train_loss": loss.item() / steps,
        "train_accuracy": hits.item() / images,
    }


def _check_finite(
    loss: float, session: RetrainSession, epoch: int, folder: RunFolder | None
) -> None:
    if not math.isfinite(loss):
        kept = f"the last good checkpoint is {folder.checkpoint}" if folder else "nothing was saved"
        raise DivergedError(
            f"the loss became NaN or infinite in epoch {epoch}; {kept}. Lower learning_rate (now "
            f"{session.settings.learning_rate:g})"
        )


def _finish(
    session: RetrainSession, folder: RunFolder | None, history: list[Metrics]
) -> RetrainResult:
    """Write the model and the summary."""
    settings, info, last = session.settings, session.info, history[-1]
    summary = {
        "data": session.data.name,
        "seed": settings.seed,
        "epochs": session.epochs,
        "seconds": sum(metrics["seconds"] for metrics in history),
        "genotype": info.genotype,
        "parameters": count_parameters(session.model),
        "multiply_adds": count_multiply_adds(session.model, info.input_shape),
        "train_accuracy": last["train_accuracy"],
        "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"],
    }
    if folder:
        save_model(folder.path / MODEL_FILE, session.model, info)
        folder.write_result(info.genotype, summary)
    logger.info("test accuracy %.2f%%", 100 * last["test_accuracy"])
    run_dir = folder.path if folder else None
    return RetrainResult(session.model.eval(), info, history, summary, settings, run_dir)
