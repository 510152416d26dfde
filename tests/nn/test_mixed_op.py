"""MixedOp against the sum of its candidates, taken one after the other."""

import copy

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.compat import da2s, darts, pc_darts
from da2s_fast.errors import UserError
from da2s_fast.nn import DARTS_PRIMITIVES, MixedOp
from da2s_fast.nn.mixed_op import channel_shuffle, split_norm
from da2s_fast.nn.operations import OPERATIONS, ReLUConvBN
from tests.nn import reference
from tests.nn.evaluate import assert_equal_to_reference, evaluate

DA2S_PRIMITIVES = DARTS_PRIMITIVES[1:]
NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def pair(
    C: int,
    stride: int,
    K: int = 1,
    primitives: tuple[str, ...] = DARTS_PRIMITIVES,
    pool_norm: bool = True,
) -> tuple[MixedOp, reference.MixedOp]:
    torch.manual_seed(0)
    ours = MixedOp(C, stride, primitives=primitives, partial_channels=K, pool_norm=pool_norm)
    randomize_statistics(ours)
    return ours, reference.MixedOp(C, stride, primitives, K, pool_norm)


def randomize_statistics(module: nn.Module) -> None:
    """Running statistics of a network that has seen data."""
    for name, buffer in module.named_buffers():
        if name.endswith("mean"):
            buffer.normal_()
        elif name.endswith("var"):
            buffer.uniform_(0.5, 2)


