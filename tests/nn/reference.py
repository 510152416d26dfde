"""The DARTS family's networks in plain PyTorch, one term after the other: what ours must equal.

Nothing here comes from da2s_fast. Module names give the state dict keys of the public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mixtures = Mapping[str, tuple[Tensor, Tensor | None]]
"""Cell kind -> p (edges, operations) and g (edges,)."""


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def depthwise_separable(channels: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        norm(channels),
    ]


class Op(nn.Module):
    """Layers in an attribute named op."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Reduce(nn.Module):
    """Two pointwise convolutions, on pixels (0, 0), (0, 2), ... and on (1, 1), (1, 3), ..."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out - C_out // 2, 1, bias=False)
        self.bn = norm(C_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
        # Odd sizes have one pixel less in the second grid: zeros stand in for it.
        missing = [a - b for a, b in zip(even.shape[2:], odd.shape[2:], strict=True)]
        odd = F.pad(odd, (0, missing[1], 0, missing[0]))
        return self.bn(torch.cat([self.conv_1(even), self.conv_2(odd)], 1))


class Nothing(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :, :: self.stride, :: self.stride]


def conv_bn(C_in: int, C_out: int, kernel: int) -> Op:
    return Op(
        nn.ReLU(), nn.Conv2d(C_in, C_out, kernel, padding=kernel // 2, bias=False), norm(C_out)
    )


def operation(name: str, C: int, stride: int, pool_norm: bool) -> nn.Module:
    if name == "none":
        return Nothing(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else Reduce(C, C)
    kind, size = name.rsplit("_", 1)
    kernel = int(size[0])
    if kind == "max_pool":
        pool: nn.Module = nn.MaxPool2d(kernel, stride, kernel // 2)
    elif kind == "avg_pool":
        pool = nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
    elif kind == "sep_conv":
        first, second = (depthwise_separable(C, kernel, s, 1) for s in (stride, 1))
        return Op(*first, *second)
    elif kind == "dil_conv":
        return Op(*depthwise_separable(C, kernel, stride, 2))
    else:
        return conv_bn(C, C, kernel)
    return nn.Sequential(pool, norm(C)) if pool_norm else pool


class MixedOp(nn.Module):
    def __init__(
        self, C: int, stride: int, primitives: Sequence[str], K: int = 1, pool_norm: bool = True
    ) -> None:
        super().__init__()
        self.K, self.stride = K, stride
        self._ops = nn.ModuleList(operation(name, C // K, stride, pool_norm) for name in primitives)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        if self.K == 1:
            return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))
        C = x.shape[1]
        mixed, rest = x[:, : C // self.K], x[:, C // self.K :]
        mixed = sum(w * op(mixed) for w, op in zip(weights, self._ops, strict=True))
        if self.stride == 2:
            # The last window of an odd size is cut off at the border.
            pad = [size % 2 for size in rest.shape[2:]]
            rest = F.max_pool2d(F.pad(rest, (0, pad[1], 0, pad[0]), value=-torch.inf), 2)
        both = torch.cat([mixed, rest], 1)
        order = [(c % self.K) * (C // self.K) + c // self.K for c in range(C)]
        return both[:, order]


class Cell(nn.Module):
    def __init__(
        self,
        C_before: Sequence[int],
        C: int,
        *,
        reduction: bool,
        reduction_prev: bool,
        primitives: Sequence[str],
        nodes: int = 4,
        K: int = 1,
    ) -> None:
        super().__init__()
        self.nodes, self.kind = nodes, "reduce" if reduction else "normal"
        self.preprocess0 = Reduce(C_before[0], C) if reduction_prev else conv_bn(C_before[0], C, 1)
        self.preprocess1 = conv_bn(C_before[1], C, 1)
        self._ops = nn.ModuleList(
            MixedOp(C, 2 if reduction and source < 2 else 1, primitives, K)
            for node in range(nodes)
            for source in range(2 + node)
        )

    def forward(self, s0: Tensor, s1: Tensor, p: Tensor, g: Tensor | None = None) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        return torch.cat(add_nodes(self._ops, states, p, g, self.nodes)[2:], 1)


def add_nodes(
    edges: nn.ModuleList, states: list[Tensor], p: Tensor, g: Tensor | None, nodes: int
) -> list[Tensor]:
    edge = 0
    for _ in range(nodes):
        h = 0
        for x in list(states):
            y = edges[edge](x, p[edge])
            h = h + (y if g is None else g[edge] * y)
            edge += 1
        states.append(h)
    return states


class Network(nn.Module):
    """Stem, cells, classifier; the mixtures come with every call."""

    def __init__(
        self,
        C: int,
        classes: int,
        cells: int,
        primitives: Sequence[str],
        *,
        nodes: int = 4,
        C_in: int = 3,
        K: int = 1,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        if imagenet:
            self.stem0 = nn.Sequential(
                nn.Conv2d(C_in, C // 2, 3, 2, 1, bias=False),
                nn.BatchNorm2d(C // 2),
                nn.ReLU(),
                nn.Conv2d(C // 2, C, 3, 2, 1, bias=False),
                nn.BatchNorm2d(C),
            )
            self.stem1 = nn.Sequential(
                nn.ReLU(), nn.Conv2d(C, C, 3, 2, 1, bias=False), nn.BatchNorm2d(C)
            )
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(C_in, 3 * C, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * C)
            )
        before = [C, C] if imagenet else [3 * C, 3 * C]
        self.cells = nn.ModuleList()
        reduced = imagenet
        for index in range(cells):
            reduction = index in {cells // 3, 2 * cells // 3}
            C = 2 * C if reduction else C
            self.cells.append(
                Cell(
                    before,
                    C,
                    reduction=reduction,
                    reduction_prev=reduced,
                    primitives=primitives,
                    nodes=nodes,
                    K=K,
                )
            )
            before, reduced = [before[1], nodes * C], reduction
        self.classifier = nn.Linear(before[1], classes)

    def forward(self, x: Tensor, mixtures: Mixtures) -> Tensor:
        if hasattr(self, "stem"):
            s0 = s1 = self.stem(x)
        else:
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *mixtures[cell.kind])
        return self.classifier(s1.mean((2, 3)))


class DenseCell(nn.Module):
    """NAS-Bench-201's cell."""

    def __init__(self, C: int, primitives: Sequence[str], nodes: int, K: int) -> None:
        super().__init__()
        self.nodes = nodes
        edges = nodes * (nodes + 1) // 2
        self._ops = nn.ModuleList(MixedOp(C, 1, primitives, K, False) for _ in range(edges))

    def forward(self, x: Tensor, p: Tensor, g: Tensor | None) -> Tensor:
        return add_nodes(self._ops, [x], p, g, self.nodes)[-1]


