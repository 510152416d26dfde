"""mixed_sum as an operator of torch's: schema, gradients, compilers, autocast, errors."""

import functools
from importlib import import_module

import pytest
import torch
from torch import nn

from da2s_fast.errors import UserError
from da2s_fast.ops import mixed_sum
from tests.conditions import compiled_whole
from tests.ops.mixed_sum_cases import BATCH, CUMULATIVE, NONE, RUNNING, evaluate, make_case

fused = functools.partial(mixed_sum, backend="cpu")
reference = functools.partial(mixed_sum, backend="reference")

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def lay_out(case, layout):
    return case._replace(inputs=[y.contiguous(memory_format=layout) for y in case.inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout, dtype):
    case = lay_out(make_case((3, 4, 5, 6), [BATCH, NONE, RUNNING], dtype), layout)
    running = case.norms[2]
    modes, eps = [1, 0, 2], [1e-5, 0.0, 1e-3]
    inputs = [y.requires_grad_() for y in case.inputs]
    arguments = (
        inputs,
        case.weights.requires_grad_(),
        [running.running_mean],
        [running.running_var],
        modes,
        eps,
    )
    torch.library.opcheck(torch.ops.da2s_fast.mixed_sum, arguments)


@pytest.mark.parametrize("input_mask", [[True] * 3, [False, True, False]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_backward(layout, input_mask):
    case = lay_out(make_case((3, 4, 5, 6), [BATCH, NONE, RUNNING]), layout)
    statistics = torch.randn(2, 4), torch.rand(2, 4)
    modes, eps = [1, 0, 2], [1e-5, 0.0, 1e-3]
    for weights_mask in (True, False):
        torch.library.opcheck(
            torch.ops.da2s_fast.mixed_sum_backward,
            (
                *(case.grad, case.inputs, case.weights, *statistics, modes, eps),
                *(input_mask, weights_mask),
            ),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout):
    case = lay_out(
        make_case((3, 2, 3, 2), [BATCH, NONE, RUNNING, CUMULATIVE], torch.float64), layout
    )
    inputs = [y.requires_grad_() for y in case.inputs]
    assert torch.autograd.gradcheck(
        lambda weights, *inputs: fused(inputs, weights, case.norms),
        (case.weights.requires_grad_(), *inputs),
    )


def test_double_backward():
    case = make_case((3, 2, 3, 2), [BATCH, NONE], torch.float64)
    weights = case.weights.requires_grad_()
    inputs = [y.requires_grad_() for y in case.inputs]
    (grad,) = torch.autograd.grad(
        fused(inputs, weights, case.norms).square().sum(), weights, create_graph=True
    )
    with pytest.raises(RuntimeError, match="backend='reference'"):
        grad.sum().backward()
    assert torch.autograd.gradgradcheck(
        lambda weights, *inputs: reference(inputs, weights, case.norms), (weights, *inputs)
    )


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_as_one_graph(compiler, layout):
    case = lay_out(make_case((3, 4, 5, 6), [BATCH, NONE, RUNNING, CUMULATIVE]), layout)
    compiled = compiled_whole(fused, compiler)
    results, eager = evaluate(compiled, case), evaluate(fused, case)
    for name, value in eager.items():
        torch.testing.assert_close(results[name], value, msg=name)
    assert results["output"].stride() == eager["output"].stride()


def test_compiles_with_other_batch_sizes():
    compiled = compiled_whole(fused, dynamic=True)
    for images in (3, 5, 8):
        case = make_case((images, 4, 5, 6), [BATCH, NONE, RUNNING])
        results, eager = evaluate(compiled, case), evaluate(fused, case)
        for name, value in eager.items():
            torch.testing.assert_close(results[name], value, msg=name)


def test_autocast_changes_nothing():
    case = make_case((3, 4, 5, 6), [BATCH, NONE, RUNNING])
    case = case._replace(inputs=[case.inputs[0].bfloat16(), *case.inputs[1:]])
    expected = evaluate(fused, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results, eager = evaluate(fused, case), evaluate(reference, case)
    for name, value in expected.items():
        assert torch.equal(results[name], value), name
        assert results[name].dtype == eager[name].dtype, name


def test_no_graph_without_gradients():
    case = make_case((3, 4, 5, 6), [BATCH, NONE])
    assert not fused(case.inputs, case.weights, case.norms).requires_grad
    with torch.no_grad():
        assert not fused(case.inputs, case.weights.requires_grad_(), case.norms).requires_grad


def test_changed_inputs_are_noticed():
    case = make_case((3, 4, 5, 6), [BATCH, NONE])
    output = fused(case.inputs, case.weights.requires_grad_(), case.norms)
    case.inputs[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_batches_do_as_eager(shape):
    case = make_case(shape, [BATCH, NONE, RUNNING])
    results, eager = evaluate(mixed_sum, case), evaluate(reference, case)
    for name, value in eager.items():
        torch.testing.assert_close(results[name], value, equal_nan=True, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_one_value_per_channel(training):
    norm = nn.BatchNorm2d(3, affine=False, track_running_stats=training).train(training)
    inputs = [torch.randn(1, 3, 1, 1)]
    with pytest.raises(
        ValueError, match="Expected more than 1 value per channel when training"
    ) as e:
        norm(inputs[0])
    with pytest.raises(ValueError, match="Expected more than 1") as ours:
        mixed_sum(inputs, torch.ones(1), [norm])
    assert str(ours.value) == str(e.value)


Y = torch.zeros(2, 3, 4, 4)
BN = nn.BatchNorm2d(3, affine=False)


@pytest.mark.parametrize(
    ("inputs", "weights", "norms", "message"),
    [
        ([], torch.ones(0), None, "no inputs"),
        ([Y, Y[:1]], torch.ones(2), None, r"\(2, 3, 4, 4\).*\(1, 3, 4, 4\)"),
        ([Y, Y], torch.ones(3), None, r"\(3,\) for 2 inputs"),
        ([Y], torch.ones(()), None, r"\(\) for 1 inputs"),
        ([Y], torch.ones(1, dtype=torch.int64), None, "int64"),
        ([Y, Y], torch.ones(2), [BN], "1 norms for 2 inputs"),
        ([Y], torch.ones(1), [nn.BatchNorm2d(3)], "weight and bias"),
        ([Y], torch.ones(1), [nn.GroupNorm(1, 3)], "GroupNorm"),
        ([Y], torch.ones(1), [nn.BatchNorm2d(4, affine=False)], "3 channels.*for 4"),
        ([Y[0]], torch.ones(1), [BN], "4D"),
    ],
)
def test_wrong_arguments(inputs, weights, norms, message):
    for backend in (None, "reference"):
        with pytest.raises(ValueError, match=message):
            mixed_sum(inputs, weights, norms, backend=backend)


@pytest.mark.parametrize(
    ("inputs", "norms", "reason"),
    [
        ([Y.to("meta")], None, "a tensor is on meta"),
        ([Y.long()], None, "a tensor is torch.int64"),
        ([Y.to(torch.complex64)], None, "a tensor is torch.complex64"),
        ([Y[:0]], None, "empty"),
        ([torch.tensor(1.0, dtype=torch.float16)], None, "promote"),
        ([Y.double()], [BN], "running statistics are torch.float32"),
    ],
)
def test_what_the_compiled_operator_leaves_to_the_reference(inputs, norms, reason):
    with pytest.raises(UserError, match=f"'cpu' of mixed_sum cannot run: .*{reason}"):
        mixed_sum(inputs, torch.ones(1), norms, backend="cpu")
    if norms is None:
        expected = reference(inputs, torch.ones(1))
        torch.testing.assert_close(mixed_sum(inputs, torch.ones(1)), expected)


def test_backends(monkeypatch):
    with pytest.raises(UserError, match="no backend 'gpu'; choose one of: cpu, triton, reference"):
        mixed_sum([Y], torch.ones(1), backend="gpu")
    monkeypatch.setattr(import_module("da2s_fast.ops.mixed_sum"), "_HAS_CPU_KERNEL", False)
    with pytest.raises(UserError, match="compiled CPU library is not there"):
        mixed_sum([Y], torch.ones(1), backend="cpu")
    assert torch.equal(mixed_sum([Y], torch.ones(1)), Y)


def test_the_operator_itself_checks_what_it_reads():
    operator = torch.ops.da2s_fast.mixed_sum
    for arguments in [
        ([], torch.ones(0), [], [], [], []),
        ([Y, Y[:1]], torch.ones(2), [], [], [0, 0], [0.0, 0.0]),
        ([Y], torch.ones(2), [], [], [0], [0.0]),
        ([Y], torch.ones(1).double(), [], [], [0], [0.0]),
        ([Y], torch.ones(1), [], [], [2], [0.0]),
        ([Y], torch.ones(1), [torch.ones(2)], [torch.ones(2)], [2], [0.0]),
        ([Y], torch.ones(1), [], [], [7], [0.0]),
        ([Y[:0]], torch.ones(1), [], [], [0], [0.0]),
        ([Y.long()], torch.ones(1), [], [], [0], [0.0]),
    ]:
        with pytest.raises(RuntimeError, match="mixed_sum"):
            operator(*arguments)
