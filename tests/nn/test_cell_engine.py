"""Cells computed by one operator: the numbers are those of the modules one by one."""

import copy
import itertools

import pytest
import torch
from torch import nn

from da2s_fast.errors import UserError
from da2s_fast.nn import MixedOp, Mixture, NasBench201SuperNetwork, use_backend
from da2s_fast.nn import engine as engine_module
from da2s_fast.search.architect import Architect
from tests.nn.cell_modules import BUILDERS, FEW, build, call, cell, compiled
from tests.nn.evaluate import assert_close, assert_equal_to_reference, evaluate, to_double
from tests.nn.test_super_network import NAS_BENCH_201, architecture, images, mixtures
from tests.nn.test_super_network import build as build_network

pytestmark = compiled
every = pytest.mark.parametrize("name", BUILDERS)


def fused(module, *tensors):
    """By the operator; raises where it cannot run."""
    with use_backend("cpu"):
        return call(module, *tensors)


def by_modules(module, *tensors):
    with use_backend("reference"):
        return call(module, *tensors)


@pytest.mark.parametrize("mode", ["train", "eval", "some frozen"])
@every
def test_equals_reference(name, mode):
    example = build(name)
    for module in (example.ours, example.theirs):
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in {"train": [], "eval": norms, "some frozen": norms[::3]}[mode]:
            norm.eval()
    assert_equal_to_reference(
        example.ours, example.theirs, fused, example.tensors(), reference_call=call
    )


@every
def test_equals_reference_for_a_single_image_in_channels_last(name):
    example = build(name)
    tensors = [
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        for x in example.tensors(images=1)
    ]
    ours = example.ours.to(memory_format=torch.channels_last)
    exact = [torch.float64]
    assert_equal_to_reference(
        ours, example.theirs, fused, tensors, reference_call=call, dtypes=exact
    )
    output = fused(ours, *tensors)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_half_precision_is_closer_to_the_truth_than_eager(name, dtype):
    example = build(name)
    example.theirs.load_state_dict(example.ours.state_dict())
    ours, theirs = example.ours.to(dtype), example.theirs.to(dtype)
    tensors = [tensor.to(dtype) for tensor in example.tensors()]
    exact = evaluate(copy.deepcopy(theirs).double(), call, to_double(tensors))
    eager, found = evaluate(theirs, call, tensors), evaluate(ours, fused, tensors)
    assert found.keys() == eager.keys()
    for key, value in eager.items():
        assert found[key].dtype == value.dtype
        error = (found[key].double() - exact[key]).norm()
        unit = torch.finfo(dtype).eps * exact[key].norm()
        assert error <= (value.double() - exact[key]).norm() + unit, key


@pytest.mark.parametrize("what", ["inputs", "p", "weights", "everything but inputs"])
@every
def test_only_the_gradients_asked_for(name, what):
    example = build(name)
    module, tensors = example.ours.double(), to_double(example.tensors())
    everything = evaluate(copy.deepcopy(module), fused, tensors)
    *inputs, p, _ = tensors
    module.requires_grad_("weights" in what or "but" in what)
    for x in inputs:
        x.requires_grad_(what == "inputs")
    p.requires_grad_(what == "p" or "but" in what)
    output = fused(module, *tensors)
    generator = torch.Generator().manual_seed(7)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64))
    named = {f"input{i}": tensor for i, tensor in enumerate(tensors)}
    named |= dict(module.named_parameters())
    found = {key: leaf.grad for key, leaf in named.items() if leaf.grad is not None}
    assert len(found) == sum(leaf.requires_grad for leaf in named.values()) > 0
    for key, value in found.items():
        torch.testing.assert_close(value, everything[key], rtol=1e-12, atol=1e-12)