class Residual(nn.Module):
    def __init__(self, C: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, 2 * C, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * C),
            nn.ReLU(),
            nn.Conv2d(2 * C, 2 * C, 3, 1, 1, bias=False),
            nn.BatchNorm2d(2 * C),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(C, 2 * C, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class NasBench201Network(nn.Module):
    """Three stages of cells, residual blocks between them; even sizes only."""

    def __init__(
        self,
        C: int,
        classes: int,
        cells: int,
        primitives: Sequence[str],
        *,
        nodes: int = 3,
        C_in: int = 3,
        K: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(C_in, C, 3, 1, 1, bias=False), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(Residual(C))
                C *= 2
            self.cells.extend(DenseCell(C, primitives, nodes, K) for _ in range(cells))
        self.lastact = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())
        self.classifier = nn.Linear(C, classes)

    def forward(self, x: Tensor, mixtures: Mixtures) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, *mixtures["normal"]) if isinstance(cell, DenseCell) else cell(x)
        return self.classifier(self.lastact(x).mean((2, 3)))


def strong(alpha: Tensor) -> Tensor:
    """s(alpha) of DA2S: twice alpha, cubed below -1."""
    x = 2 * alpha
    return torch.where(x < -1, x**3, x)


def edge_weights(beta: Tensor, counts: Sequence[int], mode: str, keep: Sequence[int]) -> Tensor:
    """The g of PC-DARTS (softmax) and of DA2S, (edges,)."""
    rows = []
    for node, b in enumerate(beta.split(list(counts))):
        if mode == "softmax":
            rows.append(b.exp() / b.exp().sum())
        elif node == 0 and keep[0] == counts[0]:
            rows.append(torch.ones_like(b))
        else:
            q = b.clamp(max=1).exp()
            rows.append(len(b) * q / q.sum())
    return torch.cat(rows)
