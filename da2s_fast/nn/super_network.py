"""Super-networks: all candidates on all edges, in the macro layouts of DARTS and NAS-Bench-201."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from da2s_fast.errors import UserError
from da2s_fast.nn.architecture import ArchitectureParameters
from da2s_fast.nn.cell import Cell, Mixture, run_nodes
from da2s_fast.nn.conv_norm import ConvNormSequential
from da2s_fast.nn.engine import CellModule
from da2s_fast.nn.mixed_op import MixedOp
from da2s_fast.nn.recognize import Recognized, recognize
from da2s_fast.nn.stem import cifar_stem, imagenet_stems
from da2s_fast.ops.cell.memory import MemoryChoice
from da2s_fast.ops.cell.operator import HAS_CPU_KERNEL

IMAGENET_SIZE = 128
"""Images from this height on go through the ImageNet stem, which divides it by 8."""


class _SuperNetwork(nn.Module):
    """What both layouts share: architecture parameters beside, not among, the weights.

    Attributes:
        architecture: alpha and beta.
        memory_format: layout in which the images, and with them all activations, are computed;
            it changes speed, not results beyond rounding. None takes the fastest: channels_last
            where compiled cells compute, contiguous elsewhere.
    """

    memory_format: torch.memory_format | None = None
    _memory: MemoryChoice = "auto"

    def __init__(self, architecture: ArchitectureParameters) -> None:
        super().__init__()
        self.architecture = architecture

    def laid_out(self, x: Tensor) -> Tensor:
        """The images in the layout to compute in, (N, C, H, W)."""
        layout = self.memory_format
        if layout is None:
            fused = HAS_CPU_KERNEL if x.device.type == "cpu" else x.is_cuda
            layout = torch.channels_last if fused else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    @property
    def memory(self) -> MemoryChoice:
        """What the cells keep for the backward pass, see `MemoryChoice`; "auto" at first."""
        return self._memory

    @memory.setter
    def memory(self, choice: MemoryChoice) -> None:
        self._memory = choice
        for cell in self.modules():
            if isinstance(cell, Cell | DenseCell):
                cell.memory = choice

    def weights(self) -> list[nn.Parameter]:
        """The network's own parameters, for the weight optimizer."""
        return list(self.parameters())

    def arch_parameters(self) -> list[Tensor]:
        """Alpha of every cell kind, then beta."""
        return self.architecture.parameters()

    def mixtures(self) -> dict[str, Mixture]:
        """The current mixture of every cell kind."""
        return {kind: self.architecture.mixture(kind) for kind in self.architecture.kinds}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _SuperNetwork:
        # `.to()`, `.cuda()`, `.double()`, ... must move alpha and beta along.
        self.architecture.apply(fn)
        return super()._apply(fn, recurse)


