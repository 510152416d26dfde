"""One bundle's backward pass, in three stages.

    1  S1, S2 of every z with its node's gradient    | barrier; dL/dp and dL/dg are known here
    2  dz; dilated and dense convolutions down to ReLU; separable ones down to their inner norm,
       whose S1, S2 follow                           | barrier
    3  dz1; separable convolutions down to ReLU; through it to x; pools and skips

All candidates add into one dL/dx, in this order. ReLU, depthwise outputs and normalized z1 are
computed again instead of being kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from da2s_fast.ops.cell.bundle import Bundle, Key, Norms, known
from da2s_fast.ops.cell.convolutions import (
    bypass_backward,
    dense_backward,
    depthwise,
    depthwise_backward,
    factorized_reduce_backward,
    pointwise_backward,
    pool_backward,
    relu_backward,
)
from da2s_fast.ops.cell.norm import Statistics, Sums, gradient_sums, input_gradient, normalized
from da2s_fast.ops.cell.operations import CONVS, DENSE, NONE, POOLS, SKIP
from da2s_fast.ops.cell.plan import CellPlan


class BundleBackward:
    """Gradients of one bundle; `run` computes them.

    Args:
        plan: the cell.
        bundle: as its forward pass left it.
        weights: the cell's flat list.
        norms: the statistics the forward pass used.

    Attributes:
        state: dL/dstate, (N, C, H, W).
        weight_gradients: dL/dweight by position in the flat list.
        products: dL/d(g_e p_eo) of every candidate, 0-dim; dp and dg follow from it.
        bypassed: what the bypass adds to dL/dg of each edge, 0-dim.
    """

    def __init__(
        self, plan: CellPlan, bundle: Bundle, weights: Sequence[Tensor], norms: Norms
    ) -> None:
        self.plan, self.bundle, self.weights, self.norms = plan, bundle, weights, norms
        self.edges = plan.bundle(bundle.source)
        self.stride = self.edges[0].stride
        self.relu = bundle.x.relu()
        self.relu_gradient = torch.zeros_like(bundle.x)
        self.state = torch.zeros_like(bundle.x)
        self.weight_gradients: dict[int, Tensor] = {}
        self.products: dict[Key, Tensor] = {}
        self.bypassed: dict[int, Tensor] = {}

    def run(
        self, scale: Mapping[Key, Tensor], g: Tensor, node_gradients: Mapping[int, Tensor]
    ) -> None:
        """All three stages.

        Args:
            scale: g_e p_eo of every candidate, 0-dim.
            g: (edges,).
            node_gradients: dL/dh of every later node, (N, C, H', W'), by state.
        """
        # The shuffle put mixed channel c at position c * K of a node, bypassed ones between.
        k = self.plan.partial_channels
        mixed = {edge.row: node_gradients[edge.target][:, ::k] for edge in self.edges}
        sums = self._stage1(mixed)
        at_z = {
            key: scale[key] * self._at_last_norm(key, mixed[key[0]], sums) for key in self.bundle.z
        }
        self._stage3(self._stage2(at_z), at_z)
        if self.bundle.bypassed is not None:
            self._bypass(g, node_gradients)

    def _stage1(self, mixed: Mapping[int, Tensor]) -> dict[Key, Sums]:
        """Every candidate's sums; where there is no norm, a plain dot product."""
        sums: dict[Key, Sums] = {}
        for key, z in self.bundle.z.items():
            slot = self.plan.norm_slots[key]
            if slot.start < slot.stop:
                sums[key] = gradient_sums(mixed[key[0]], z, known(self.norms, slot.stop - 1))
                self.products[key] = sums[key].product.sum()
            else:
                self.products[key] = (mixed[key[0]] * z).sum()
        return sums

    def _at_last_norm(self, key: Key, gradient: Tensor, sums: Mapping[Key, Sums]) -> Tensor:
        if key not in sums:
            return gradient
        last = known(self.norms, self.plan.norm_slots[key].stop - 1)
        return input_gradient(gradient, self.bundle.z[key], last, sums[key])

    def _stage2(self, at_z: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Last layers; returns the gradients at the inner norms of separable convolutions."""
        inner: dict[Key, Tensor] = {}
        for key, gradient in at_z.items():
            operation = key[1]
            if self._is_plain(operation):
                continue
            if operation == SKIP:
                self._factorized_reduce(key, gradient)
            elif operation in DENSE:
                at = self.plan.weight_slots[key].start
                reached, self.weight_gradients[at] = dense_backward(
                    gradient, self.relu, self.weights[at], self.stride
                )
                self.relu_gradient += reached
            elif key in self.bundle.z1:
                middle = normalized(self.bundle.z1[key], self._first_norm(key))
                reached = self._convolution(key, gradient, middle.relu(), second_half=True)
                inner[key] = relu_backward(reached, middle)
            else:
                self.relu_gradient += self._convolution(key, gradient, self.relu)
        return inner

    def _is_plain(self, operation: str) -> bool:
        return operation in POOLS or operation == NONE or (operation == SKIP and self.stride == 1)

    def _stage3(self, inner: Mapping[Key, Tensor], at_z: Mapping[Key, Tensor]) -> None:
        """Separable convolutions from their inner norm to ReLU, and all of them to x; the rest."""
        for key, gradient in inner.items():
            z1, statistics = self.bundle.z1[key], self._first_norm(key)
            sums = gradient_sums(gradient, z1, statistics)
            dz1 = input_gradient(gradient, z1, statistics, sums)
            self.relu_gradient += self._convolution(key, dz1, self.relu)
        self.state += relu_backward(self.relu_gradient, self.bundle.x)
        pooled = {name: torch.zeros_like(out) for name, (out, _) in self.bundle.pools.items()}
        for (_, operation), gradient in at_z.items():
            if operation in POOLS:
                pooled[operation] += gradient
            elif operation == NONE:
                self.state[:, :, :: self.stride, :: self.stride] += gradient.mul(0.0)
            elif self._is_plain(operation):
                self.state += gradient
        for name, (_, indices) in self.bundle.pools.items():
            self.state += pool_backward(pooled[name], self.bundle.x, indices, self.stride)

    def _convolution(
        self, key: Key, gradient: Tensor, relu: Tensor, second_half: bool = False
    ) -> Tensor:
        """Pointwise and depthwise backward of one half; returns dL/drelu."""
        conv = CONVS[key[1]]
        stride = 1 if second_half else self.stride
        at = self.plan.weight_slots[key].start + 2 * second_half
        spatial, channel = self.weights[at], self.weights[at + 1]
        between = depthwise(relu, spatial, conv, stride)
        gradient, self.weight_gradients[at + 1] = pointwise_backward(gradient, between, channel)
        gradient, self.weight_gradients[at] = depthwise_backward(
            gradient, relu, spatial, conv, stride
        )
        return gradient

    def _factorized_reduce(self, key: Key, gradient: Tensor) -> None:
        slot = self.plan.weight_slots[key]
        first, second = self.weights[slot]
        found = factorized_reduce_backward(gradient, self.relu, first, second)
        self.relu_gradient += found[0]
        self.weight_gradients |= dict(zip(range(slot.start, slot.stop), found[1:], strict=True))

    def _bypass(self, g: Tensor, node_gradients: Mapping[int, Tensor]) -> None:
        assert self.bundle.bypassed is not None
        out, indices = self.bundle.bypassed
        total = torch.zeros_like(out)
        for edge in self.edges:
            part = _unshuffled_rest(node_gradients[edge.target], self.plan.partial_channels)
            self.bypassed[edge.row] = (part * out).sum()
            total += g[edge.row] * part
        self.state = torch.cat([self.state, bypass_backward(total, self.bundle.rest, indices)], 1)

    def _first_norm(self, key: Key) -> Statistics:
        return known(self.norms, self.plan.norm_slots[key].start)


def _unshuffled_rest(node: Tensor, groups: int) -> Tensor:
    """The bypassed channels of a node in the order of the state they came from.

    Node channel c * K + j is channel (j - 1) * C/K + c of the bypass, for j = 1 .. K - 1.
    """
    return node.unflatten(1, (-1, groups))[:, :, 1:].transpose(1, 2).flatten(1, 2)
