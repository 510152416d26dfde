"""A single mixed operation, and the derived network, of eager PyTorch and of ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import eager, traffic
from benchmarks.cases import Row, set_memory
from benchmarks.subject import CLASSES, Subject, Wanted, initialize
from da2s_fast.nn import DARTS_PRIMITIVES, MixedOp
from da2s_fast.nn.derived_cell import DerivedCell
from da2s_fast.nn.derived_network import DerivedNetwork
from tests.nn import reference
from tests.nn.test_derived_network import DARTS_V2_NORMAL, DARTS_V2_REDUCE


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
        module = module.to(device).to(memory_format=row.layout)
        p = torch.empty(len(DARTS_PRIMITIVES), device=device)
        initialize({**dict(module.named_parameters()), "alpha": p})
        p.copy_(p.softmax(0))
        image = (self.channels, self.image_size, self.image_size)

        def call(x: Tensor) -> Tensor:
            return module(x, p)

        return Subject(
            module, {"p": p}, call, image, row.wanted, input_gradient=True, layout=row.layout
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
            network = eager.unfused(network).to(memory_format=row.layout)
        network = network.to(device)
        initialize(dict(network.named_parameters()))
        image = (3, self.image_size, self.image_size)
        return Subject(network, {}, network.__call__, image, row.wanted, layout=row.layout)

    def parts(self, module: nn.Module) -> list[nn.Module]:
        return [cell for cell in module.modules() if isinstance(cell, DerivedCell)]

    def call_part(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        return part(*inputs)

    def least_bytes(self, wanted: Wanted) -> int:
        cells = (DARTS_V2_NORMAL, DARTS_V2_REDUCE)
        return traffic.derived_network(*cells, self.channels, self.cells, self.image_size)
