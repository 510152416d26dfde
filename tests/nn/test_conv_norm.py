"""Stems and residual blocks, whose convolutions and norms are fused, against their modules."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from da2s_fast.nn import conv_norm as fused_module
from da2s_fast.nn import use_backend
from da2s_fast.nn.conv_norm import ConvNormSequential
from da2s_fast.nn.stem import cifar_stem, imagenet_stems
from da2s_fast.nn.super_network import ResidualBlock
from tests.conditions import compiled_whole
from tests.nn.evaluate import assert_equal_to_reference, evaluate

calls: list[str] = []


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note every call of the operator."""

    def noted(*args, **kwargs):
        calls.append("conv_norm")
        return fused(*args, **kwargs)

    fused = fused_module.conv_norm
    monkeypatch.setattr(fused_module, "conv_norm", noted)
    calls.clear()


def plain(module: nn.Module) -> nn.Module:
    """A copy in which chains are torch's own."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if type(part) is ConvNormSequential:
            part.__class__ = nn.Sequential
    return module


def imagenet() -> nn.Module:
    return nn.Sequential(*imagenet_stems(3, 16))


MODULES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "cifar": (lambda: cifar_stem(3, 48), 3, 1),
    "grey": (lambda: cifar_stem(1, 6), 1, 1),
    "imagenet": (imagenet, 3, 3),
    "residual": (lambda: ResidualBlock(4, 8), 4, 2),
    "residual, no affine": (lambda: ResidualBlock(4, 8, affine=False), 4, 2),
}


def build(name: str) -> tuple[nn.Module, Tensor, int]:
    """A module, images for it and how many operators it takes."""
    torch.manual_seed(0)
    make, channels, operators = MODULES[name]
    module = make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module, torch.randn(3, channels, 15, 12), operators


def call(module: nn.Module, x: Tensor) -> Tensor:
    # In-place ReLUs must not change a leaf.
    return module(x * 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODULES)
def test_equals_the_modules(name, layout):
    module, x, operators = build(name)
    x = x.contiguous(memory_format=layout)
    assert_equal_to_reference(module, plain(module), call, [x])
    assert len(calls) == 2 * operators  # float64 and float32


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, None])
def test_running_statistics_of_several_batches(momentum):
    module, _, _ = build("residual")
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
    theirs = plain(module)
    for seed in range(3):
        x = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(seed))
        module(x), theirs(x)
    expected = dict(theirs.named_buffers())
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-5, atol=1e-5)
    assert expected["branch.2.num_batches_tracked"] == 3


def test_state_dict_keys():
    for name in MODULES:
        module, _, _ = build(name)
        assert list(module.state_dict()) == list(plain(module).state_dict())
    assert list(cifar_stem(3, 4).state_dict()) == [
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]


def test_in_place_relu_at_the_beginning_changes_its_input_as_ever():
    _, stem1 = imagenet_stems(3, 8)
    x = torch.randn(2, 8, 6, 6)
    stem1(x)
    assert calls
    assert (x >= 0).all()
    stem0, stem1 = imagenet_stems(3, 8)
    s0 = stem0(torch.randn(2, 3, 16, 16))
    assert (s0 < 0).any()
    (stem1(s0).square().sum() + s0.sum()).backward()
    assert (s0 >= 0).all()


class OtherConv(nn.Conv2d):
    """Computes something else, or might."""


def hooked(stem: nn.Sequential) -> None:
    stem[0].register_forward_hook(lambda *_: None)


def parametrized(stem: nn.Sequential) -> None:
    parametrize.register_parametrization(stem[0], "weight", nn.Tanh())


def exchanged(stem: nn.Sequential) -> None:
    stem[0] = OtherConv(3, 6, 3, padding=1, bias=False)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "forward hook": hooked,
    "backward hook": lambda stem: stem[1].register_full_backward_hook(lambda *_: None),
    "own forward": lambda stem: setattr(stem[1], "forward", stem[1].forward),
    "parametrized": parametrized,
    "subclass": exchanged,
    "bias": lambda stem: stem.__setitem__(0, nn.Conv2d(3, 6, 3, padding=1)),
    "padding mode": lambda stem: setattr(stem[0], "padding_mode", "circular"),
    "padding": lambda stem: setattr(stem[0], "padding", (0, 0)),
    "dilation": lambda stem: setattr(stem[0], "dilation", (2, 2)),
    "stride": lambda stem: setattr(stem[0], "stride", (1, 2)),
    "kernel": lambda stem: stem.__setitem__(0, nn.Conv2d(3, 6, 5, padding=2, bias=False)),
    "groups": lambda stem: stem.__setitem__(0, nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)),
    "frozen norm": lambda stem: stem[1].eval(),
    "no running statistics": lambda stem: stem.__setitem__(
        1, nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "evaluation": lambda stem: stem.eval(),
    "half precision": lambda stem: stem.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modules_run_one_by_one_when_they_are_not_as_expected(change):
    stem = cifar_stem(3, 6)
    stem[1].running_mean.fill_(0.3)
    CHANGES[change](stem)
    x = torch.randn(2, 3, 8, 8, dtype=stem[0].weight.dtype)
    theirs = plain(stem)
    if "forward" in stem[1].__dict__:
        theirs[1].__dict__.pop("forward")
    expected = theirs(x)
    assert torch.equal(stem(x), expected)
    assert not calls


def test_hooks_see_what_they_always_saw():
    module, x, _ = build("imagenet")
    module(x.clone())
    seen = []
    module[0].register_forward_hook(lambda _, given, output: seen.append(output))
    module[0][1].register_forward_hook(lambda _, given, output: seen.append(given[0]))
    calls.clear()
    module(x)
    assert [tuple(value.shape) for value in seen] == [(3, 8, 8, 6), (3, 16, 4, 3)]
    assert len(calls) == 2  # the chain goes on behind the norm that somebody listens to
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        calls.clear()
        module(x)
        assert not calls


@pytest.mark.parametrize("name", MODULES)
def test_evaluation_uses_running_statistics(name):
    module, x, _ = build(name)
    module(x.clone())
    calls.clear()
    module.eval()
    assert torch.equal(module(x.clone()), plain(module)(x.clone()))
    assert not calls


def test_reference_backend_runs_the_modules_and_differentiates_twice():
    stem, x = cifar_stem(3, 4).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with use_backend("reference"):
        assert torch.equal(stem(x), plain(stem)(x))
        (grad,) = torch.autograd.grad(stem(x).pow(3).sum(), [stem[0].weight], create_graph=True)
        grad.sum().backward()
    assert not calls
    (grad,) = torch.autograd.grad(stem(x).pow(3).sum(), [stem[0].weight], create_graph=True)
    with pytest.raises(RuntimeError, match="use_backend"):
        grad.sum().backward()


def test_forced_backends_never_raise():
    stem, x = cifar_stem(3, 4), torch.randn(2, 3, 5, 5)
    with use_backend("cpu"):
        stem(x)
        assert calls
        stem.eval()(x)
    with use_backend("triton"):
        stem.train()(x)
    assert len(calls) == 1


def test_autocast_runs_the_modules():
    stem, x = cifar_stem(3, 4), torch.randn(2, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stem(x), plain(stem)(x))
    assert not calls


def test_errors_are_those_of_the_modules():
    stem = cifar_stem(3, 4)
    with pytest.raises(ValueError, match="more than 1 value"):
        stem(torch.randn(1, 3, 1, 1))
    with pytest.raises(RuntimeError, match="channels"):
        stem(torch.randn(2, 4, 5, 5))
    assert stem(torch.randn(2, 3, 5, 5)[:0]).shape == (0, 4, 5, 5)


@pytest.mark.parametrize("name", ["cifar", "residual", "imagenet"])
def test_compiles_without_a_graph_break(name):
    module, x, _ = build(name)
    theirs = copy.deepcopy(module)
    compiled = compiled_whole(module)
    for _ in range(2):  # buffers move on in every call
        found = evaluate(module, lambda _, x: call(compiled, x), [x])
        expected = evaluate(theirs, call, [x])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)
    assert calls


def test_exported_programs_have_no_operator_of_ours():
    for module in (cifar_stem(3, 4), cifar_stem(3, 4).eval()):
        program = torch.export.export(module, (torch.randn(2, 3, 5, 5),))
        assert "da2s_fast" not in str(program.graph)
