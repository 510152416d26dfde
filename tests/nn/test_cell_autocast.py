"""Cells under autocast: one operator, closer to the truth than the modules, in their types."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from da2s_fast.errors import UserError
from da2s_fast.nn import Mixture, NasBench201SuperNetwork, use_backend
from tests.conditions import compiled_whole
from tests.nn import cell_modules
from tests.nn.cell_modules import BUILDERS, NAS_BENCH_201, build, compiled
from tests.nn.evaluate import evaluate, to_double
from tests.nn.test_super_network import architecture, images
from tests.nn.test_super_network import build as build_network

pytestmark = compiled
LOW = [torch.bfloat16, torch.float16]
every = pytest.mark.parametrize("name", BUILDERS)


def call(module, *tensors):
    """A mixed operation without g, which would be a product of its own."""
    *inputs, p, _ = tensors
    return module(*inputs, p[0]) if len(p) == 1 else cell_modules.call(module, *tensors)


def autocast(function, dtype, backend=None):
    """The function, run forward and not backward under autocast, as torch recommends."""

    def inside(*arguments):
        with torch.autocast("cpu", dtype):
            if backend is None:
                return function(*arguments)
            with use_backend(backend):
                return function(*arguments)

    return inside


def assert_more_accurate(found, eager, exact):
    """Types as eager's, errors of whole tensors below twice eager's."""
    assert found.keys() == eager.keys()
    for key, value in eager.items():
        assert found[key].dtype == value.dtype, key
        error = (found[key].double() - exact[key]).norm()
        unit = torch.finfo(value.dtype).eps * exact[key].norm()
        assert error <= 2 * (value.double() - exact[key]).norm() + unit, key


@pytest.mark.parametrize("inputs", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
@every
def test_closer_to_the_truth_than_eager(name, dtype, inputs):
    example = build(name)
    example.theirs.load_state_dict(example.ours.state_dict())
    tensors = [x.to(inputs) if x.dim() == 4 else x for x in example.tensors()]
    exact = evaluate(copy.deepcopy(example.theirs).double(), call, to_double(tensors))
    eager = evaluate(example.theirs, autocast(call, dtype), tensors)
    found = evaluate(example.ours, autocast(call, dtype, "cpu"), tensors)
    assert_more_accurate(found, eager, exact)


def dense_network():
    torch.manual_seed(0)
    arch = architecture(NAS_BENCH_201, 3, "none", inputs=1)
    return NasBench201SuperNetwork(4, 5, 1, arch, primitives=NAS_BENCH_201)


NETWORKS = {
    "da2s": lambda: build_network("da2s")[0],
    "pc-darts": lambda: build_network("pc-darts")[0],
    "nas-bench-201": dense_network,
}


def learn(network, x):
    """Scores, gradients and buffers of one training step, each in one tensor."""
    arch, weights = network.arch_parameters(), network.weights()
    scores = network(x)
    with torch.autocast("cpu", enabled=False):
        loss = scores.to(torch.promote_types(scores.dtype, torch.float32)).square().sum()
        found = torch.autograd.grad(loss, [*arch, *weights])
    running = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    parts = {
        "scores": [scores.detach()],
        "architecture": found[: len(arch)],
        "weights": found[len(arch) :],
        "buffers": running,
    }
    return {key: torch.cat([t.flatten() for t in part]) for key, part in parts.items()}


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_closer_to_the_truth_than_eager(name, dtype):
    """In the median of some batches: the rounded signs of a whole network are luck."""
    ratios = {}
    for seed in range(5):
        x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        network = NETWORKS[name]()
        exact = learn(copy.deepcopy(network).double(), x.double())
        eager = autocast(learn, dtype, "reference")(copy.deepcopy(network), x)
        found = learn_by_cells(network, x, dtype)
        for key, value in eager.items():
            assert found[key].dtype == value.dtype
            error, allowed = ((t[key].double() - exact[key]).norm() for t in (found, eager))
            ratios.setdefault(key, []).append(error / allowed)
    for key, values in ratios.items():
        assert torch.stack(values).median() < 2, key


def learn_by_cells(network, x, dtype):
    """Asks of the cells alone that the operator runs: it does not know stems."""
    calls = []
    for module in network.cells:
        fused = getattr(module, "fused", None)
        if fused is not None:
            module.fused = lambda *args, fused=fused: calls.append(fused(*args)) or calls[-1]
    found = autocast(learn, dtype)(network, x)
    assert calls
    assert all(output is not None and output.dtype == dtype for output in calls)
    return found


CUTS = {
    "convolutions": ((3,), (), (4, 3), (), (3, 4), (3,)),
    "pools and skips": ((1,), (4,), (1,), (), (1, 4), (4,)),
    "some of each": ((1,), (), (3,), (3, 2), (), (2, 3)),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["cell", "reduction cell after another, K=2", "dense cell"])
def test_cut_cells_have_the_types_of_eager(name, cut):
    """In a dense cell the input stays wide until the first convolution."""
    example = build(name)
    *inputs, p, g = example.tensors()
    mixture = Mixture(p, g, CUTS[cut][: len(p)])
    types = [
        autocast(example.ours, torch.bfloat16, backend)(*inputs, mixture).dtype
        for backend in ("cpu", "reference")
    ]
    assert types[0] == types[1]


def test_types_that_autocast_leaves_alone():
    example = build("cell")
    module, tensors = example.ours.double(), to_double(example.tensors())
    expected = evaluate(copy.deepcopy(module), call, tensors)
    found = evaluate(module, autocast(call, torch.bfloat16, "cpu"), tensors)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_inputs_of_two_types():
    example = build("cell")
    s0, s1, p, g = example.tensors()
    outputs = [
        autocast(call, torch.bfloat16, backend)(example.ours, s0, s1.bfloat16(), p, g)
        for backend in ("cpu", "reference")
    ]
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)
    with pytest.raises(UserError, match="cannot run"), use_backend("cpu"):
        call(example.ours, s0, s1.bfloat16(), p, g)


@every
def test_disabled_autocast_changes_nothing(name):
    example = build(name)
    expected = evaluate(copy.deepcopy(example.ours), call, example.tensors())

    def disabled(*arguments):
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            return call(*arguments)

    found = evaluate(example.ours, disabled, example.tensors())
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("backward", [contextlib.nullcontext, lambda: torch.autocast("cpu")])
def test_the_gradient_may_be_taken_under_autocast_too(backward):
    results = []
    for context in (contextlib.nullcontext, backward):
        example = build("cell")
        s0, s1, p, g = example.tensors()
        with torch.autocast("cpu", torch.bfloat16):
            output = example.ours(s0.requires_grad_(), s1, p.requires_grad_(), g)
        leaves = [s0, p, *example.ours.parameters()]
        with context():
            results.append([output, *torch.autograd.grad(output.float().square().sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_compiled_without_a_graph_break():
    network, _ = build_network("pc-darts")
    twin, x = copy.deepcopy(network), images(8)
    scores = autocast(lambda network, x: network(x), torch.bfloat16)
    by_compiler = compiled_whole(scores)
    results = []
    with use_backend("cpu"):
        for function, module in ((by_compiler, twin), (scores, network)):
            found = function(module, x)
            leaves = [*module.arch_parameters(), *module.weights()]
            results.append([found, *torch.autograd.grad(found.float().square().sum(), leaves)])
    for mine, theirs in zip(*results, strict=True):
        # The compiler may keep the stem's and the classifier's numbers in another precision.
        assert mine.dtype == theirs.dtype
        largest = float(theirs.detach().abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05 * largest)


def test_statistics_stay_in_single_precision():
    network = NETWORKS["da2s"]()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_var.clone() for norm in norms]
    learn_by_cells(network, images(8), torch.bfloat16)
    for norm, old in zip(norms, before, strict=True):
        assert norm.running_var.dtype == torch.float32
        assert norm.num_batches_tracked == 1
        assert not torch.equal(norm.running_var, old)
