"""Cells of derived networks: only the kept edges, each with its one operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from da2s_fast.nn.operations import FactorizedReduce, Identity, ReLUConvBN, create_operation
from da2s_fast.nn.topology import CellTopology


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zeroes whole samples with this probability and scales the others by 1 / (1 - probability).

    Larsson et al. 2017, FractalNet, as in DARTS: one draw per sample. ``x`` is (N, C, H, W).
    """
    mask = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
    return x * mask.bernoulli_(1.0 - probability).div_(1.0 - probability)


def _kept_operations(topology: CellTopology, channels: int, reduction: bool) -> nn.ModuleList:
    return nn.ModuleList(
        create_operation(
            edge.operation,
            channels,
            stride=2 if reduction and edge.source < topology.inputs else 1,
            affine=True,
        )
        for edge in topology.edges
    )


def _cell_output(
    topology: CellTopology, operations: nn.ModuleList, states: list[Tensor], drop_probability: float
) -> Tensor:
    """Evaluates all nodes from the input ``states`` and concatenates those of ``concat``."""
    remaining = iter(operations)
    for edges in topology.nodes:
        total: Tensor | None = None
        for edge in edges:
            operation = next(remaining)
            y = operation(states[edge.source])
            # As in DARTS, an identity is never dropped, so that a path always remains.
            if drop_probability > 0 and not isinstance(operation, Identity):
                y = drop_path(y, drop_probability)
            total = y if total is None else total + y
        assert total is not None  # CellTopology has no node without edges
        states.append(total)
    outputs = [states[state] for state in topology.concat]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class DerivedCell(nn.Module):
    """Cell of DARTS's derived networks: two inputs, any number of kept edges per node.

    State dict keys are those of DARTS's ``Cell``.

    Args:
        topology: the kept edges.
        C_prev_prev: channels of the output of the last cell but one.
        C_prev: channels of the output of the last cell.
        C: channels of a node.
        reduction: whether edges that leave the inputs have stride 2.
        reduction_prev: whether the cell before this one was a reduction cell.
    """

    def __init__(
        self,
        topology: CellTopology,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        *,
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__()
        self.topology = topology
        self.preprocess0: nn.Module
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        self._ops = _kept_operations(topology, C, reduction)

    def forward(self, s0: Tensor, s1: Tensor, drop_probability: float = 0.0) -> Tensor:
        """(N, len(concat) * C, H', W') from the outputs of the last but one and the last cell."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        drop_probability = drop_probability if self.training else 0.0
        return _cell_output(self.topology, self._ops, states, drop_probability)


class DerivedDenseCell(nn.Module):
    """Cell of NAS-Bench-201: one input, no preprocessing, (N, C, H, W) to the same size.

    Args:
        topology: the kept edges, with one input.
        channels: C, of the input and of every node.
    """

    def __init__(self, topology: CellTopology, channels: int) -> None:
        super().__init__()
        self.topology = topology
        self._ops = _kept_operations(topology, channels, reduction=False)

    def forward(self, x: Tensor, drop_probability: float = 0.0) -> Tensor:
        """(N, len(concat) * C, H, W) from the output of the last cell."""
        drop_probability = drop_probability if self.training else 0.0
        return _cell_output(self.topology, self._ops, [x], drop_probability)
