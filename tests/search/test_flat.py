"""Many tensors as one: the numbers of torch's own functions, which look at each."""

import copy

import pytest
import torch
from torch import nn

from da2s_fast.search.flat import all_finite, clip_gradients
from tests.conditions import with_threads


def gradients(scale: float) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = [(3,), (40, 700), (5, 1, 3, 3), (2, 4, 6, 6), (1,)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights[:-1]:
        weight.grad = scale * torch.randn_like(weight)
    weights[-2].grad = weights[-2].grad.contiguous(memory_format=torch.channels_last)
    # Neighbours in one buffer, as the cell's operator hands them out.
    flat = torch.randn(20)
    neighbours = [nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(12))]
    for weight, part in zip(neighbours, flat.split([8, 12]), strict=True):
        weight.grad = scale * part.view(weight.shape)
    return weights + neighbours


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_torchs(scale: float) -> None:
    mine = gradients(scale)
    theirs = copy.deepcopy(mine)
    for weight, twin in zip(mine, theirs, strict=True):
        twin.grad = None if weight.grad is None else weight.grad.clone()
    clip_gradients(mine, 5.0)
    torch.nn.utils.clip_grad_norm_(theirs, 5.0)
    for weight, twin in zip(mine, theirs, strict=True):
        assert (weight.grad is None) is (twin.grad is None)
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-6, atol=0)
            # Small gradients stay the same bits.
            assert scale > 1e-3 or torch.equal(weight.grad, twin.grad)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_clipping_keeps_nan_visible(value: float) -> None:
    weights = gradients(1.0)
    weights[0].grad[1] = value
    clip_gradients(weights, 5.0)
    assert weights[0].grad.isnan().any()


def test_clipping_does_not_depend_on_threads() -> None:
    def clipped() -> list[torch.Tensor]:
        weights = gradients(1.0)
        clip_gradients(weights, 5.0)
        return [w.grad for w in weights if w.grad is not None]

    found = with_threads(clipped)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_all_finite(value: float) -> None:
    tensors = [torch.randn(3, 2), torch.tensor(5), torch.randn(2).double()]
    assert all_finite(tensors)
    tensors[2][1] = value
    assert not all_finite(tensors)
