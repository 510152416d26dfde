"""A cell of a search on the compiled code of the GPU's kernels; `interpreted/` has more."""

import copy

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.nn import use_backend
from tests.gpu.test_cell import ONE_PLACE
from tests.nn.cell_modules import build, call
from tests.nn.evaluate import evaluate, to_double
from tests.ops.compare import assert_as_accurate


def results(module: nn.Module, tensors: list[Tensor], device: torch.device | str) -> dict:
    """Everything a copy of the module computes on a device, brought back."""
    moved = copy.deepcopy(module).to(device)
    found = evaluate(moved, call, [tensor.to(device) for tensor in tensors])
    return {name: value.cpu() for name, value in found.items()}


def together(found: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Gradients of parameters as one tensor: the rounding errors of two numbers are luck."""
    names = [name for name, _ in module.named_parameters()]
    return {
        **{name: value for name, value in found.items() if name not in names},
        "parameters": torch.cat([found[name].flatten() for name in names]),
    }


@ONE_PLACE
@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_a_cell_is_as_accurate_as_its_modules(device, low):
    example = build("cell")
    tensors = example.tensors(images=2)
    exact = results(copy.deepcopy(example.ours).double(), to_double(tensors), "cpu")
    with torch.autocast(device.type, low, enabled=low is not None):
        with use_backend("reference"):
            eager = results(example.ours, tensors, "cpu" if low is None else device)
        with use_backend("triton"):
            found = results(example.ours, tensors, device)
    assert found["output"].dtype == eager["output"].dtype == (low or torch.float32)
    assert_as_accurate(*(together(values, example.ours) for values in (found, eager, exact)))
