"""Watching a training from outside: TensorBoard, and the eye on NaN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FINITE_CHECK_STEPS = 10
"""The loss is looked at every so many steps: looking waits for the device."""


class ScalarBoard:
    """Writes the numbers among the metrics of each epoch to TensorBoard.

    Args:
        run_dir: the run folder, or None to write nothing.
        epochs_done: later epochs that an interrupted run has written already are discarded.
    """

    def __init__(self, run_dir: Path | None, epochs_done: int) -> None:
        self._writer: SummaryWriter | None = None
        if run_dir:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow to import

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=epochs_done + 1)

    def write(self, metrics: dict[str, object]) -> None:
        """Add one epoch; ``metrics["epoch"]`` is its number."""
        if self._writer:
            for name, value in metrics.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._writer.add_scalar(name, value, metrics["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            self._writer.close()