def batch(*shape: int, operations: int = 8) -> list[Tensor]:
    """Images (N, C, H, W) and mixing weights (operations,)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    return [x, torch.rand(operations, generator=generator).softmax(0)]


def call(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    return module(x, weights)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (15, 15), (5, 8), (2, 2), (1, 3)])
def test_equals_reference(stride: int, K: int, size: tuple[int, int]) -> None:
    assert_equal_to_reference(*pair(8, stride, K), call, batch(3, 8, *size))


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_reference_in_evaluation_mode(stride: int) -> None:
    ours, theirs = pair(8, stride)
    assert_equal_to_reference(ours.eval(), theirs.eval(), call, batch(3, 8, 7, 7))


def test_equals_reference_with_frozen_norms() -> None:
    ours, theirs = pair(6, 1, primitives=DA2S_PRIMITIVES)
    for module in (ours, theirs):
        for norm in [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)][::2]:
            norm.eval()
    assert_equal_to_reference(ours, theirs, call, batch(3, 6, 6, 6, operations=7))


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_equals_reference_with_norms_of_another_kind(momentum: float | None) -> None:
    ours, theirs = pair(6, 1, primitives=DA2S_PRIMITIVES)
    for module in (ours, theirs):
        for norm in [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]:
            norm.momentum, norm.eps = momentum, 1e-3
    assert_equal_to_reference(ours, theirs, call, batch(3, 6, 6, 6, operations=7))


def test_equals_reference_without_pool_norm() -> None:
    ours, theirs = pair(4, 1, primitives=NAS_BENCH_201, pool_norm=False)
    assert_equal_to_reference(ours, theirs, call, batch(2, 4, 5, 5, operations=5))


@pytest.mark.parametrize("K", [1, 2])
def test_equals_reference_for_a_single_image(K: int) -> None:
    assert_equal_to_reference(*pair(4, 1, K), call, batch(1, 4, 6, 6))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("K", [1, 2])
def test_equals_reference_in_channels_last(stride: int, K: int) -> None:
    x, weights = batch(3, 8, 6, 6)
    x = x.contiguous(memory_format=torch.channels_last)
    ours, theirs = pair(8, stride, K)
    ours, theirs = (m.to(memory_format=torch.channels_last) for m in (ours, theirs))
    assert_equal_to_reference(ours, theirs, call, [x, weights])


def test_equals_reference_on_a_non_contiguous_input() -> None:
    x, weights = batch(6, 7, 9, 8)
    strange = x.transpose(1, 3)[::2, :, 1:]
    assert not strange.is_contiguous()

    def on_view(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        return module(x.transpose(1, 3)[::2, :, 1:], weights)

    assert_equal_to_reference(*pair(8, 1), on_view, [x, weights])


def test_equals_reference_when_used_twice_in_one_graph() -> None:
    def twice(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        return module(module(x, weights), weights) + module(x, weights.flip(0))

    # Errors of one use grow in the next: only float64 can tell them from mistakes.
    assert_equal_to_reference(*pair(4, 1), twice, batch(3, 4, 6, 6), dtypes=[torch.float64])


def test_bfloat16_autocast_equals_eager_autocast() -> None:
    ours, theirs = pair(8, 1, primitives=DA2S_PRIMITIVES)
    theirs.load_state_dict(ours.state_dict())
    x, weights = batch(4, 8, 8, 8, operations=7)
    exact = evaluate(copy.deepcopy(theirs).double(), call, [x.double(), weights.double()])
    with torch.autocast("cpu", torch.bfloat16):
        eager, results = evaluate(theirs, call, [x, weights]), evaluate(ours, call, [x, weights])
    assert results.keys() == eager.keys()
    for name, value in eager.items():
        assert results[name].dtype == value.dtype, name
        error = (results[name].double() - exact[name]).norm()
        assert error <= 2 * (value.double() - exact[name]).norm() + 1e-6, name


def test_only_the_gradients_asked_for() -> None:
    ours, _ = pair(4, 1)
    x, weights = batch(2, 4, 5, 5)
    ours.requires_grad_(False)
    weights.requires_grad_()
    ours(x, weights).sum().backward()
    assert weights.grad is not None
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_channel_shuffle_formula() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    expected = torch.empty(12)
    for j in range(3):
        for c in range(4):
            expected[c * 3 + j] = x[0, j * 4 + c, 0, 0]
    assert torch.equal(channel_shuffle(x, 3).flatten(), expected)


PRESETS = [
    (darts, DARTS_PRIMITIVES, 1),
    (da2s, DA2S_PRIMITIVES, 1),
    (pc_darts, DARTS_PRIMITIVES, 4),
]


@pytest.mark.parametrize(("module", "primitives", "K"), PRESETS, ids=["darts", "da2s", "pc_darts"])
@pytest.mark.parametrize("stride", [1, 2])
def test_presets(module: object, primitives: tuple[str, ...], K: int, stride: int) -> None:
    assert list(module.PRIMITIVES) == list(primitives)
    theirs = reference.MixedOp(8, stride, primitives, K)
    inputs = batch(2, 8, 6, 6, operations=len(primitives))
    assert_equal_to_reference(
        module.MixedOp(8, stride), theirs, call, inputs, dtypes=[torch.float64]
    )


def test_state_dict_keys_of_the_family() -> None:
    keys = set(MixedOp(4, 2).state_dict())
    expected = {
        "_ops.1.1.running_mean",  # BatchNorm behind a pool
        "_ops.3.conv_1.weight",  # FactorizedReduce
        "_ops.3.conv_2.weight",
        "_ops.3.bn.running_var",
        "_ops.4.op.1.weight",  # SepConv, both halves
        "_ops.4.op.3.running_mean",
        "_ops.4.op.5.weight",
        "_ops.4.op.7.running_var",
        "_ops.6.op.1.weight",  # DilConv
        "_ops.6.op.2.weight",
        "_ops.6.op.3.num_batches_tracked",
    }
    assert expected <= keys
    # The BatchNorms are without scale and shift during a search.
    assert not any(key.endswith("bias") for key in keys)


class TestHooks:
    """A hook makes the module it sits on run as a module."""

    @pytest.mark.parametrize("path", ["_ops.4", "_ops.4.op", "_ops.4.op.7", "_ops.4.op.1"])
    def test_forward_hook_is_called_and_its_result_used(self, path: str) -> None:
        ours, theirs = pair(4, 1)
        theirs.load_state_dict(ours.state_dict())
        x, weights = batch(2, 4, 5, 5)
        for module in (ours, theirs):
            module.get_submodule(path).register_forward_hook(lambda m, args, output: output + 1)
        torch.testing.assert_close(ours(x, weights), theirs(x, weights))

    @pytest.mark.parametrize("path", ["_ops.4", "_ops.4.op", "_ops.4.op.7", "_ops.1.1"])
    def test_forward_pre_hook(self, path: str) -> None:
        ours, _ = pair(4, 1)
        calls = []
        ours.get_submodule(path).register_forward_pre_hook(lambda m, args: calls.append(m))
        ours(*batch(2, 4, 5, 5))
        assert calls == [ours.get_submodule(path)]

    @pytest.mark.parametrize("path", ["_ops.4", "_ops.4.op", "_ops.4.op.7", "_ops.1.1"])
    @pytest.mark.parametrize("kind", ["register_full_backward_hook", "pre"])
    def test_backward_hook(self, path: str, kind: str) -> None:
        ours, _ = pair(4, 1)
        calls = []
        module = ours.get_submodule(path)
        if kind == "pre":
            module.register_full_backward_pre_hook(lambda m, grad: calls.append(m))
        else:
            module.register_full_backward_hook(lambda m, grad_in, grad_out: calls.append(m))
        x, weights = batch(2, 4, 5, 5)
        ours(x.requires_grad_(), weights).sum().backward()
        assert calls == [module]


class Doubled(ReLUConvBN):
    """Inherits `features` and `norm` but computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnAttributes(nn.Module):
    """Has a `norm` and `features` that mean something else."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.features(self.norm(x))


class OnlyNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


OWN = [
    pytest.param(lambda C, stride, affine: Doubled(C, C, 1, stride, 0, affine), id="subclass"),
    pytest.param(lambda C, stride, affine: OwnAttributes(C), id="attributes"),
    pytest.param(lambda C, stride, affine: OnlyNorm(C), id="norm"),
    pytest.param(lambda C, stride, affine: nn.Tanh(), id="without norm"),
    pytest.param(lambda C, stride, affine: ReLUConvBN(C, C, 3, stride, 1, True), id="affine norm"),
    pytest.param(lambda C, stride, affine: ReLUConvBN(C, C, 3, stride, 1, affine), id="foldable"),
]


@pytest.mark.parametrize("factory", OWN)
def test_operations_of_users_are_computed_as_they_are(
    factory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATIONS, "own", factory)
    torch.manual_seed(0)
    ours = MixedOp(4, 1, primitives=("skip_connect", "own"))

    def one_by_one(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, module._ops, strict=True))

    inputs = batch(3, 4, 5, 5, operations=2)
    assert_equal_to_reference(ours, copy.deepcopy(ours), call, inputs, reference_call=one_by_one)


def test_what_is_folded() -> None:
    """The candidates of DARTS that end in a norm reach the sum without it."""
    ours, _ = pair(4, 2)
    folded = [split_norm(op, torch.randn(2, 4, 6, 6))[1] is not None for op in ours._ops]
    assert folded == [name != "none" for name in DARTS_PRIMITIVES]
    assert split_norm(ReLUConvBN(4, 4, 1, 1, 0, affine=True), torch.randn(2, 4, 6, 6))[1] is None


@pytest.mark.parametrize("K", [0, -1, 3, 5])
def test_partial_channels_that_do_not_divide(K: int) -> None:
    with pytest.raises(UserError, match=f"partial_channels={K} does not divide 4 channels"):
        MixedOp(4, 1, partial_channels=K)


def test_unknown_operation() -> None:
    with pytest.raises(UserError, match="unknown operation 'sep_conv_9x9'"):
        MixedOp(4, 1, primitives=("sep_conv_9x9",))


def test_wrong_number_of_weights() -> None:
    x, weights = batch(2, 4, 5, 5, operations=7)
    with pytest.raises(UserError, match=r"\(7,\) for 8 inputs"):
        MixedOp(4, 1)(x, weights)
