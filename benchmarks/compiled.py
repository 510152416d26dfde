"""The rivals that torch.compile makes of eager PyTorch: of every cell, or of all at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Row
from benchmarks.process import announce
from benchmarks.results import Measurement
from benchmarks.rounds import Job
from benchmarks.subject import Subject
from benchmarks.tables import Table, results_table, seconds

WHOLE = Row("torch.compile", "eager")
BY_CELL = Row("torch.compile per cell", "eager")


class _Announced(nn.Module):
    """A compiled cell that says when its turn comes."""

    def __init__(self, cell: nn.Module, position: str) -> None:
        super().__init__()
        # One graph per cell: their channels and sizes all differ.
        self.cell, self.kind, self.position = (
            torch.compile(cell, dynamic=False),
            cell.kind,
            position,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        announce(f"at the forward pass of cell {self.position}")
        return self.cell(*inputs)


def _compile_cells(subject: Subject) -> None:
    cells = subject.module.cells
    assert isinstance(cells, nn.ModuleList)
    for index, cell in enumerate(cells):
        cells[index] = _Announced(cell, f"{index + 1} of {len(cells)}")
    call = subject.call

    def forward(x: Tensor) -> Tensor:
        output = call(x)
        announce("at the backward pass")
        return output

    subject.call = forward


def compiled_subject(case: Case, row: Row, device: str, cache: str) -> Subject:
    """The eager subject compiled, all of it or cell by cell, from an empty cache folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    limits = torch._dynamo.config
    limits.recompile_limit = limits.accumulated_recompile_limit = 1000
    plain, subject = case.subject(row, device), case.subject(row, device)
    if row == BY_CELL:
        _compile_cells(subject)
    else:
        subject.call = torch.compile(subject.call, dynamic=False)
    # A step of another size would be compiled as well: the warm-up runs the plain module.
    subject.warm_up = plain.step
    return subject


@contextmanager
def compiled_jobs(options: Any, case: Case, row: Row, device: str) -> Iterator[list[Job]]:
    """The rival's row, with the time limit of the command line; none if that leaves it out."""
    if options.compile_limit <= 0:
        yield []
        return
    with TemporaryDirectory() as cache:
        build = partial(compiled_subject, case, row, device, cache)
        yield [Job(case, row, options.batch, device, build=build, limit=options.compile_limit)]


def results_and_compile_times(title: str, found: Measurement) -> Table:
    """`results_table`, and below it how long compiling took, where it ended."""
    table = results_table(title, found)
    table.notes += [
        f"{name}: {seconds(result.prepared.seconds - result.median)} to compile, in the first step"
        for name in (WHOLE.name, BY_CELL.name)
        if (result := found.result(name)) and result.prepared
    ]
    return table
