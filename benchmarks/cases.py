"""The cases: what is built for a row of each table, by each engine.

Cases and rows are plain data, so that they can be sent to the process that measures a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from benchmarks import eager, traffic
from benchmarks.subject import CLASSES, Subject, Wanted, initialize
from da2s_fast.nn import (
    DARTS_PRIMITIVES,
    ArchitectureParameters,
    MixedOp,
    Mixture,
    NasBench201SuperNetwork,
    SuperNetwork,
)
from da2s_fast.nn.derived_cell import DerivedCell
from da2s_fast.nn.derived_network import DerivedNetwork
from da2s_fast.nn.super_network import DenseCell
from da2s_fast.spaces import get_space
from tests.nn import reference
from tests.nn.test_derived_network import DARTS_V2_NORMAL, DARTS_V2_REDUCE

Engine = Literal["eager", "ours"]


@dataclass(frozen=True)
class Row:
    """One row of a table: who computes, and how much of it."""

    name: str
    engine: Engine
    memory: str | None = None
    channels_last: bool = False
    wanted: Wanted = "all"


class Case(Protocol):
    """What is computed."""

    def subject(self, row: Row, device: str = "cpu") -> Subject:
        """Build what a row measures; all rows have the same weights."""

    def parts(self, module: nn.Module) -> list[nn.Module]:
        """The cells of a network, or whatever of it is compared in float32 on its own."""

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        """Run one of them, of either engine."""

    def least_bytes(self, wanted: Wanted) -> int:
        """What one step must move per image, see `cost`."""


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
        ours = row.engine == "ours"
        network = self._ours(row) if ours else self._eager(row)
        network = network.to(device)
        arch = self._arch(device)
        initialize({**dict(network.named_parameters()), **arch})
        if isinstance(network, (SuperNetwork, NasBench201SuperNetwork)):
            for own, tensor in zip(network.arch_parameters(), arch.values(), strict=True):
                own.data = tensor.data
            arch = dict(zip(arch, network.arch_parameters(), strict=True))
            call = network.forward
        else:
            space, tensors, rival = get_space(self.space), list(arch.values()), network

            def call(x: Tensor) -> Tensor:
                counts = space.edges_per_node
                return rival(x, eager.mixtures(tensors, space.kinds, self.method, counts))

        size = self.image_size
        layout = torch.channels_last if row.channels_last else torch.contiguous_format
        return Subject(network, arch, call, (3, size, size), row.wanted, layout=layout)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        residual = (reference.Residual,)
        cells = list(module.cells)  # type: ignore[arg-type]
        if isinstance(module, NasBench201SuperNetwork):
            return [cell for cell in cells if isinstance(cell, DenseCell)]
        return [cell for cell in cells if not isinstance(cell, residual)]

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        if isinstance(part, DenseCell):
            return part(inputs[0], Mixture(*inputs[1:]))
        if isinstance(part, reference.DenseCell):
            return part(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None)
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

    def _ours(self, row: Row) -> nn.Module:
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
        sizes = (self.channels, CLASSES, self.cells, architecture)
        more = {"primitives": space.primitives, "partial_channels": self.partial_channels}
        if space.macro == "nas-bench-201":
            network: nn.Module = NasBench201SuperNetwork(*sizes, **more)
        else:
            network = SuperNetwork(*sizes, **more, image_size=self.image_size)
        if row.channels_last:
            network.memory_format = torch.channels_last
        return set_memory(network, row.memory)

    def _eager(self, row: Row) -> nn.Module:
        space = get_space(self.space)
        build: type[nn.Module] = reference.Network
        if space.macro == "nas-bench-201":
            build = reference.NasBench201Network
        sizes = (self.channels, CLASSES, self.cells, space.primitives)
        network = eager.as_published(build(*sizes, K=self.partial_channels))
        return network.to(memory_format=torch.channels_last) if row.channels_last else network


@dataclass(frozen=True)
class Edge:
    """One MixedOp as a drop-in: the eight operations of DARTS."""

    channels: int
    stride: int
    image_size: int

    def subject(self, row: Row, device: str = "cpu") -> Subject:
        module: nn.Module
        if row.engine == "ours":
            module = set_memory(MixedOp(self.channels, self.stride), row.memory)
        else:
            edge = reference.MixedOp(self.channels, self.stride, DARTS_PRIMITIVES)
            module = eager.as_published(edge)
        layout = torch.channels_last if row.channels_last else torch.contiguous_format
        module = module.to(device, memory_format=layout)
        p = torch.empty(len(DARTS_PRIMITIVES), device=device)
        initialize({**dict(module.named_parameters()), "alpha": p})
        p.copy_(p.softmax(0))
        image = (self.channels, self.image_size, self.image_size)

        def call(x: Tensor) -> Tensor:
            return module(x, p)

        return Subject(
            module, {"p": p}, call, image, row.wanted, input_gradient=True, layout=layout
        )

    def parts(self, module: nn.Module) -> list[nn.Module]:
        return [module]

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        return part(*inputs)

    def least_bytes(self, wanted: Wanted) -> int:
        return traffic.mixed_op(DARTS_PRIMITIVES, self.channels, self.stride, self.image_size)


@dataclass(frozen=True)
class Derived:
    """The network of DARTS's published genotype, trained from scratch."""

    channels: int = 16
    cells: int = 8
    image_size: int = 32

    def subject(self, row: Row, device: str = "cpu") -> Subject:
        sizes = (self.channels, CLASSES, self.cells)
        network = DerivedNetwork(DARTS_V2_NORMAL, DARTS_V2_REDUCE, *sizes)
        if row.engine == "eager":
            network = eager.unfused(network)
        layout = torch.channels_last if row.channels_last else torch.contiguous_format
        if row.engine == "eager":
            network = network.to(memory_format=layout)
        network = network.to(device)
        initialize(dict(network.named_parameters()))
        size = self.image_size
        return Subject(network, {}, network.forward, (3, size, size), row.wanted, layout=layout)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        return [cell for cell in module.modules() if isinstance(cell, DerivedCell)]

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        return part(*inputs)

    def least_bytes(self, wanted: Wanted) -> int:
        cells = (DARTS_V2_NORMAL, DARTS_V2_REDUCE)
        return traffic.derived_network(*cells, self.channels, self.cells, self.image_size)


