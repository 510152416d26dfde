"""Architecture parameters of a super-network and how they become mixing weights.

alpha (edges, operations) and beta (edges,) exist once per cell kind; all cells of a kind share
them. They are no `nn.Parameter`s of the network: a weight optimizer must not see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from da2s_fast.nn.cell import Mixture
from da2s_fast.ops import edge_strength, operation_strength

EdgeMode = Literal["none", "softmax", "da2s"]
"""none: g = 1 (DARTS). softmax: g = softmax(beta) over a node's edges (PC-DARTS). da2s: g =
(number of edges) * softmax(min(beta, 1)), and 1 at a first node that keeps all of its edges."""


class ArchitectureParameters:
    """alpha and beta of every cell kind.

    Args:
        kinds: names of the cell kinds, for example ("normal", "reduce").
        edges_per_node: number of edges that enter each intermediate node.
        num_operations: candidates per edge.
        keep: edges each node keeps after discretization, per kind.
        strengthen_operations: p = softmax(s(alpha)) as in DA2S instead of softmax(alpha).
        edge_mode: see `EdgeMode`.
        swap_edge_weights: feed each of two cell kinds the other's beta, as the authors' DA2S
            code does.
        noise: standard deviation of the initial alpha and beta around their start.
        generator: source of that noise.

    Attributes:
        alphas: by kind, (edges, operations), float32 until `apply` converts them.
        betas: by kind, (edges,), likewise; empty where `edge_mode` is "none".
    """

    def __init__(
        self,
        kinds: Sequence[str],
        edges_per_node: Sequence[int],
        num_operations: int,
        *,
        keep: Mapping[str, Sequence[int]],
        strengthen_operations: bool,
        edge_mode: EdgeMode,
        swap_edge_weights: bool = False,
        noise: float,
        generator: torch.Generator,
    ) -> None:
        self.kinds = tuple(kinds)
        self.edges_per_node = tuple(edges_per_node)
        self.keep = {kind: tuple(keep[kind]) for kind in self.kinds}
        self.strengthen_operations = strengthen_operations
        self.edge_mode = edge_mode
        self.swap_edge_weights = swap_edge_weights
        edges = sum(self.edges_per_node)
        self.alphas = {
            kind: noise * torch.randn(edges, num_operations, generator=generator)
            for kind in self.kinds
        }
        self.betas: dict[str, Tensor] = {}
        if edge_mode != "none":
            for kind in self.kinds:
                start = torch.zeros(edges)
                if edge_mode == "da2s":
                    # Every beta starts at the share of edges its node will keep.
                    start = torch.cat(
                        [
                            torch.full((count,), kept / count)
                            for count, kept in zip(
                                self.edges_per_node, self.keep[kind], strict=True
                            )
                        ]
                    )
                self.betas[kind] = start + noise * torch.randn(edges, generator=generator)
        for tensor in self.parameters():
            tensor.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """All alphas, then all betas, in the order of the kinds."""
        return [*self.alphas.values(), *self.betas.values()]

    def weighs_edges(self, kind: str, node: int) -> bool:
        """Whether the node's edges are weighed by beta at all."""
        if self.edge_mode == "da2s":
            return node > 0 or self.keep[kind][node] < self.edges_per_node[node]
        return self.edge_mode == "softmax"

    def operation_weights(self, kind: str) -> Tensor:
        """Weights p, (edges, operations), each row summing to 1 (DARTS, eq. 2)."""
        alpha = self.alphas[kind]
        return torch.softmax(operation_strength(alpha) if self.strengthen_operations else alpha, -1)

    def edge_weights(self, kind: str) -> Tensor | None:
        """Weights g, (edges,); None where every edge counts 1."""
        if self.edge_mode == "none":
            return None
        source = self._other(kind) if self.swap_edge_weights else kind
        weights = []
        for node, beta in enumerate(self.betas[source].split(self.edges_per_node)):
            if not self.weighs_edges(source, node):
                weights.append(torch.ones_like(beta))
            elif self.edge_mode == "softmax":
                weights.append(torch.softmax(beta, 0))
            else:
                weights.append(len(beta) * torch.softmax(edge_strength(beta), 0))
        return torch.cat(weights)

    def mixture(self, kind: str) -> Mixture:
        """Weights p and g of a cell kind, differentiable with respect to alpha and beta."""
        return Mixture(self.operation_weights(kind), self.edge_weights(kind))

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor's data and gradient by `function(data)`, as nn.Module.to does."""
        for tensor in self.parameters():
            tensor.data = function(tensor.data)
            if tensor.grad is not None:
                tensor.grad = function(tensor.grad)

    def state_dict(self) -> dict[str, Tensor]:
        """Detached copies, keyed alpha.<kind> and beta.<kind>."""
        return {key: value.detach().clone() for key, value in self._named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state_dict` returned; ValueError when keys or shapes differ."""
        own = self._named()
        if own.keys() != state.keys():
            raise ValueError(f"architecture state has {sorted(state)}, expected {sorted(own)}")
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise ValueError(
                    f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def _named(self) -> dict[str, Tensor]:
        named = {f"alpha.{kind}": value for kind, value in self.alphas.items()}
        return named | {f"beta.{kind}": value for kind, value in self.betas.items()}

    def _other(self, kind: str) -> str:
        first, second = self.kinds
        return second if kind == first else first