@every
def test_used_twice_in_one_graph(name):
    example = build(name)

    def twice(how):
        def function(module, *tensors):
            *inputs, p, g = tensors
            return how(module, *tensors) * how(module, *inputs, p.flip(1), g)

        return function

    module, tensors = example.ours.double(), to_double(example.tensors())
    expected = evaluate(copy.deepcopy(module), twice(by_modules), tensors)
    assert_close(evaluate(module, twice(fused), tensors), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
@pytest.mark.parametrize("name", ["mixed op", "reduction cell after another, K=2", "dense cell"])
def test_special_values(name, value):
    """Buffers too are where eager has NaN and infinities; weights of exactly zero are as others."""
    example = build(name)
    module, tensors = example.ours.double(), to_double(example.tensors())
    if value == 0:
        tensors[-2][:, 1:] = 0
        tensors[-1][0] = 0
    else:
        tensors[-3][0, 1, 3, 3] = value
    expected = evaluate(copy.deepcopy(module), by_modules, tensors)
    found = evaluate(module, fused, tensors)
    for key, wanted in expected.items():
        # An infinite product of a mean may be NaN in one order of sums and infinite in another.
        assert torch.equal(found[key].isfinite(), wanted.isfinite()), key
        finite = wanted.isfinite()
        torch.testing.assert_close(found[key][finite], wanted[finite], rtol=1e-9, atol=1e-10)


ACTIVE = ((2,), (), (0, 3), (), (2, 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("reduction", "K"), [*itertools.product([False, True], [1, 2])])
def test_cut_cells(reduction, K, training):
    torch.manual_seed(0)
    example = cell(reduction, False, K)
    module, tensors = example.ours.double().train(training), to_double(example.tensors())

    def cut(how):
        def function(module, s0, s1, p, g):
            with use_backend(how):
                return module(s0, s1, Mixture(p, g, ACTIVE))

        return function

    expected = evaluate(copy.deepcopy(module), cut("reference"), tensors)
    found = evaluate(module, cut("cpu"), tensors)
    # By modules, what is not run gets no gradient at all.
    for key in found.keys() - expected.keys():
        assert not found.pop(key).any()
    assert_close(found, expected)


@pytest.mark.parametrize("active", [((9,),) * 5, ((-1,),) * 5, ((1, 1),) * 5, ((1,),) * 4])
def test_strange_cuts_are_left_to_the_modules(active):
    example = cell(False, False, 1)
    s0, s1, p, g = example.tensors()
    with pytest.raises(UserError, match="active operations"), use_backend("cpu"):
        example.ours(s0, s1, Mixture(p, g, active))


def test_a_node_without_operations_is_left_to_the_modules():
    example = cell(False, False, 1)
    s0, s1, p, g = example.tensors()
    with pytest.raises(UserError, match="a node has no active operation"), use_backend("cpu"):
        example.ours(s0, s1, Mixture(p, g, ((), (), (0,), (), ())))


@pytest.mark.parametrize("K", [1, 2])
def test_networks_of_nas_bench_201(K):
    torch.manual_seed(0)
    arch = architecture(NAS_BENCH_201, 3, "none", inputs=1)
    network = NasBench201SuperNetwork(
        4, 5, 1, arch, primitives=NAS_BENCH_201, partial_channels=K
    ).double()

    def scores(backend):
        def function(network, x):
            with use_backend(backend):
                return network(x)

        return function

    x = [images(13).double()]
    expected = evaluate(copy.deepcopy(network), scores("reference"), x)
    assert_close(evaluate(network, scores("cpu"), x), expected)


@pytest.mark.parametrize("method", ["darts", "pc-darts", "da2s"])
def test_super_networks_in_training(method):
    """Three steps of the weights: running statistics and gradients stay those of the modules."""
    ours, theirs = build_network(method, size=15)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.double(), theirs.double()
    given = mixtures(ours.arch_parameters(), method, ours.architecture.edges_per_node)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (ours, theirs)]
    for step in range(3):
        x = images(15).double() + step
        with use_backend("cpu"):
            losses = [ours(x).square().sum(), theirs(x, given).square().sum()]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            (0.01 * loss).backward(retain_graph=True)
            optimizer.step()
    expected = theirs.state_dict()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-7, atol=1e-9)


@every
def test_statistics_averaged_over_batches(name):
    """As they are re-estimated: without momentum, anew, one norm some batches ahead."""
    example = build(name)
    ours, theirs = example.ours.double(), example.theirs.double()
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        norms[-1].num_batches_tracked.fill_(5)
    with torch.no_grad():
        for seed in range(3):
            tensors = to_double(example.tensors(seed=seed))
            fused(ours, *tensors)
            call(theirs, *tensors)
    expected = dict(theirs.named_buffers())
    for key, value in ours.named_buffers():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10)


def test_second_order_search():
    results = []
    for backend in ("cpu", "reference"):
        network, _ = build_network()
        network = network.double()
        optimizer = torch.optim.SGD(network.weights(), 0.05, momentum=0.9, weight_decay=1e-3)
        batches = [(images(8).double() + shift, torch.tensor([0, 3, 4])) for shift in (0, 1)]
        with use_backend(backend):
            loss = Architect(network, torch.enable_grad).second_order(
                *batches, lambda: torch.zeros(()), optimizer
            )
        results.append([loss, *(parameter.grad for parameter in network.arch_parameters())])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-8)


def test_modules_can_be_differentiated_twice_by_reference():
    example = build("mixed op")
    module = example.ours.double()
    x, p, _ = to_double(example.tensors())
    p.requires_grad_()
    with use_backend("reference"):
        (grad,) = torch.autograd.grad(module(x, p[0]).sin().sum(), p, create_graph=True)
    grad.square().sum().backward()
    assert p.grad.abs().max() > 0
    (grad,) = torch.autograd.grad(module(x, p[0]).sin().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="use_backend"):
        grad.sum().backward()


def test_memory_is_chosen_for_a_whole_network():
    network, _ = build_network()
    assert network.memory == "auto"

    def saved(choice):
        network.memory = choice
        assert network.memory == choice
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: numbers.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            network(images(8))
        return sum(numbers)

    assert saved("recompute") < saved("save")


def test_modules_in_other_peoples_networks_choose_for_themselves(monkeypatch):
    module = MixedOp(4, 1, primitives=FEW)
    asked = []
    inner = engine_module.run
    monkeypatch.setattr(engine_module, "run", lambda *args: asked.append(args[-1]) or inner(*args))
    x, p = torch.randn(2, 4, 5, 5), torch.rand(5)
    module(x, p)
    module.memory = "recompute"
    module(x, p)
    assert asked == ["auto", "recompute"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_layouts_of_networks(channels_last):
    network, _ = build_network("pc-darts")
    network = network.double()
    expected = network(images(8).double())
    network.memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with use_backend("cpu"):
        torch.testing.assert_close(network(images(8).double()), expected, rtol=1e-9, atol=1e-10)


def test_exported_programs_are_free_of_it():
    from torch.export import export  # noqa: PLC0415 - slow to import

    example = build("dense cell")

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = example.ours

        def forward(self, x, p, g):
            return self.cell(x, Mixture(p, g))

    with use_backend("reference"):
        program = export(Whole().eval(), tuple(example.tensors()))
    assert "da2s_fast.cell" not in str(program.graph)
