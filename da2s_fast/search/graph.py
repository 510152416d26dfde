"""The steps of an epoch recorded once as a CUDA graph and replayed.

What changes a step other than its images (learning rates, weights of the losses, which parameters
learn) changes between epochs only, so every epoch is recorded anew and its numbers are constants of
the graph. Its first steps run as always: they let kernels be compiled and tables be made, and since
they are steps like all others, a search takes the same steps to the same numbers with a graph and
without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from da2s_fast.errors import UserError
from da2s_fast.search.architect import Batch

if TYPE_CHECKING:
    from da2s_fast.search.session import SearchSession

FIRST_STEPS = 3
"""Steps of an epoch that run as always: torch's advice for what comes before recording."""


class StepResult(NamedTuple):
    """What a step found, 0-dim tensors that nobody has waited for.

    Attributes:
        arch_loss: of the architecture step; zero where there was none.
        loss: of the weight step.
        hits: images that the weight step classified correctly.
    """

    arch_loss: Tensor
    loss: Tensor
    hits: Tensor


Result = TypeVar("Result")


class Recorder:
    """Records on a stream of its own, on which the steps before ran as well: autograd remembers."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, work goes to the recorder's stream, in order with that of the current one."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, step: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """What takes the step once more, and where it puts its results; takes no step by itself."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = step()
        return graph.replay, result


class GraphSteps:
    """The steps of one epoch; made anew for each, after `session.begin_epoch`.

    Args:
        session: whose steps.
    """

    def __init__(self, session: SearchSession) -> None:
        self._session = session
        self._recorder = Recorder(session.device)
        self._done = 0
        self._buffers: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._result: StepResult

    def __call__(self, train: Batch, valid: Batch | None) -> StepResult:
        """As `SearchSession.step`; the tensors returned are overwritten by the next call.

        Args:
            train: a batch for the weights.
            valid: one for the architecture; None where it does not learn, in all calls or in none.

        Raises:
            UserError: the step does something that graphs cannot record.
        """
        self._done += 1
        if self._done <= FIRST_STEPS:
            with self._recorder.beside():
                return self._session.step(train, valid)
        given = [*train, *(valid or ())]
        if self._replay is None:
            self._buffers = [tensor.clone() for tensor in given]
            self._replay, self._result = self._record(has_valid=valid is not None)
        for buffer, tensor in zip(self._buffers, given, strict=True):
            buffer.copy_(tensor)
        self._replay()
        return self._result

    def _record(self, *, has_valid: bool) -> tuple[Callable[[], None], StepResult]:
        train = self._buffers[0], self._buffers[1]
        valid = (self._buffers[2], self._buffers[3]) if has_valid else None
        try:
            return self._recorder.record(lambda: self._session.step(train, valid))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"a step cannot be recorded as a CUDA graph ({reason}): an operation waits for the "
                "GPU or reads a number from it; search with cuda_graph=False"
            ) from error
