"""The rival that torch.compile makes of every cell."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Row
from benchmarks.process import announce
from benchmarks.subject import Subject


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


def compiled_subject(case: Case, row: Row, device: str, cache: str) -> Subject:
    """The eager subject with every cell compiled, from an empty cache folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    limits = torch._dynamo.config
    limits.recompile_limit = limits.accumulated_recompile_limit = 1000
    plain, subject = case.subject(row, device), case.subject(row, device)
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
    # A step of another size would be compiled as well: the warm-up runs the plain network.
    subject.warm_up = plain.step
    return subject
