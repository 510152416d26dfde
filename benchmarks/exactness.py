"""No speed is reported for results that are wrong: the comparison that precedes every timing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.cases import EAGER, Case, Row
from benchmarks.subject import Prepared
from tests.nn.evaluate import assert_equal_to_reference
from tests.ops.compare import Mismatch, assert_as_accurate

BATCH = 3


def check(case: Case, rows: Sequence[Row], device: str = "cpu") -> None:
    """Compare outputs, all gradients and buffers of our rows with eager PyTorch's, in small.

    In float64 the whole network, every row with the gradients it computes. In float32 each cell
    for itself, by the rule of tests/ops/compare.py: through a whole network, one ReLU that rounds
    to the other side changes gradients by more than that.

    Raises:
        Mismatch: naming the tensor and the errors.
    """
    ours = [row for row in rows if row.engine == "ours"]
    exact = case.subject(EAGER, device).wide().evaluate(BATCH)
    for row in ours:
        subject = case.subject(row, device).wide()
        results = subject.evaluate(BATCH)
        missing = _wanted(exact, subject.arch, row) - results.keys()
        if missing:
            raise Mismatch(f"{row.name} does not compute {', '.join(sorted(missing))}")
        expected = {name: exact[name] for name in results}
        assert_as_accurate(results, expected, expected)
    for memory in dict.fromkeys(row.memory for row in ours):
        _check_parts(case, Row("", "ours", memory), device)


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
    ours, theirs = case.subject(row, device), case.subject(EAGER, device)
    seen: list[list[Tensor]] = []

    def note(part: nn.Module, inputs: tuple[object, ...]) -> None:
        seen.append([value.detach() for value in inputs if isinstance(value, Tensor)])

    parts = case.parts(theirs.module)
    hooks = [part.register_forward_pre_hook(note) for part in parts]
    with torch.no_grad():
        theirs.call(theirs.inputs(BATCH))
    for hook in hooks:
        hook.remove()
    for part, rival, inputs in zip(case.parts(ours.module), parts, seen, strict=True):
        assert_equal_to_reference(part, rival, case.call_part, inputs, dtypes=[torch.float32])


def check_full_size(prepared: dict[str, Prepared], rows: Sequence[Row]) -> None:
    """Compare norms of output and gradients of the first steps at full size.

    Raises:
        Mismatch: naming the row and both norms.
    """
    done = [row for row in rows if row.name in prepared]
    for row in done[1:]:
        expected, norms = prepared[done[0].name].norms, prepared[row.name].norms
        # Half of the gradients have another norm.
        for key in norms if row.wanted == "all" else ["output"]:
            if not abs(norms[key] - expected[key]) <= 0.01 * abs(expected[key]):
                raise Mismatch(
                    f"at full size the norm of the {key} is {norms[key]:.6g} in the row "
                    f"{row.name!r}, {expected[key]:.6g} in {done[0].name!r}"
                )
