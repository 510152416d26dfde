"""Cutting a super-network to one architecture (DA2S, sec. 3.1), and how discrete it is before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from da2s_fast.nn import ArchitectureParameters, Mixture
from da2s_fast.nn.topology import CellTopology, Edge
from da2s_fast.ops import edge_strength
from da2s_fast.spaces import Genotype, SearchSpace

DISCRETE_P = 0.9
"""A super-network is discrete when every operation that is kept has a weight above this..."""
DISCRETE_BETA = 0.95
"""... and the mean of min(beta, 1) over its kept edges is at least this. Adam keeps every beta
moving around 1 by its step, so that the mean ends a little below."""


@dataclass(frozen=True)
class Discretization:
    """The architecture a super-network is cut to."""

    genotype: Genotype
    mixtures: Mapping[str, Mixture]
    """What turns the super-network into the cut network: p = 1 for the kept operations, g as the
    kept edges would have it when all others are gone; the weights stay untouched."""
    mean_max_p: float
    """Mean over all edges of the largest operation weight; 1 when discrete."""
    kept_p: float
    """Smallest operation weight p among the operations that are kept: one edge that has not decided
    is enough for a gap, and a mean would hide it."""
    kept_beta: float | None
    """Mean over the kept edges that beta weighs of min(beta, 1); None without DA2S's betas."""
    skip_fraction: float
    """Share of skip connections among the kept edges of the normal cell."""


def discretize(architecture: ArchitectureParameters, space: SearchSpace) -> Discretization:
    """Drop each node's weakest edges, keep the strongest operation of each kept edge.

    DA2S ranks edges by beta; DARTS by their strongest operation other than `none`; PC-DARTS by
    that times softmax(beta). Ties go to the earlier edge or operation. NAS-Bench-201 keeps every
    edge, and `none` may be an edge's strongest operation there.

    Args:
        architecture: alpha and beta, which stay as they are.
        space: names of the operations and wiring of the cells that they belong to.
    """
    topologies: dict[str, CellTopology] = {}
    mixtures: dict[str, Mixture] = {}
    kept_p = []
    for kind in architecture.kinds:
        with torch.no_grad():
            p = architecture.operation_weights(kind).cpu()
        allow_none = space.macro == "nas-bench-201"
        best = _strongest(p, space.primitives, allow_none)
        kept = _kept_edges(architecture, kind, p, best)
        topologies[kind] = _topology(space, kept, best)
        mixtures[kind] = _cut_mixture(architecture, kind, kept, best)
        kept_p.append(p[mixtures[kind].weights.cpu() == 1].min().item())
    genotype = Genotype(topologies["normal"], topologies.get("reduce"))
    chosen = [edge.operation for node in topologies["normal"].nodes for edge in node]
    with torch.no_grad():
        p_all = torch.cat([architecture.operation_weights(kind) for kind in architecture.kinds])
    return Discretization(
        genotype,
        mixtures,
        p_all.max(dim=1).values.mean().item(),
        min(kept_p),
        _kept_beta(architecture, mixtures),
        chosen.count("skip_connect") / len(chosen),
    )


def _strongest(p: Tensor, primitives: Sequence[str], allow_none: bool) -> list[int]:
    """Per edge the index of its strongest operation."""
    if "none" in primitives and not allow_none:
        p = p.clone()
        p[:, list(primitives).index("none")] = -1.0
    return p.argmax(dim=1).tolist()


def _kept_edges(
    architecture: ArchitectureParameters, kind: str, p: Tensor, best: list[int]
) -> list[list[int]]:
    """Per node the positions of its kept edges, ascending."""
    strength = p[torch.arange(len(best)), torch.tensor(best)]
    if architecture.edge_mode == "da2s":
        strength = architecture.betas[kind].detach().cpu()
    elif architecture.edge_mode == "softmax":
        weights = architecture.edge_weights(kind)
        assert weights is not None
        strength = strength * weights.detach().cpu()
    kept = []
    for node, values in enumerate(strength.split(architecture.edges_per_node)):
        order = torch.argsort(values, descending=True, stable=True).tolist()
        kept.append(sorted(order[: architecture.keep[kind][node]]))
    return kept


def _topology(space: SearchSpace, kept: list[list[int]], best: list[int]) -> CellTopology:
    nodes = []
    start = 0
    for count, positions in zip(space.edges_per_node, kept, strict=True):
        nodes.append(
            tuple(Edge(space.primitives[best[start + source]], source) for source in positions)
        )
        start += count
    states = range(space.inputs, space.inputs + space.nodes)
    concat = tuple(states) if space.macro == "darts" else (states[-1],)
    return CellTopology(tuple(nodes), concat, space.inputs)


def _cut_mixture(
    architecture: ArchitectureParameters, kind: str, kept: list[list[int]], best: list[int]
) -> Mixture:
    alpha = architecture.alphas[kind]
    weights = torch.zeros_like(alpha, requires_grad=False)
    active: list[tuple[int, ...]] = [()] * len(best)
    g = None if architecture.edge_mode == "none" else torch.zeros_like(weights[:, 0])
    start = 0
    for count, positions in zip(architecture.edges_per_node, kept, strict=True):
        edges = [start + position for position in positions]
        for edge in edges:
            weights[edge, best[edge]] = 1.0
            active[edge] = (best[edge],)
        if g is not None and architecture.edge_mode == "softmax":
            g[edges] = torch.softmax(architecture.betas[kind].detach()[edges], 0)
        elif g is not None:
            g[edges] = count / len(edges)
        start += count
    return Mixture(weights, g, tuple(active))


def _kept_beta(
    architecture: ArchitectureParameters, mixtures: Mapping[str, Mixture]
) -> float | None:
    if architecture.edge_mode != "da2s":
        return None
    values: list[Tensor] = []
    for kind, mixture in mixtures.items():
        assert mixture.active is not None
        start = 0
        beta = edge_strength(architecture.betas[kind].detach()).cpu()
        for node, count in enumerate(architecture.edges_per_node):
            if architecture.weighs_edges(kind, node):
                edges = [e for e in range(start, start + count) if mixture.active[e]]
                values.append(beta[edges])
            start += count
    return torch.cat(values).mean().item() if values else None
