"""The search loop: epochs of bilevel steps, each ending in the measured discretization gap."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from da2s_fast.determinism import deterministic
from da2s_fast.errors import DivergedError
from da2s_fast.search.discretize import DISCRETE_BETA, DISCRETE_P, Discretization
from da2s_fast.search.flat import all_finite
from da2s_fast.search.graph import GraphSteps
from da2s_fast.search.monitor import FINITE_CHECK_STEPS, ScalarBoard
from da2s_fast.search.run_folder import Metrics, RunFolder
from da2s_fast.search.session import SearchSession
from da2s_fast.search.settings import ResolvedSettings
from da2s_fast.spaces import Genotype

logger = logging.getLogger("da2s_fast")

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the architecture.
        history: one dict of metrics per epoch, as in metrics.jsonl.
        summary: accuracies before and after the cut, discreteness, warnings, as in summary.json;
            from `da2s_fast.search` also the size of the derived network.
        model: the trained super-network.
        settings: the settings, resolved.
        run_dir: the run folder, if one was written.
    """

    genotype: Genotype
    history: list[Metrics]
    summary: dict[str, Any]
    model: nn.Module
    settings: ResolvedSettings
    run_dir: Path | None = None


def run_search(
    session: SearchSession,
    folder: RunFolder | None = None,
    history: list[Metrics] | None = None,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Search from the epoch after `history` to the end.

    Args:
        session: fresh, or restored to the end of the last epoch in `history`.
        folder: where checkpoints and metrics go; nowhere by default.
        history: metrics of the epochs done.
        on_step: progress callback.

    Raises:
        DivergedError: the loss or a weight became NaN or infinite.
    """
    history = list(history or [])
    with deterministic(session.device), _own_randomness(session, fresh=not history):
        if folder and history:
            # A crash between checkpoint and metrics leaves metrics that lack the last epoch.
            folder.write_metrics(history)
        elif folder:
            folder.save(session.state_dict(), history)
        with closing(ScalarBoard(folder.path if folder else None, len(history))) as board:
            _run_epochs(session, folder, history, board, on_step)
        return _finish(session, folder, history)


@contextmanager
def _own_randomness(session: SearchSession, fresh: bool) -> Iterator[None]:
    """Inside, torch's global generators follow the seed; outside, they stay as they were.

    Operations that users register may draw from them.
    """
    with torch.random.fork_rng([session.device] if session.device.type == "cuda" else []):
        if fresh:
            torch.manual_seed(session.settings.seed)
        yield


def _run_epochs(
    session: SearchSession,
    folder: RunFolder | None,
    history: list[Metrics],
    board: ScalarBoard,
    on_step: OnStep | None,
) -> None:
    """Search from the epoch after `history` to the end; appends to `history`."""
    settings = session.settings
    meter = session.gap_meter("search", settings.measure_images)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        start = time.perf_counter()
        metrics = _run_epoch(session, epoch, folder, on_step)
        cut = session.discretize()
        metrics |= _describe(session, cut)
        measured = meter.measure(session.network, cut.mixtures)
        metrics |= {f"accuracy_{name}": value for name, value in measured.items()}
        metrics["gap"] = measured["super"] - measured["cut"]
        metrics["seconds"] = time.perf_counter() - start
        history.append(metrics)
        logger.info(_line(metrics, settings.epochs))
        board.write(metrics)
        if folder:
            folder.save(session.state_dict(), history)


def _run_epoch(
    session: SearchSession, epoch: int, folder: RunFolder | None, on_step: OnStep | None
) -> Metrics:
    """One pass over the weight half of the training set."""
    session.begin_epoch(epoch)
    session.network.train()
    steps = session.weight_loader.steps_per_epoch
    total = steps * session.settings.epochs
    zero = torch.zeros((), device=session.device)
    train_loss, arch_loss, hits, images = zero, zero, zero, 0
    searches = session.alpha_learns or session.beta_learns
    take_step = GraphSteps(session) if session.settings.cuda_graph else session.step
    for step in range(1, steps + 1):
        train = session.weight_loader.next_batch()
        found = take_step(train, session.arch_loader.next_batch() if searches else None)
        arch_loss, train_loss = arch_loss + found.arch_loss, train_loss + found.loss
        hits, images = hits + found.hits, images + len(train[1])
        # A NaN or Inf stays in the sums, so that a look now and then misses nothing.
        if step % FINITE_CHECK_STEPS == 0:
            _check_finite(session, epoch, train_loss + arch_loss, folder)
        if on_step:
            on_step((epoch - 1) * steps + step, total)
    # What the last step made of the weights shows in no loss, but would go into a checkpoint.
    finite = all_finite([*session.architect.weights, *session.network.buffers()])
    _check_finite(session, epoch, torch.where(finite, train_loss + arch_loss, torch.nan), folder)
    return {
        "epoch": epoch,
        "lr": session.learning_rate(epoch),
        "train_loss": (train_loss / steps).item(),
        "train_accuracy": hits.item() / images,
        "arch_loss": (arch_loss / steps).item() if searches else None,
    }


def _check_finite(
    session: SearchSession, epoch: int, loss: torch.Tensor, folder: RunFolder | None
) -> None:
    arch_finite = all(bool(p.isfinite().all()) for p in session.network.arch_parameters())
    if bool(loss.isfinite()) and arch_finite:
        return
    kept = f"the last good checkpoint is {folder.checkpoint}" if folder else "nothing was saved"
    raise DivergedError(
        f"the loss or a weight became NaN or infinite in epoch {epoch}; {kept}. Lower "
        f"learning_rate (now {session.settings.learning_rate:g}) or arch_learning_rate (now "
        f"{session.settings.arch_learning_rate:g})"
    )


def _describe(session: SearchSession, cut: Discretization) -> Metrics:
    """Architecture weights and how discrete they are."""
    architecture = session.architecture
    with torch.no_grad():
        p = {kind: architecture.operation_weights(kind).tolist() for kind in architecture.kinds}
        g = {
            kind: torch.ones(len(p[kind])).tolist() if weights is None else weights.tolist()
            for kind in architecture.kinds
            for weights in [architecture.edge_weights(kind)]
        }
        loss = session.discretization_loss() if session.settings.method == "da2s" else None
    return {
        "operation_entropy": loss.operation_entropy.item() if loss else None,
        "edge_loss": loss.edge_loss.item() if loss and architecture.betas else None,
        "mean_max_p": cut.mean_max_p,
        "kept_p": cut.kept_p,
        "kept_beta": cut.kept_beta,
        "skip_fraction": cut.skip_fraction,
        "genotype": str(cut.genotype),
        "p": p,
        "edge_weights": g,
    }


def _line(metrics: Metrics, epochs: int) -> str:
    """One line of fewer than 80 characters."""
    beta = metrics["kept_beta"]
    return (
        f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  loss {metrics['train_loss']:.2f}  "
        f"super {metrics['accuracy_super']:5.1%}  cut {metrics['accuracy_cut']:5.1%}  "
        f"gap {metrics['gap']:+6.1%}  p {metrics['mean_max_p']:.2f}"
        + (f"  beta {beta:.2f}" if beta is not None else "")
    )


def _warnings(session: SearchSession, cut: Discretization) -> list[str]:
    """What a user should know before trusting the architecture."""
    found = []
    if cut.skip_fraction > 0.5:
        found.append(
            f"skip connections make {cut.skip_fraction:.0%} of the normal cell: the search may "
            "have collapsed; try pc-darts, a longer warm-up or a stronger arch_weight_decay"
        )
    if cut.kept_p <= DISCRETE_P:
        found.append(
            f"the operation weights are not discrete (one that is kept is {cut.kept_p:.2f}): "
            "expect a discretization gap; search longer, or raise arch_learning_rate or loss_weight"
        )
    if cut.kept_beta is not None and cut.kept_beta < DISCRETE_BETA:
        found.append(
            f"the edge weights are not discrete (mean kept beta {cut.kept_beta:.2f}, 1 when "
            "decided); search longer or raise arch_learning_rate"
        )
    return found


def _finish(
    session: SearchSession, folder: RunFolder | None, history: list[Metrics]
) -> SearchResult:
    """Measure on all architecture images and on the test images; write the result."""
    settings, cut = session.settings, session.discretize()
    accuracies = {
        part: session.gap_meter(part).measure(session.network, cut.mixtures)
        for part in ("search", "test")
    }
    warnings = _warnings(session, cut)
    summary = {
        "method": settings.method,
        "space": settings.space,
        "data": session.data.name,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "seconds": sum(metrics["seconds"] for metrics in history),
        "genotype": str(cut.genotype),
        "parameters": sum(weight.numel() for weight in session.network.weights()),
        **accuracies,
        "mean_max_p": cut.mean_max_p,
        "kept_p": cut.kept_p,
        "kept_beta": cut.kept_beta,
        "warnings": warnings,
    }
    for warning in warnings:
        logger.warning(warning)
    if folder:
        folder.write_result(str(cut.genotype), summary)
    return SearchResult(
        cut.genotype,
        history,
        summary,
        session.network,
        settings,
        folder.path if folder else None,
    )
