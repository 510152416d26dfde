"""The rivals: plain PyTorch, one module per candidate, as the public code of the DARTS family.

The networks are those of tests/nn/reference.py, which are written that way but for two places
where the public code crashes on odd sizes; here these places are as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.nn.derived_network import DerivedNetwork
from da2s_fast.nn.operations import NormalizedSequential
from tests.nn import reference

Net = TypeVar("Net", bound=nn.Module)


class FactorizedReduce(nn.Module):
    """Two strided convolutions, the second on the input shifted by a pixel."""

    def __init__(self, other: reference.Reduce) -> None:
        super().__init__()
        self.conv_1, self.conv_2, self.bn = other.conv_1, other.conv_2, other.bn
        self.conv_1.stride = self.conv_2.stride = (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class PartialMixedOp(nn.Module):
    """PC-DARTS: mix the first C/K channels, concatenate, shuffle."""

    def __init__(self, other: reference.MixedOp) -> None:
        super().__init__()
        self._ops, self.K, self.stride = other._ops, other.K, other.stride

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        channels = x.shape[1] // self.K
        mixed, rest = x[:, :channels], x[:, channels:]
        mixed = sum(w * op(mixed) for w, op in zip(weights, self._ops, strict=True))
        if self.stride == 2:
            rest = F.max_pool2d(rest, 2, 2)
        return self.shuffle(torch.cat([mixed, rest], dim=1))

    def shuffle(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        x = x.view(N, self.K, C // self.K, H, W)
        return torch.transpose(x, 1, 2).contiguous().view(N, C, H, W)


def as_published(network: Net) -> Net:
    """Put the published forms in place of the reference's, with the same weights."""
    for name, child in network.named_children():
        as_published(child)
        if isinstance(child, reference.Reduce):
            setattr(network, name, FactorizedReduce(child))
        elif isinstance(child, reference.MixedOp) and child.K > 1:
            setattr(network, name, PartialMixedOp(child))
    return network


def mixtures(
    arch: Sequence[Tensor], kinds: Sequence[str], method: str, edges_per_node: Sequence[int]
) -> reference.Mixtures:
    """Weights p and g of every cell kind, from alpha of every kind and then beta, if there is."""
    found = {}
    for row, kind in enumerate(kinds):
        alpha = reference.strong(arch[row]) if method == "da2s" else arch[row]
        g = None
        if len(arch) > len(kinds):
            beta, mode = arch[len(kinds) + row], "da2s" if method == "da2s" else "softmax"
            g = reference.edge_weights(beta, edges_per_node, mode, [2] * len(edges_per_node))
        found[kind] = (alpha.softmax(1), g)
    return found


def unfused(network: DerivedNetwork) -> DerivedNetwork:
    """Let every chain of layers call its modules one after the other."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is NormalizedSequential:
                setattr(module, name, nn.Sequential(*child))
    return network
