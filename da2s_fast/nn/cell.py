"""Cells of the super-network: mixed operations on every edge, summed at every node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from da2s_fast.nn.engine import CellModule
from da2s_fast.nn.mixed_op import DARTS_PRIMITIVES, MixedOp, channel_shuffle
from da2s_fast.nn.operations import FactorizedReduce, ReLUConvBN
from da2s_fast.nn.recognize import Recognized, recognize
from da2s_fast.ops import mixed_sum


class Mixture(NamedTuple):
    """How the cells of one kind mix their candidates."""

    weights: Tensor
    """p, (edges, operations)."""
    edge_weights: Tensor | None = None
    """g, (edges,); None where every edge counts 1 (DARTS)."""
    active: tuple[tuple[int, ...], ...] | None = None
    """Per edge the candidates to run; an edge without any is left out altogether. None runs all.
    A cut network is evaluated this way without paying for what was cut."""


def node_sum(edges: Sequence[MixedOp], states: Sequence[Tensor], mixture: Mixture) -> Tensor:
    """Node h = sum_e g_e sum_o p_{e,o} op_{e,o}(x_e), in one weighted sum.

    Args:
        edges: the node's mixed operations, one for each state.
        states: the inputs of the edges, (N, C, H, W) each.
        mixture: the rows of the cell's mixture that belong to this node.

    Returns:
        (N, C, H', W').
    """
    outputs: list[Tensor] = []
    norms: list[nn.BatchNorm2d | None] = []
    bypasses: list[Tensor] = []
    chosen: list[tuple[int, int]] = []
    used: list[int] = []
    groups = edges[0].partial_channels
    for index, (edge, state) in enumerate(zip(edges, states, strict=True)):
        active = None if mixture.active is None else mixture.active[index]
        if active is not None and not active:
            continue
        edge_outputs, edge_norms = edge.candidates(state, active)
        outputs += edge_outputs
        norms += edge_norms
        used.append(index)
        chosen += [(index, op) for op in active or ()]
        if groups > 1:
            bypasses.append(edge.bypass(state))
    g = mixture.edge_weights
    weights = mixture.weights if g is None else mixture.weights * g.unsqueeze(1)
    if mixture.active is None:
        flat = weights.flatten()
    else:
        flat = torch.stack([weights[edge, op] for edge, op in chosen])
    mixed = mixed_sum(outputs, flat, norms)
    if groups == 1:
        return mixed
    if g is None:
        bypass_weights = weights.new_ones(len(used))
    else:
        bypass_weights = g if mixture.active is None else g[used]
    bypass = mixed_sum(bypasses, bypass_weights)
    return channel_shuffle(torch.cat([mixed, bypass], dim=1), groups)


class Cell(CellModule):
    """Search cell of DARTS: two inputs, `steps` nodes, the last `multiplier` concatenated.

    Every node is ``h_t = sum_e g_e sum_o p_eo op_eo(h_source(e))`` (DARTS, eq. 1 and 2; g as in
    PC-DARTS). Constructor, `forward` and state dict keys are those of DARTS-family code.

    Args:
        steps: number of intermediate nodes.
        multiplier: how many nodes, counted from the last, make the output.
        C_prev_prev: channels of the first input.
        C_prev: channels of the second.
        C: channels of a node.
        reduction: whether edges that leave the inputs have stride 2.
        reduction_prev: whether the cell before this one was a reduction cell.
        primitives: see `MixedOp`.
        partial_channels: see `MixedOp`.

    Raises:
        UserError: partial_channels does not divide C, an operation is unknown, or a single channel
            is left for a skip connection that reduces.
    """

    __constants__ = ("reduction", "_steps", "_multiplier")

    def __init__(  # noqa: PLR0917 - the order of DARTS-family code
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        *,
        primitives: Sequence[str] = DARTS_PRIMITIVES,
        partial_channels: int = 1,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0: nn.Module
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier
        self._ops = nn.ModuleList(
            MixedOp(
                C,
                2 if reduction and source < 2 else 1,
                primitives=primitives,
                partial_channels=partial_channels,
            )
            for node in range(steps)
            for source in range(2 + node)
        )

    def forward(
        self,
        s0: Tensor,
        s1: Tensor,
        weights: Tensor | Mixture,
        weights2: Tensor | None = None,
    ) -> Tensor:
        """Output of the cell, (N, multiplier * C, H', W'): of s1's size, or half of it, rounded up.

        Args:
            s0: output of the last cell but one, (N, C_prev_prev, H, W), or twice as high and wide
                as s1 behind a reduction cell.
            s1: output of the last cell, (N, C_prev, H, W).
            weights: p, (edges, operations), or a whole `Mixture`.
            weights2: g, (edges,), as in PC-DARTS; without it every edge counts 1.

        Raises:
            UserError: inside `use_backend` with a fused backend, where that cannot run.
        """
        mixture = weights if isinstance(weights, Mixture) else Mixture(weights, weights2)
        fused = self.fused([s0, s1], *mixture)
        if fused is not None:
            return fused
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        run_nodes(self._ops, states, mixture, self._steps)
        return torch.cat(states[-self._multiplier :], dim=1)

    def recognize(self) -> Recognized | str:
        """See `CellModule`."""
        return recognize(
            (self.preprocess0, self.preprocess1),
            list(self._ops),
            edge_type=MixedOp,
            reduction=self.reduction,
            nodes=self._steps,
            outputs=self._multiplier,
        )


def run_nodes(edges: nn.ModuleList, states: list[Tensor], mixture: Mixture, steps: int) -> None:
    """Append `steps` nodes, (N, C, H', W') each, to `states`, each fed by every state before it."""
    start = 0
    for _ in range(steps):
        stop = start + len(states)
        rows = slice(start, stop)
        g, active = mixture.edge_weights, mixture.active
        node_mixture = Mixture(
            mixture.weights[rows],
            None if g is None else g[rows],
            None if active is None else active[rows],
        )
        states.append(node_sum(list(edges[rows]), states, node_mixture))  # type: ignore[arg-type]
        start = stop
