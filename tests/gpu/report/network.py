"""The whole super-network with the GPU's drivers, on CPU tensors: launches and calls of torch's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from da2s_fast.kernels.launch import CudaKernel, Launch, launched_by
from da2s_fast.nn import ArchitectureParameters, SuperNetwork
from da2s_fast.ops.cell.reference import Memory
from da2s_fast.ops.cell.triton import backward, forward
from da2s_fast.spaces.space import DA2S

CHANNELS, CELLS, SIDE, CLASSES = 16, 8, 32, 10
_OPERATORS = {"cell": forward.cell, "cell_backward": backward.cell_backward}
# They make a tensor without anything that runs on a GPU.
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_RENAMED = ("detach", "detach_", "_unsafe_view")


@dataclass
class Step:
    """One forward and backward pass.

    Attributes:
        launches: of kernels of ours, by name.
        calls: of torch's operators, views and allocations left out, by name.
        bytes: that these read and write, every tensor once per call.
    """

    launches: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    bytes: int = 0


def run_step(
    memory: Memory, start: Callable[[Launch], None], *, images: int = 1, side: int = SIDE
) -> Step:
    """Loss and all gradients of the network of DA2S; `start` gets what would be launched.

    Args:
        memory: of the cells.
        start: executes launches, or not: no driver looks at a number.
        images: batch size.
        side: height and width of the images, on which no count depends.
    """
    step = Step()

    def started(launch: Launch) -> None:
        step.launches[kernel_of(launch)] += 1
        start(launch)

    network = _network(memory)
    x = torch.randn(images, 3, side, side)
    classes = torch.zeros(images, dtype=torch.int64)
    with _on_drivers(step), launched_by(started), _Calls(step):
        loss = cross_entropy(network(x), classes)
        torch.autograd.grad(loss, [*network.parameters(), *network.arch_parameters()])
    return step


def _network(memory: Memory) -> SuperNetwork:
    torch.manual_seed(0)
    architecture = ArchitectureParameters(
        DA2S.kinds,
        DA2S.edges_per_node,
        len(DA2S.primitives),
        keep=DA2S.keep_targets(),
        strengthen_operations=True,
        edge_mode="da2s",
        noise=1e-3,
        generator=torch.Generator().manual_seed(0),
    )
    for parameter in architecture.parameters():
        parameter.requires_grad_()
    network = SuperNetwork(CHANNELS, CLASSES, CELLS, architecture, primitives=DA2S.primitives)
    network.memory = memory
    # As on GPUs: contiguous, and the stem module by module.
    network.memory_format = torch.contiguous_format
    network.stem = nn.Sequential(*network.stem)
    return network


def kernel_of(launch: Launch) -> str:
    """The name of what is launched."""
    kernel = launch.kernel
    return kernel.name if isinstance(kernel, CudaKernel) else kernel.__name__


class _Calls(TorchDispatchMode):
    """Counts operators that run kernels of torch's."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **kwargs or {})
        name = function.overloadpacket.__name__
        ours = function.namespace == "da2s_fast" and name in _OPERATORS
        if not (function.is_view or name in (*_EMPTY, *_RENAMED) or ours):
            self.step.calls[str(function.overloadpacket)] += 1
            self.step.bytes += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, found))
                if isinstance(leaf, Tensor)
            )
        return found


@contextmanager
def _on_drivers(step: Step) -> Iterator[None]:
    """Cells of CPU tensors run on the GPU's drivers, whose own calls of torch's count as well."""

    def counted(driver: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with _Calls(step):
                return driver(*arguments)

        return run

    with torch.library._scoped_library("da2s_fast", "IMPL") as library:
        for operator, driver in _OPERATORS.items():
            library.impl(operator, counted(driver), "CPU", allow_override=True)
        yield