class SuperNetwork(_SuperNetwork):
    """DARTS's search network: stem, L cells of which two reduce, pooling, classifier.

    State dict keys are those of DARTS's `Network` (Liu et al. 2019, section 3.1).

    Args:
        channels: C of the first cells.
        num_classes: outputs.
        cells: L; cells L//3 and 2L//3 are reduction cells.
        architecture: parameters with the kinds "normal" and "reduce".
        primitives: candidate operations, see `MixedOp`.
        nodes: intermediate nodes per cell, all of them concatenated.
        in_channels: channels of the images.
        image_size: height of the images; from 128 on the ImageNet stem is used.
        partial_channels: K of PC-DARTS, 1 to mix all channels.

    Raises:
        UserError: sizes that do not fit together, or an operation that is unknown.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        cells: int,
        architecture: ArchitectureParameters,
        *,
        primitives: Sequence[str],
        nodes: int = 4,
        in_channels: int = 3,
        image_size: int = 32,
        partial_channels: int = 1,
    ) -> None:
        super().__init__(architecture)
        _check_channels(channels, partial_channels)
        reduction_prev = image_size >= IMAGENET_SIZE
        if reduction_prev:
            self.stem0, self.stem1 = imagenet_stems(in_channels, channels)
            previous = [channels, channels]
        else:
            self.stem = cifar_stem(in_channels, 3 * channels)
            previous = [3 * channels, 3 * channels]
        self.cells = nn.ModuleList()
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            self.cells.append(
                Cell(
                    nodes,
                    nodes,
                    previous[0],
                    previous[1],
                    channels,
                    reduction,
                    reduction_prev,
                    primitives=primitives,
                    partial_channels=partial_channels,
                )
            )
            reduction_prev = reduction
            previous = [previous[1], nodes * channels]
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous[1], num_classes)

    def forward(self, x: Tensor, mixtures: Mapping[str, Mixture] | None = None) -> Tensor:
        """Class scores, (N, num_classes).

        Args:
            x: images, (N, in_channels, H, W).
            mixtures: replaces the current mixture of each cell kind (a cut network, say).
        """
        mixtures = self.mixtures() if mixtures is None else mixtures
        x = self.laid_out(x)
        if hasattr(self, "stem"):
            s0 = s1 = self.stem(x)
        else:
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, mixtures["reduce" if cell.reduction else "normal"])
        return self.classifier(self.global_pooling(s1).flatten(1))


class DenseCell(CellModule):
    """NAS-Bench-201's cell: one input, every node fed by all before it, the last is the output.

    Args:
        channels: C, of the input and of every node.
        nodes: how many nodes, 3 in NAS-Bench-201.
        primitives: see `MixedOp`; no BatchNorm follows pools.
        partial_channels: see `MixedOp`.

    Raises:
        UserError: as for `MixedOp`.
    """

    __constants__ = ("_steps",)

    def __init__(
        self, channels: int, nodes: int, *, primitives: Sequence[str], partial_channels: int = 1
    ) -> None:
        super().__init__()
        self._steps = nodes
        self._ops = nn.ModuleList(
            MixedOp(
                channels,
                1,
                primitives=primitives,
                partial_channels=partial_channels,
                pool_norm=False,
            )
            for node in range(nodes)
            for _ in range(1 + node)
        )

    def forward(self, x: Tensor, mixture: Mixture) -> Tensor:
        """Output of the cell, (N, C, H, W), of an input of that shape.

        Raises:
            UserError: inside `use_backend` with a fused backend, where that cannot run.
        """
        fused = self.fused([x], *mixture)
        if fused is not None:
            return fused
        states = [x]
        run_nodes(self._ops, states, mixture, self._steps)
        return states[-1]

    def recognize(self) -> Recognized | str:
        """See `CellModule`."""
        return recognize(
            (), list(self._ops), edge_type=MixedOp, reduction=False, nodes=self._steps, outputs=1
        )


class ResidualBlock(nn.Module):
    """Halves the resolution and changes the channels between stages (NAS-Bench-201)."""

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        self.branch = ConvNormSequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
            nn.ReLU(),
            nn.Conv2d(C_out, C_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )
        # ceil_mode lets odd sizes meet the convolution's; even sizes are unchanged by it.
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(C_in, C_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, ceil(H / 2), ceil(W / 2))."""
        return self.branch(x) + self.shortcut(x)


class NasBench201SuperNetwork(_SuperNetwork):
    """NAS-Bench-201's search network: three stages of N cells, residual blocks between them.

    The macro layout of Dong and Yang 2020, figure 1, with all candidates on all edges.

    Args:
        channels: C of the first stage; doubled by each residual block.
        num_classes: outputs.
        cells: N, cells per stage.
        architecture: parameters with the kind "normal".
        primitives: as for `SuperNetwork`.
        nodes: likewise.
        in_channels: likewise.
        partial_channels: likewise.

    Raises:
        UserError: sizes that do not fit together, or an operation that is unknown.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        cells: int,
        architecture: ArchitectureParameters,
        *,
        primitives: Sequence[str],
        nodes: int = 3,
        in_channels: int = 3,
        partial_channels: int = 1,
    ) -> None:
        super().__init__(architecture)
        _check_channels(channels, partial_channels)
        self.stem = cifar_stem(in_channels, channels)
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            for _ in range(cells):
                self.cells.append(
                    DenseCell(
                        channels, nodes, primitives=primitives, partial_channels=partial_channels
                    )
                )
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, mixtures: Mapping[str, Mixture] | None = None) -> Tensor:
        """Class scores, (N, num_classes), of images (N, in_channels, H, W)."""
        mixtures = self.mixtures() if mixtures is None else mixtures
        x = self.stem(self.laid_out(x))
        for cell in self.cells:
            x = cell(x, mixtures["normal"]) if isinstance(cell, DenseCell) else cell(x)
        return self.classifier(torch.flatten(self.global_pooling(self.lastact(x)), 1))


def _check_channels(channels: int, partial_channels: int) -> None:
    if partial_channels < 1 or channels % partial_channels or channels // partial_channels < 2:
        raise UserError(
            f"channels={channels} cannot be split by partial_channels={partial_channels}; choose "
            "channels that are a multiple of it and at least twice as many"
        )
