"""Everything a module computes: output, gradients, buffers; and how exactly it must."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.ops.compare import assert_as_accurate


def evaluate(module: nn.Module, call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> dict:
    """Output of `call(module, *inputs)`, gradients of inputs and parameters, buffers after it."""
    module.zero_grad()
    leaves = [value.detach().clone(memory_format=torch.preserve_format) for value in inputs]
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point())
    output = call(module, *leaves)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    output.backward(grad.to(output))
    results = {"output": output.detach()}
    results |= {f"input{i}": leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}
    results |= {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    # Counters as floating point: they must be equal too, to the last digit.
    results |= {
        f"buffer {n}": b.clone() if b.is_floating_point() else b.double()
        for n, b in module.named_buffers()
    }
    return results


def to_double(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.double() if value.is_floating_point() else value for value in values]


def assert_equal_to_reference(
    ours: nn.Module,
    reference: nn.Module,
    call: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    reference_call: Callable[..., Tensor] | None = None,
) -> None:
    """Float64 to rounding, float32 as exact as eager PyTorch; keys of the state dicts alike.

    `reference` takes over the weights of `ours`; neither is changed otherwise.
    """
    reference_call = reference_call or call
    assert list(ours.state_dict()) == list(reference.state_dict())
    reference = copy.deepcopy(reference)
    reference.load_state_dict(ours.state_dict())
    wide_reference = copy.deepcopy(reference).double()
    exact = evaluate(wide_reference, reference_call, to_double(inputs))
    if torch.float64 in dtypes:
        results = evaluate(copy.deepcopy(ours).double(), call, to_double(inputs))
        assert_close(results, exact)
    if torch.float32 in dtypes:
        eager = evaluate(reference, reference_call, inputs)
        results = evaluate(copy.deepcopy(ours), call, inputs)
        # The rounding errors of a tensor of two numbers are luck: parameters count as one.
        names = [name for name, _ in ours.named_parameters()]
        assert_as_accurate(*(_join(values, names) for values in (results, eager, exact)))


def assert_close(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Float64 results of two orders of summation; statistics that are 0 may be 1e-17."""
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-10 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            results[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def _join(values: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    joined = dict(values)
    parameters = [joined.pop(name).flatten() for name in names if name in joined]
    return joined | ({"parameters": torch.cat(parameters)} if parameters else {})
