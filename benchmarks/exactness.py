"""No speed is reported for results that are wrong: the comparison that precedes every timing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.cases import EAGER, Case, Row
from benchmarks.subject import Prepared
from tests.nn.evaluate import assert_close, evaluate
from tests.ops.compare import Mismatch, assert_as_accurate

BATCH = 3
_ATTEMPTS = 3


def check(case: Case, rows: Sequence[Row], device: str = "cpu") -> None:
    """Compare outputs, all gradients and buffers of our rows with eager PyTorch's, in small.

    In float64 the whole network, every row with the gradients it computes. In float32 each cell
    for itself, by the rule of tests/ops/compare.py: through a whole network, one ReLU that rounds
    to the other side changes gradients by more than that.

    Raises:
        AssertionError: naming the tensor and the errors.
    """
    # A graph replays what the row without it computes, and is compared at full size.
    ours = [row for row in rows if row.engine == "ours" and not row.graph]
    exact = case.subject(EAGER, device).wide().evaluate(BATCH)
    for row in ours:
        subject = case.subject(row, device).wide()
        results = subject.evaluate(BATCH)
        missing = _wanted(exact, subject.arch, row) - results.keys()
        if missing:
            raise Mismatch(f"{row.name} does not compute {', '.join(sorted(missing))}")
        buffers, others = _split(results)
        assert_as_accurate(others, *2 * [{name: exact[name] for name in others}])
        # Means of what is normalized already are 0 up to rounding, 1e-17 here and 1e-18 there.
        assert_close(buffers, {name: exact[name] for name in buffers})
    for memory in dict.fromkeys(row.memory for row in ours):
        _check_parts(case, Row("", "ours", memory), device)


def _split(results: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Buffers, and all others."""
    buffers = {name: value for name, value in results.items() if name.startswith("buffer ")}
    return buffers, {name: value for name, value in results.items() if name not in buffers}


def _wanted(exact: dict[str, Tensor], arch: object, row: Row) -> set[str]:
    """Names of what a row must have computed."""
    halves = {
        "architecture": lambda name: name in arch,  # type: ignore[operator]
        "weights": lambda name: name not in arch,  # type: ignore[operator]
        "all": lambda name: True,
    }
    kept = halves[row.wanted]
    return {
        name
        for name in exact
        if name in ("output", "input") or name.startswith("buffer ") or kept(name)
    }


def _check_parts(case: Case, row: Row, device: str) -> None:
    """Compare every part in single precision, by the rule of the tests.

    Among millions of numbers one lies nearer to 0 than rounding errors are: then a ReLU lets a
    gradient pass on one side and not on the other. Other images have other numbers; what is wrong
    is wrong for all of them.
    """
    ours, theirs = case.subject(row, device), case.subject(EAGER, device)

    def call(part: nn.Module, *inputs: Tensor) -> Tensor:
        return case.call_part(part, *inputs).cpu()  # where the gradient comes from

    @cache
    def inputs_of(attempt: int) -> list[list[Tensor]]:
        return _part_inputs(case, device, BATCH + attempt)

    parts = zip(case.parts(ours.module), case.parts(theirs.module), strict=True)
    for index, (part, rival) in enumerate(parts):
        for attempt in range(_ATTEMPTS):
            inputs = inputs_of(attempt)[index]
            wide = copy.deepcopy(rival).double()
            exact = evaluate(wide, call, [value.double() for value in inputs])
            results = [evaluate(module, call, inputs) for module in (part, rival)]
            try:
                assert_as_accurate(*(_joined(values, rival) for values in (*results, exact)))
                break
            except Mismatch:
                if attempt == _ATTEMPTS - 1:
                    raise


def _part_inputs(case: Case, device: str, batch: int) -> list[list[Tensor]]:
    """What the parts of a network are called with; every batch has other images."""
    subject = case.subject(EAGER, device)
    seen: list[list[Tensor]] = []

    def note(part: nn.Module, inputs: tuple[object, ...]) -> None:
        seen.append([value.detach() for value in inputs if isinstance(value, Tensor)])

    for part in case.parts(subject.module):
        part.register_forward_pre_hook(note)
    with torch.no_grad():
        subject.call(subject.inputs(batch))
    return seen


def _joined(values: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Gradients of all weights as one tensor, and each kind of buffer.

    The rounding errors of a tensor of two numbers are luck.
    """
    kinds: dict[str, list[Tensor]] = {}
    weights = dict(module.named_parameters())
    for name, value in values.items():
        kind = "weights" if name in weights else name
        if name.startswith("buffer "):
            kind = name.rpartition(".")[2]
        kinds.setdefault(kind, []).append(value.flatten())
    return {kind: torch.cat(found) for kind, found in kinds.items()}


def check_full_size(prepared: dict[str, Prepared], rows: Sequence[Row]) -> None:
    """Compare norms of output and gradients of the first steps at full size.

    Rows under autocast, which are eager PyTorch's alone, are as wrong as they are.

    Raises:
        Mismatch: naming the row and both norms.
    """
    done = [row for row in rows if row.name in prepared and not row.autocast]
    for row in done[1:]:
        expected, norms = prepared[done[0].name].norms, prepared[row.name].norms
        # Half of the gradients have another norm.
        for key in norms if row.wanted == "all" else ["output"]:
            if not abs(norms[key] - expected[key]) <= 0.01 * abs(expected[key]):
                raise Mismatch(
                    f"at full size the norm of the {key} is {norms[key]:.6g} in the row "
                    f"{row.name!r}, {expected[key]:.6g} in {done[0].name!r}"
                )
