"""When one operator stands in for a cell's modules, and that every change of them is noticed."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from da2s_fast.errors import UserError
from da2s_fast.nn import OPERATIONS, Cell, MixedOp, use_backend
from da2s_fast.nn.engine import CellModule
from da2s_fast.nn.operations import Identity, ReLUConvBN, SepConv
from tests.nn.cell_modules import FEW, build, call, cell, compiled
from tests.nn.evaluate import assert_close, evaluate, to_double

pytestmark = compiled


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def every_norm(name, value):
    def change(module):
        for norm in norms(module):
            setattr(norm, name, value)

    return change


def one_norm(name, value):
    return lambda module: setattr(norms(module)[3], name, value)


def layer(path, name, value):
    return lambda module: setattr(module.get_submodule(path), name, value)


def replaced(path, make):
    def change(module):
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, make())

    return change


def hook(path, kind):
    def change(module):
        register = getattr(module.get_submodule(path), f"register_{kind}")
        if kind == "forward_hook":
            register(lambda module, args, output: output * 1.5)
        elif kind == "forward_pre_hook":
            register(lambda module, args: (args[0] * 1.5,))
        elif kind == "full_backward_hook":
            register(lambda module, grad_input, grad_output: (grad_input[0] * 1.5,))
        else:
            register(lambda module, grad_output: (grad_output[0] * 1.5,))

    return change


def own_forward(module):
    relu = module.get_submodule("_ops.1._ops.3.op.0")
    relu.forward = lambda x: x.abs()


class Doubled(SepConv):
    def forward(self, x):
        return 2 * super().forward(x)


def other_class(module):
    module._ops[1]._ops[3].__class__ = Doubled


class Quiet(MixedOp):
    def candidates(self, x, active=None):
        outputs, found = super().candidates(x, active)
        return [0.5 * y for y in outputs], found


def other_edge(module):
    module._ops[1].__class__ = Quiet


def shared_module(module):
    module._ops[1]._ops[3] = module._ops[0]._ops[3]


def weight_of(module, path):
    return module.get_submodule(path).weight


CONV, NORM = "_ops.1._ops.3.op.1", "_ops.1._ops.3.op.3"
POOL = "_ops.0._ops.1.0"
# What happens to a cell -> why the operator cannot stand in for it any more.
STOPS = {
    **{
        f"{kind} on {path}": (hook(path, kind), "hooks")
        for path in ("preprocess0", "preprocess1.op.1", "_ops.1._ops.3.op", CONV, NORM, POOL)
        for kind in ("forward_hook", "forward_pre_hook")
    },
    **{
        f"{kind} on {CONV}": (hook(CONV, kind), "hooks")
        for kind in ("full_backward_hook", "full_backward_pre_hook")
    },
    "a forward of one's own": (own_forward, "unknown or has hooks"),
    "another class": (other_class, "Doubled"),
    "another kind of edge": (other_edge, "edge 1"),
    "a shared module": (shared_module, "several places"),
    "another operation": (replaced("_ops.1._ops.3", nn.Tanh), "Tanh"),
    "an operation more": (
        lambda module: [edge._ops.append(Identity()) for edge in module._ops],
        "one of them twice",
    ),
    "different operations": (replaced("_ops.1._ops.3", Identity), "different operations"),
    "another preprocessing": (replaced("preprocess0", lambda: nn.Conv2d(6, 4, 1)), "preprocess0"),
    "affine preprocessing": (
        replaced("preprocess1", lambda: ReLUConvBN(5, 4, 1, 1, 0)),
        "preprocess1",
    ),
    "a layer more": (
        lambda module: module._ops[1]._ops[3].op.insert(1, nn.ReLU6()),
        "unknown or has hooks",
    ),
    "some cumulative averages": (one_norm("momentum", None), "momentum"),
    "one momentum": (one_norm("momentum", 0.3), "momentum"),
    "one eps": (one_norm("eps", 0.3), "eps"),
    "no running statistics": (every_norm("track_running_stats", False), "hooks"),
    "lost buffers": (lambda module: setattr(norms(module)[3], "running_var", None), "buffers"),
    "a norm with a weight": (
        lambda module: setattr(norms(module)[3], "weight", nn.Parameter(torch.full((4,), 2.0))),
        "weights of shapes",
    ),
    "padding of another kind": (layer(CONV, "padding_mode", "circular"), "unknown"),
    "another dilation": (
        lambda module: [layer(CONV, name, (2, 2))(module) for name in ("dilation", "padding")],
        "unknown",
    ),
    "a bias": (layer(CONV, "bias", nn.Parameter(torch.ones(4))), "weights of shapes"),
    "a larger kernel": (
        lambda module: setattr(
            module.get_submodule(CONV), "weight", nn.Parameter(torch.ones(4, 1, 3, 1))
        ),
        "weights of shapes",
    ),
    "another pool": (layer(POOL, "dilation", 2), "unknown"),
    "ReLU in place": (layer("_ops.1._ops.3.op.4", "inplace", True), "unknown"),
    "weight norm": (
        lambda module: parametrizations.weight_norm(module.get_submodule(CONV)),
        "unknown",
    ),
    "pruning": (
        lambda module: prune.random_unstructured(module.get_submodule(CONV), "weight", 0.5),
        "unknown",
    ),
    "fewer outputs than none": (lambda module: setattr(module, "_multiplier", 3), "3 outputs"),
}


# With these nothing can be computed, or copied for a comparison.
INCOMPARABLE = ("another pool", "a larger kernel", "an operation more", "lost buffers", "pruning")


@pytest.fixture
def example():
    torch.manual_seed(0)
    example = cell(False, False, 1)
    example.ours.double()
    return example


def compare(module, tensors, backend):
    """The same numbers as the modules one by one, buffers included."""
    twin = copy.deepcopy(module)

    def by(backend):
        def function(module, *tensors):
            with use_backend(backend):
                return call(module, *tensors)

        return function

    assert_close(evaluate(module, by(backend), tensors), evaluate(twin, by("reference"), tensors))


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_it(example, name):
    change, reason = STOPS[name]
    tensors = to_double(example.tensors())
    with use_backend("cpu"):
        call(example.ours, *tensors)
    change(example.ours)
    example.ours.double()
    with use_backend("cpu"), pytest.raises(UserError, match=reason):
        call(example.ours, *tensors)
    if name not in INCOMPARABLE:
        compare(example.ours, tensors, None)


def load(module):
    other = cell(False, False, 1).ours.double()
    with torch.no_grad():
        for value in other.state_dict().values():
            value += 1
    module.load_state_dict(other.state_dict())


GOES_ON = {
    "nothing": lambda module: None,
    "evaluation": lambda module: module.eval(),
    "some norms frozen": lambda module: [norm.eval() for norm in norms(module)[::2]],
    "frozen weights": lambda module: module.requires_grad_(False),
    "one frozen weight": lambda module: weight_of(module, CONV).requires_grad_(False),
    "another momentum": every_norm("momentum", 0.9),
    "cumulative averages": every_norm("momentum", None),
    "another eps": every_norm("eps", 0.1),
    "another weight": lambda module: setattr(
        module.get_submodule(CONV), "weight", nn.Parameter(torch.randn(4, 1, 3, 3).double())
    ),
    "other buffers": lambda module: setattr(
        norms(module)[3], "running_mean", torch.randn(4).double()
    ),
    "another state dict": load,
    "the same operation anew": replaced(
        "_ops.1._ops.3", lambda: SepConv(4, 4, 3, 1, 1, False).double()
    ),
    "the same preprocessing anew": replaced(
        "preprocess1", lambda: ReLUConvBN(5, 4, 1, 1, 0, False).double()
    ),
    "the same norm anew": replaced(NORM, lambda: nn.BatchNorm2d(4, affine=False).double()),
    "fewer outputs": lambda module: setattr(module, "_multiplier", 1),
    "channels last": lambda module: module.to(memory_format=torch.channels_last),
    "single and double precision": lambda module: module.float().double(),
    "a hook on the cell": lambda module: module.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", GOES_ON)
def test_what_it_goes_on_with(example, name):
    tensors = to_double(example.tensors())
    with use_backend("cpu"):
        call(example.ours, *tensors)
    GOES_ON[name](example.ours)
    compare(example.ours, tensors, "cpu")


def test_hooks_that_are_removed_again(example):
    tensors = example.tensors()
    module = example.ours.float()
    handle = module.get_submodule(CONV).register_forward_hook(lambda *_: None)
    for _ in range(2):
        with use_backend("cpu"), pytest.raises(UserError, match="hooks"):
            call(module, *tensors)
    handle.remove()
    with use_backend("cpu"):
        call(module, *tensors)


def test_a_changed_module_that_changes_back(example):
    module, tensors = example.ours, to_double(example.tensors())
    for training in (True, False, True, False):
        compare(module.train(training), tensors, "cpu")


def test_hooks_on_all_modules(example):
    tensors = to_double(example.tensors())
    call(example.ours, *tensors)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with use_backend("cpu"), pytest.raises(UserError, match="all modules"):
            call(example.ours, *tensors)
        call(example.ours, *tensors)
    finally:
        handle.remove()
    assert example.ours.preprocess0.op[1] in seen


def test_weights_of_a_functional_call(example):
    tensors = to_double(example.tensors())
    weights = {name: 2 * value for name, value in example.ours.state_dict().items()}

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = example.ours

        def forward(self, *tensors):
            return call(self.cell, *tensors)

    given = {f"cell.{name}": value for name, value in weights.items()}
    with use_backend("cpu"):
        found = functional_call(Called(), given, tuple(tensors))
    with use_backend("reference"):
        expected = functional_call(Called(), given, tuple(tensors))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_look_closely_only_once(example, monkeypatch):
    looks = []
    recognize = Cell.recognize
    monkeypatch.setattr(Cell, "recognize", lambda self: looks.append(self) or recognize(self))
    tensors = to_double(example.tensors())
    for step in range(6):
        call(example.ours, *tensors)
        for parameter in example.ours.parameters():
            parameter.requires_grad_(step % 2 == 0)
    assert len(looks) == 1
    example.ours.eval()
    call(example.ours, *tensors)
    assert len(looks) == 2


def test_modules_die_when_nobody_holds_them():
    example = build("cell")
    call(example.ours, *example.tensors())
    mixed = MixedOp(4, 1, primitives=FEW)
    mixed(torch.randn(2, 4, 5, 5), torch.rand(5))
    references = [weakref.ref(example.ours), weakref.ref(mixed)]
    gc.disable()
    try:
        del example, mixed
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["cell", "mixed op", "dense cell"])
def test_copies_are_independent(name):
    example = build(name)
    module, tensors = example.ours.eval(), example.tensors()
    before = call(module, *tensors)
    twin = copy.deepcopy(module)
    assert torch.equal(call(twin, *tensors), before)
    for norm in norms(twin)[::2]:
        norm.train()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(call(module, *tensors), before)
    assert not torch.allclose(call(twin, *tensors), before)
    assert list(module.state_dict()) == list(example.theirs.state_dict())


@pytest.mark.parametrize("name", ["conv_7x1_1x7", "own"])
def test_unknown_operations_are_computed_beside_known_ones(name, monkeypatch):
    monkeypatch.setitem(OPERATIONS, "own", lambda C, stride, affine: nn.Tanh())
    torch.manual_seed(0)
    module = MixedOp(4, 1, primitives=(*FEW, name)).double()
    x, p = torch.randn(2, 4, 5, 5).double(), torch.rand(6).double()
    with use_backend("cpu"), pytest.raises(UserError, match="candidate 5 of edge 0"):
        module(x, p)
    with use_backend("reference"):
        expected = copy.deepcopy(module)(x, p)
    torch.testing.assert_close(module(x, p), expected)


@pytest.mark.parametrize(
    ("x", "p"),
    [
        (torch.randn(2, 4, 5, 5).double(), torch.rand(5)),
        (torch.randn(2, 4, 5, 5), torch.rand(5).double()),
        (torch.randn(2, 4, 5, 5).bfloat16(), torch.rand(5)),
    ],
    ids=["inputs", "p", "half"],
)
def test_mixed_types_do_as_the_modules(x, p):
    module = MixedOp(4, 1, primitives=FEW)
    results = []
    for backend in (None, "reference"):
        with use_backend(backend):
            try:
                results.append(module.eval()(x, p).dtype)
            except RuntimeError as error:
                results.append(type(error))
    assert results[0] == results[1]


def test_one_value_per_channel_raises_what_torch_raises():
    module = MixedOp(4, 1, primitives=FEW)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(torch.randn(1, 4, 1, 1), torch.rand(5))
    with use_backend("cpu"):
        assert module.eval()(torch.randn(1, 4, 1, 1), torch.rand(5)).shape == (1, 4, 1, 1)


def test_empty_batches_do_as_the_modules():
    module = MixedOp(4, 1, primitives=FEW).eval()
    assert module(torch.randn(0, 4, 5, 5), torch.rand(5)).shape == (0, 4, 5, 5)


def test_other_devices_do_as_the_modules():
    module = MixedOp(4, 1, primitives=FEW).to("meta")
    output = module(torch.randn(2, 4, 5, 5, device="meta"), torch.rand(5, device="meta"))
    assert output.device.type == "meta"


def test_the_kinds_of_modules():
    kinds = {type(build(name).ours) for name in ("cell", "mixed op", "dense cell")}
    assert all(issubclass(kind, CellModule) for kind in kinds)
    with pytest.raises(NotImplementedError):
        CellModule().recognize()