def set_memory(module: nn.Module, memory: str | None) -> nn.Module:
    """Choose between speed and memory, in every module that offers the choice."""
    if memory is not None:
        for part in module.modules():
            if hasattr(part, "memory"):
                part.memory = memory  # type: ignore[assignment]
    return module


def offers_memory(case: Case) -> bool:
    """Whether the library has a choice between saving and recomputing here."""
    module = case.subject(Row("", "ours")).module
    return any(hasattr(part, "memory") for part in module.modules())


EAGER = Row("eager", "eager")
EAGER_CHANNELS_LAST = Row("eager, channels_last", "eager", channels_last=True)


def our_rows(case: Case) -> list[Row]:
    """One row of ours per way of keeping memory."""
    if offers_memory(case):
        return [Row(f"ours, {memory}", "ours", memory) for memory in ("save", "recompute")]
    # What `da2s search` and `da2s retrain` choose on CPUs without the fused cell.
    last = isinstance(case, Derived) or getattr(case, "partial_channels", 4) == 1
    return [Row("ours", "ours", channels_last=last)]


def all_rows(case: Case) -> list[Row]:
    """Eager in both layouts, then ours."""
    return [EAGER, EAGER_CHANNELS_LAST, *our_rows(case)]


def half_steps(rows: Sequence[Row]) -> list[Row]:
    """Architecture step and weight step alone, of each of these rows."""
    halves: tuple[Wanted, Wanted] = ("architecture", "weights")
    names = {"architecture": "architecture step", "weights": "weight step"}
    return [
        replace(row, name=f"{row.name}, {names[half]}", wanted=half)
        for row in rows
        for half in halves
    ]
