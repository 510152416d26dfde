"""Derived networks: what a genotype looks like as a network of its own, ready to be trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from da2s_fast.errors import UserError
from da2s_fast.nn.auxiliary_head import AuxiliaryHead
from da2s_fast.nn.derived_cell import DerivedCell, DerivedDenseCell
from da2s_fast.nn.stem import cifar_stem, imagenet_stems
from da2s_fast.nn.super_network import ResidualBlock
from da2s_fast.nn.topology import CellTopology

STEMS = ("cifar", "imagenet")


class TrainingOutput(NamedTuple):
    """What a network with an auxiliary head returns in training mode, (N, num_classes) each."""

    logits: Tensor
    auxiliary_logits: Tensor


class DerivedNetwork(nn.Module):
    """DARTS's network for training: stem, L cells of which two reduce, pooling, classifier.

    State dict keys are those of DARTS's ``NetworkCIFAR`` (``NetworkImageNet`` with the ImageNet
    stem). The attribute ``drop_path_prob`` may be set between steps, 0 at first.

    Args:
        normal: the normal cell, with two inputs.
        reduce: the reduction cell, with two inputs.
        channels: C of the first cells; doubled by each reduction cell.
        num_classes: outputs.
        cells: L; cells L//3 and 2L//3 are reduction cells.
        in_channels: channels of the images.
        auxiliary: whether there is an auxiliary head after the second reduction cell.
        stem: ``"cifar"`` keeps the images' size; ``"imagenet"`` divides it by 8.

    Raises:
        UserError: cells or sizes that do not fit.
    """

    def __init__(
        self,
        normal: CellTopology,
        reduce: CellTopology,
        channels: int,
        num_classes: int,
        cells: int,
        *,
        in_channels: int = 3,
        auxiliary: bool = False,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        _check_sizes(channels=channels, num_classes=num_classes, cells=cells, images=in_channels)
        _check_inputs(normal, 2)
        _check_inputs(reduce, 2)
        if stem not in STEMS:
            raise UserError(f"unknown stem {stem!r}; choose 'cifar' or 'imagenet'")
        self.drop_path_prob = 0.0
        reduction_prev = stem == "imagenet"
        if reduction_prev:
            self.stem0, self.stem1 = imagenet_stems(in_channels, channels)
            previous = (channels, channels)
        else:
            self.stem = cifar_stem(in_channels, 3 * channels)
            previous = (3 * channels, 3 * channels)
        self.cells = nn.ModuleList()
        self._tapped = 2 * cells // 3
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            topology = reduce if reduction else normal
            self.cells.append(
                DerivedCell(
                    topology,
                    *previous,
                    channels,
                    reduction=reduction,
                    reduction_prev=reduction_prev,
                )
            )
            reduction_prev = reduction
            previous = (previous[1], len(topology.concat) * channels)
            if auxiliary and index == self._tapped:
                self.auxiliary_head = AuxiliaryHead(
                    previous[1], num_classes, last_norm=stem == "cifar"
                )
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(previous[1], num_classes)

    def forward(self, x: Tensor) -> Tensor | TrainingOutput:
        """Class scores, (N, num_classes), of images (N, in_channels, H, W).

        With an auxiliary head and in training mode: a :class:`TrainingOutput`.
        """
        if hasattr(self, "stem"):
            s0 = s1 = self.stem(x)
        else:
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        auxiliary_logits: Tensor | None = None
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if self.training and index == self._tapped and hasattr(self, "auxiliary_head"):
                auxiliary_logits = self.auxiliary_head(s1)
        logits = self.classifier(self.global_pooling(s1).flatten(1))
        return logits if auxiliary_logits is None else TrainingOutput(logits, auxiliary_logits)


class DerivedNasBench201Network(nn.Module):
    """NAS-Bench-201's network for training: three stages of N cells, pooling, classifier.

    A residual block between two stages halves the size and doubles the channels (Dong and Yang
    2020, figure 1).

    Args:
        cell: the cell, with one input and one node as output.
        channels: C of the first stage.
        num_classes: outputs.
        cells: N, cells per stage.
        in_channels: channels of the images.

    Raises:
        UserError: a cell or sizes that do not fit.
    """

    def __init__(
        self,
        cell: CellTopology,
        channels: int,
        num_classes: int,
        cells: int,
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check_sizes(channels=channels, num_classes=num_classes, cells=cells, images=in_channels)
        _check_inputs(cell, 1)
        if len(cell.concat) != 1:
            raise UserError(
                f"a NAS-Bench-201 cell has one node as output, but concat is {list(cell.concat)}"
            )
        self.drop_path_prob = 0.0
        self.stem = cifar_stem(in_channels, channels)
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            self.cells.extend(DerivedDenseCell(cell, channels) for _ in range(cells))
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, self.drop_path_prob) if isinstance(cell, DerivedDenseCell) else cell(x)
        return self.classifier(self.global_pooling(self.lastact(x)).flatten(1))


def _check_inputs(cell: CellTopology, inputs: int) -> None:
    if cell.inputs != inputs:
        raise UserError(f"the cell has {cell.inputs} input states, but this network feeds {inputs}")


def _check_sizes(*, channels: int, num_classes: int, cells: int, images: int) -> None:
    if channels < 2:
        raise UserError(f"channels is {channels}; a network needs 2 or more")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a classifier needs 1 or more")
    if cells < 1:
        raise UserError(f"cells is {cells}; a network needs 1 or more")
    if images < 1:
        raise UserError(f"in_channels is {images}; images have 1 channel or more")
