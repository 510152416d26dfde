"""Inputs for mixed_sum, and everything that comes of them: output, gradients, buffers."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

NONE, BATCH, RUNNING, STATELESS, CUMULATIVE = "none", "batch", "running", "stateless", "cumulative"
Function = Callable[..., Tensor]


class Case(NamedTuple):
    inputs: list[Tensor]
    weights: Tensor
    norms: list[nn.Module | None]
    grad: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        norms = [n if n is None else copy.deepcopy(n).to(dtype) for n in self.norms]
        inputs = [y.to(dtype) for y in self.inputs]
        return Case(inputs, self.weights.to(dtype), norms, self.grad.to(dtype))


def make_norm(kind: str, dims: int, channels: int, dtype: torch.dtype) -> nn.Module | None:
    if kind == NONE:
        return None
    norm_class = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[dims]
    norm = norm_class(
        channels,
        eps=1e-5 if kind == BATCH else 1e-3,
        momentum=None if kind == CUMULATIVE else 0.3,
        affine=False,
        track_running_stats=kind != STATELESS,
    ).to(torch.float64 if dtype == torch.float64 else torch.float32)
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(3)
    return norm.eval() if kind == RUNNING else norm


def make_case(
    shape: Sequence[int],
    kinds: Sequence[str],
    dtype: torch.dtype = torch.float32,
    *,
    mean: float = 0.5,
    seed: int = 0,
) -> Case:
    torch.manual_seed(seed)
    inputs = [(torch.randn(tuple(shape)) * (k + 1) + mean).to(dtype) for k in range(len(kinds))]
    norms = [
        make_norm(kind, len(shape), shape[1], dtype) if kind != NONE else None for kind in kinds
    ]
    weights = torch.rand(len(kinds)).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return Case(inputs, weights, norms, torch.randn(tuple(shape)).to(dtype))


def evaluate(
    function: Function,
    case: Case,
    input_mask: Sequence[bool] | None = None,
    weights_mask: bool = True,
) -> dict[str, Tensor]:
    """Run function forward and backward; return its output, the gradients asked for, buffers."""
    mask = input_mask if input_mask is not None else [True] * len(case.inputs)
    inputs = [y.detach().requires_grad_(m) for y, m in zip(case.inputs, mask, strict=True)]
    weights = case.weights.detach().requires_grad_(weights_mask)
    norms = copy.deepcopy(case.norms)
    output = function(inputs, weights, norms)
    results = {"output": output.detach()}
    if output.requires_grad:
        output.backward(case.grad.to(output.dtype))
    leaves = {f"grad_inputs[{k}]": y for k, y in enumerate(inputs)} | {"grad_weights": weights}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            results[name] = leaf.grad
        else:
            assert leaf.grad is None
    for k, norm in enumerate(norms):
        if norm is not None:
            results |= {f"norms[{k}].{name}": b for name, b in norm.named_buffers()}
    return results


def by_formula(inputs: list[Tensor], weights: Tensor, norms: list[nn.Module | None]) -> Tensor:
    """Compute the sum from the definition of batch normalization, without PyTorch's modules."""
    output = torch.zeros_like(inputs[0])
    for y, w, norm in zip(inputs, weights, norms, strict=True):
        if norm is None:
            output = output + w * y
            continue
        dims = [d for d in range(y.dim()) if d != 1]
        shape = [1, -1] + [1] * (y.dim() - 2)
        mean, variance = y.mean(dims), y.var(dims, unbiased=False)
        if norm.training and norm.running_mean is not None:
            norm.num_batches_tracked += 1
            momentum = norm.momentum or 1 / norm.num_batches_tracked.item()
            unbiased = y.var(dims, unbiased=True)
            norm.running_mean += momentum * (mean.detach() - norm.running_mean)
            norm.running_var += momentum * (unbiased.detach() - norm.running_var)
        elif not norm.training and norm.running_mean is not None:
            mean, variance = norm.running_mean, norm.running_var
        normalized = (y - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
        output = output + w * normalized
    return output
