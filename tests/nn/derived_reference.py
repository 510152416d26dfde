"""Derived networks as plain functions of their state dicts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from da2s_fast.nn.topology import CellTopology


class Reference:
    """The networks as equations on a state dict, with batch or running statistics."""

    def __init__(self, network: torch.nn.Module):
        self.state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.training = network.training

    def norm(self, x: Tensor, key: str) -> Tensor:
        mean, var = (self.state[f"{key}.running_{kind}"] for kind in ("mean", "var"))
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scale = self.state[f"{key}.weight"] / torch.sqrt(var + 1e-5)
        x = x - mean[:, None, None]
        return x * scale[:, None, None] + self.state[f"{key}.bias"][:, None, None]

    def conv(self, x: Tensor, key: str, **arguments) -> Tensor:
        return F.conv2d(x, self.state[f"{key}.weight"], **arguments)

    def relu_conv_norm(self, x: Tensor, key: str) -> Tensor:
        pad = self.state[f"{key}.op.1.weight"].shape[-1] // 2
        return self.norm(self.conv(x.relu(), f"{key}.op.1", padding=pad), f"{key}.op.2")

    def separable(self, x: Tensor, key: str, first: int, stride: int, dilation: int) -> Tensor:
        size = self.state[f"{key}.op.{first + 1}.weight"].shape[-1]
        pad = (size - 1) * dilation // 2
        x = self.conv(
            x.relu(),
            f"{key}.op.{first + 1}",
            stride=stride,
            padding=pad,
            dilation=dilation,
            groups=x.shape[1],
        )
        return self.norm(self.conv(x, f"{key}.op.{first + 2}"), f"{key}.op.{first + 3}")

    def reduced(self, x: Tensor, key: str) -> Tensor:
        x = x.relu()
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        halves = (
            self.conv(x[:, :, ::2, ::2], f"{key}.conv_1"),
            self.conv(x[:, :, 1::2, 1::2], f"{key}.conv_2"),
        )
        return self.norm(torch.cat(halves, 1), f"{key}.bn")

    def operation(self, x: Tensor, name: str, key: str, stride: int) -> Tensor:
        kind = name.rpartition("_")[0]
        if name == "none":
            return torch.zeros_like(x[:, :, ::stride, ::stride])
        if name == "skip_connect":
            return x if stride == 1 else self.reduced(x, key)
        if kind == "max_pool":
            return F.max_pool2d(x, 3, stride, 1)
        if kind == "avg_pool":
            return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        if kind == "sep_conv":
            return self.separable(self.separable(x, key, 0, stride, 1), key, 4, 1, 1)
        if kind == "dil_conv":
            return self.separable(x, key, 0, stride, 2)
        if kind == "nor_conv":
            return self.relu_conv_norm(x, key)
        assert name == "conv_7x1_1x7"
        x = self.conv(x.relu(), f"{key}.1", stride=(1, stride), padding=(0, 3))
        return self.norm(self.conv(x, f"{key}.2", stride=(stride, 1), padding=(3, 0)), f"{key}.3")

    def cell(self, topology: CellTopology, states: list[Tensor], key: str, reduction: bool):
        index = 0
        for edges in topology.nodes:
            outputs = []
            for name, source in edges:
                stride = 2 if reduction and source < 2 else 1
                outputs.append(self.operation(states[source], name, f"{key}._ops.{index}", stride))
                index += 1
            states.append(torch.stack(outputs).sum(0))
        return torch.cat([states[state] for state in topology.concat], 1)

    def classified(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.state["classifier.weight"].T + self.state["classifier.bias"]

    def darts(self, x: Tensor, normal: CellTopology, reduce: CellTopology, cells: int):
        if "stem.0.weight" in self.state:
            s0 = s1 = self.norm(self.conv(x, "stem.0", padding=1), "stem.1")
            reduction = False
        else:
            x = self.norm(self.conv(x, "stem0.0", stride=2, padding=1), "stem0.1").relu()
            s0 = self.norm(self.conv(x, "stem0.3", stride=2, padding=1), "stem0.4")
            s1 = self.norm(self.conv(s0.relu(), "stem1.1", stride=2, padding=1), "stem1.2")
            reduction = True
        auxiliary = None
        for index in range(cells):
            key = f"cells.{index}"
            first = self.reduced if reduction else self.relu_conv_norm
            states = [
                first(s0, f"{key}.preprocess0"),
                self.relu_conv_norm(s1, f"{key}.preprocess1"),
            ]
            reduction = index in {cells // 3, 2 * cells // 3}
            s0, s1 = s1, self.cell(reduce if reduction else normal, states, key, reduction)
            if index == 2 * cells // 3:
                auxiliary = s1
        return self.classified(s1), auxiliary

    def nas_bench_201(self, x: Tensor, topology: CellTopology, cells: int) -> Tensor:
        x = self.norm(self.conv(x, "stem.0", padding=1), "stem.1")
        for index in range(3 * cells + 2):
            key = f"cells.{index}"
            if index not in {cells, 2 * cells + 1}:
                x = self.cell(topology, [x], key, reduction=False)
                continue
            y = self.conv(x.relu(), f"{key}.branch.1", stride=2, padding=1)
            y = self.norm(y, f"{key}.branch.2").relu()
            y = self.norm(self.conv(y, f"{key}.branch.4", padding=1), f"{key}.branch.5")
            pooled = F.avg_pool2d(x, 2, ceil_mode=True)
            x = y + self.conv(pooled, f"{key}.shortcut.1")
        return self.classified(self.norm(x, "lastact.0").relu())
