"""A search on the GPU's kernels in Triton's interpreter: cells equal their modules one by one."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from da2s_fast.nn import use_backend
from da2s_fast.search.architect import Architect
from tests.nn.cell_modules import BUILDERS, build, call
from tests.nn.evaluate import assert_close, evaluate, to_double
from tests.nn.test_super_network import build as build_network
from tests.nn.test_super_network import images
from tests.ops.cell_cases import PLANS, make_case
from tests.ops.cell_cases import evaluate as evaluate_case

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# The interpreter's time goes into programs: cells with fewer candidates do for all of DARTS's.
NAMES = [name for name in BUILDERS if name != "cell of DARTS"]


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_modules_one_by_one(device, name):
    check_module(build(name))


@pytest.mark.parametrize(("frozen", "momentum"), [(1, 0.1), (3, None)], ids=["all", "some"])
def test_frozen_norms_and_other_momenta(device, frozen, momentum):
    """Every so many norms are in evaluation mode; running statistics as plain averages."""
    example = build("mixed op, stride 2, K=2")
    for module in (example.ours, example.theirs):
        for position, norm in enumerate(norms_of(module)):
            norm.train(position % frozen > 0)
            norm.momentum = momentum
    check_module(example)


def check_module(example):
    example.theirs.load_state_dict(example.ours.state_dict())
    tensors = to_double(example.tensors(images=2))
    with use_backend("triton"):
        found = evaluate(example.ours.double(), call, tensors)
    assert_close(found, evaluate(example.theirs.double(), call, tensors))


def test_the_function_chooses_and_differentiates(device):
    case = make_case(PLANS["cut"], (2, 5, 4), frozen="some").to(torch.float64)
    found = evaluate_case(case, partial(type(case).__call__, backend="triton"))
    assert_close(found, evaluate_case(case, backend="reference"))


def test_buffers_in_half_precision(device):
    """Running statistics are moved in the arithmetic's type, and rounded once."""
    example = build("mixed op")
    for norm in norms_of(example.ours):
        norm.half()
    wide = copy.deepcopy(example.ours).float()
    tensors = example.tensors(images=2)
    with use_backend("triton"):
        call(example.ours, *tensors)
        call(wide, *tensors)
    for norm, other in zip(norms_of(example.ours), norms_of(wide), strict=True):
        assert norm.running_var.dtype == torch.float16
        assert torch.equal(norm.running_mean, other.running_mean.half())
        assert torch.equal(norm.running_var, other.running_var.half())


def test_a_step_of_a_super_network(device):
    """Gradients of weights and of the architecture, and running statistics."""
    network, _ = build_network("pc-darts", size=6)
    network, batch = network.double(), (images(6, count=2).double(), torch.tensor([1, 3]))

    def step(network, backend):
        architect = Architect(network, lambda: torch.autocast("cpu", enabled=False))
        with use_backend(backend):
            loss = architect.loss(batch)
        loss.backward()
        parameters = [*network.weights(), *network.arch_parameters()]
        found = {str(i): parameter.grad for i, parameter in enumerate(parameters)}
        found |= {n: b for n, b in network.named_buffers() if b.is_floating_point()}
        return found | {"loss": loss.detach()}

    assert_close(step(copy.deepcopy(network), None), step(network, "reference"))
