"""When one operator stands in for a cell's modules, and that every change of them is noticed."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from da2s_fast.errors import UserError
from da2s_fast.nn import OPERATIONS, Cell, MixedOp, use_backend
from da2s_fast.nn.engine import CellModule
from tests.nn.cell_changes import CONV, GOES_ON, INCOMPARABLE, STOPS, norms
from tests.nn.cell_modules import FEW, build, call, cell, compiled
from tests.nn.evaluate import assert_close, evaluate, to_double

pytestmark = compiled


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


def test_hooks_elsewhere(example):
    """They are no reason, and do not hide those that come later."""
    tensors = example.tensors()
    module = example.ours.float()
    other = nn.ReLU()
    for register in (other.register_forward_hook, other.register_forward_pre_hook):
        with use_backend("cpu"):
            call(module, *tensors)
        register(lambda *_: None)
        with use_backend("cpu"):
            call(module, *tensors)
    module.get_submodule(CONV).register_forward_hook(lambda *_: None)
    with use_backend("cpu"), pytest.raises(UserError, match="hooks"):
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
