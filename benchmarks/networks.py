"""The super-networks, of eager PyTorch and of ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks import eager, traffic
from benchmarks.cases import Row, set_memory
from benchmarks.subject import CLASSES, Subject, Wanted, initialize
from da2s_fast.nn import (
    ArchitectureParameters,
    Mixture,
    NasBench201SuperNetwork,
    SuperNetwork,
)
from da2s_fast.nn.super_network import IMAGENET_SIZE, DenseCell, ResidualBlock
from da2s_fast.spaces import get_space
from tests.nn import reference


@dataclass(frozen=True)
class SearchNetwork:
    """A super-network: DARTS's layout, or that of NAS-Bench-201.

    Attributes:
        space: name of the search space.
        method: "da2s", "pc-darts" or "darts", which decides how alpha and beta become weights.
        channels: C.
        cells: L, or N of NAS-Bench-201.
        partial_channels: K.
        image_size: height and width.
    """

    space: str
    method: str
    channels: int = 16
    cells: int = 8
    partial_channels: int = 1
    image_size: int = 32

    def subject(self, row: Row, device: str = "cpu") -> Subject:
        space, size = get_space(self.space), self.image_size
        arch = self._arch(device)
        ours = self._ours(row).to(device) if row.engine == "ours" else None
        network = ours or self._eager(row).to(device)
        initialize({**dict(network.named_parameters()), **arch})
        if ours:
            for own, tensor in zip(ours.arch_parameters(), arch.values(), strict=True):
                own.data = tensor
            arch = dict(zip(arch, ours.arch_parameters(), strict=True))

        def call(x: Tensor) -> Tensor:
            if ours:
                return ours(x)
            tensors, counts = list(arch.values()), space.edges_per_node
            return network(x, eager.mixtures(tensors, space.kinds, self.method, counts))

        return Subject(network, arch, call, (3, size, size), row.wanted, layout=row.layout)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        between = (reference.Residual, ResidualBlock)
        return [cell for cell in module.cells if not isinstance(cell, between)]  # type: ignore[union-attr]

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        if isinstance(part, DenseCell):
            x, p, *g = inputs
            return part(x, Mixture(p, g[0] if g else None))
        if isinstance(part, reference.DenseCell):
            x, p, *g = inputs
            return part(x, p, g[0] if g else None)
        return part(*inputs)

    def least_bytes(self, wanted: Wanted) -> int:
        return traffic.search_network(
            get_space(self.space),
            self.channels,
            self.cells,
            self.partial_channels,
            self.image_size,
            needs_weights=wanted != "architecture",
        )

    @property
    def _edge_mode(self) -> Literal["none", "softmax", "da2s"]:
        if get_space(self.space).macro == "nas-bench-201" or self.method == "darts":
            return "none"
        return "da2s" if self.method == "da2s" else "softmax"

    def _arch(self, device: str) -> dict[str, Tensor]:
        space = get_space(self.space)
        shape = (space.num_edges, len(space.primitives))
        arch = {f"alpha.{kind}": torch.empty(shape, device=device) for kind in space.kinds}
        if self._edge_mode != "none":
            arch |= {f"beta.{kind}": torch.empty(shape[0], device=device) for kind in space.kinds}
        return arch

    def _ours(self, row: Row) -> SuperNetwork | NasBench201SuperNetwork:
        space = get_space(self.space)
        architecture = ArchitectureParameters(
            space.kinds,
            space.edges_per_node,
            len(space.primitives),
            keep=space.keep_targets(),
            strengthen_operations=self.method == "da2s",
            edge_mode=self._edge_mode,
            noise=0,
            generator=torch.Generator(),
        )
        common = {"primitives": space.primitives, "partial_channels": self.partial_channels}
        sizes = (self.channels, CLASSES, self.cells, architecture)
        network: SuperNetwork | NasBench201SuperNetwork
        if space.macro == "nas-bench-201":
            network = NasBench201SuperNetwork(*sizes, **common)
        else:
            network = SuperNetwork(*sizes, image_size=self.image_size, **common)
        set_memory(network, row.memory)
        return network

    def _eager(self, row: Row) -> nn.Module:
        primitives = get_space(self.space).primitives
        sizes = (self.channels, CLASSES, self.cells, primitives)
        network: nn.Module
        if get_space(self.space).macro == "nas-bench-201":
            network = reference.NasBench201Network(*sizes, K=self.partial_channels)
        else:
            imagenet = self.image_size >= IMAGENET_SIZE
            network = reference.Network(*sizes, K=self.partial_channels, imagenet=imagenet)
        return eager.as_published(network).to(memory_format=row.layout)


DA2S = SearchNetwork("da2s", "da2s")
SHORT = replace(DA2S, cells=3)
PC_DARTS = SearchNetwork("darts", "pc-darts", partial_channels=4)
IMAGENET = SearchNetwork("darts", "pc-darts", partial_channels=4, image_size=224)
NAS_BENCH_201 = SearchNetwork("nas-bench-201", "da2s", cells=5)

TITLES = {
    DA2S: "DA2S super-network, C=16, L=8, 7 operations, 32x32",
    SHORT: "DA2S super-network, C=16, L=3, 7 operations, 32x32",
    PC_DARTS: "PC-DARTS super-network, C=16, L=8, 8 operations, partial channels K=4, 32x32",
    IMAGENET: "PC-DARTS super-network, C=16, L=8, 8 operations, partial channels K=4, 224x224",
    NAS_BENCH_201: "NAS-Bench-201 super-network, C=16, N=5, 5 operations, 32x32",
}
