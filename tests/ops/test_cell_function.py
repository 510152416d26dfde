"""The cell as an operator of torch's: schema, gradients, compilers, running statistics, errors."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from da2s_fast.ops import cell
from da2s_fast.ops.cell.function import update_running
from da2s_fast.ops.cell.plan import CellPlan
from tests.conditions import compiled_whole
from tests.ops.cell_cases import (
    PLANS,
    active_slots,
    assert_same_bits,
    compiled,
    evaluate,
    make_case,
)

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@compiled
@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["after a reduction, odd", "dense", "partial", "no weights"])
def test_opcheck(name, layout, save):
    case = make_case(PLANS[name], (2, 4, 3), frozen="some").require()
    inputs = [x.detach().contiguous(memory_format=layout).requires_grad_() for x in case.inputs]
    settings = case.frozen, list(case.plan.code), 1e-3, save
    arguments = inputs, case.p, case.g, case.weights, case.running, *settings
    torch.library.opcheck(torch.ops.da2s_fast.cell, arguments)
    case.require(False)
    output, statistics, saved = torch.ops.da2s_fast.cell(*arguments)
    plain = [x.detach() for x in inputs]
    for mask in ([True] * (len(inputs) + 3), [False] * len(inputs) + [True, False, True]):
        torch.library.opcheck(
            torch.ops.da2s_fast.cell_backward,
            (
                *(torch.randn_like(output), plain, case.p, case.g, case.weights),
                *(statistics.detach(), saved.detach(), *settings, mask),
            ),
        )


@compiled
def test_opcheck_of_the_update():
    case = make_case(PLANS["reduction"], frozen="some")
    with torch.no_grad():
        _, statistics = case(backend="cpu")
    tracked = [torch.tensor(3) for _ in case.plan.norm_channels]
    settings = case.frozen, list(case.plan.code), [126, 126, 36], 0.1
    torch.library.opcheck(
        torch.ops.da2s_fast.cell_update_running, (statistics, case.running, tracked, *settings)
    )


@compiled
@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("name", ["after a reduction, odd", "mixed op, stride 2"])
def test_gradcheck(name, memory):
    plan = replace(PLANS[name], operations=("max_pool_3x3", "sep_conv_3x3", "skip_connect"))
    case = make_case(plan, (2, 3, 3), frozen="some").to(torch.float64).require()
    inputs = len(case.inputs)

    def function(*tensors):
        moved = replace(case, inputs=tensors[:inputs], p=tensors[inputs], g=tensors[inputs + 1])
        return replace(moved, weights=tensors[inputs + 2 :])(backend="cpu", memory=memory)[0]

    assert torch.autograd.gradcheck(function, case.leaves, fast_mode=True)


@compiled
def test_double_backward_names_the_reference():
    case = make_case(PLANS["mixed op"], (2, 3, 3)).to(torch.float64).require()
    output, _ = case(backend="cpu")
    (grad,) = torch.autograd.grad(output.square().sum(), [case.p], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend='reference'.*use_backend"):
        grad.sum().backward()


def test_reference_can_be_differentiated_twice():
    plan = CellPlan(2, ("sep_conv_3x3",), 1, True, ("identity",))
    case = make_case(plan, (2, 4, 4)).to(torch.float64).require()

    def function(p, *weights):
        return replace(case, p=p, weights=weights)(backend="reference")[0].sin()

    assert torch.autograd.gradgradcheck(function, (case.p, *case.weights), fast_mode=True)


@compiled
@pytest.mark.parametrize("wanted", [*itertools.product([False, True], repeat=5)], ids=str)
def test_only_the_gradients_asked_for(wanted):
    case = make_case(PLANS["after a reduction, odd"], (2, 4, 4))
    everything = evaluate(case, backend="cpu")
    case = case.to(torch.float32)
    leaves = [*case.inputs, case.p, case.g]
    for leaf, needed in zip(leaves, wanted[:4], strict=True):
        leaf.requires_grad_(needed)
    for weight in case.weights:
        weight.requires_grad_(wanted[4])
    output, _ = case(backend="cpu")
    assert torch.equal(output, everything["output"])
    assert output.requires_grad is any(wanted)
    if not any(wanted):
        return
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, dtype=torch.float64).float())
    for name, leaf, needed in zip(("input 0", "input 1", "p", "g"), leaves, wanted, strict=False):
        assert (leaf.grad is not None) is needed
        assert not needed or torch.equal(leaf.grad, everything[name])
    found = [weight.grad.flatten() for weight in case.weights if weight.grad is not None]
    assert not wanted[4] or torch.equal(torch.cat(found), everything["weights"])
    assert wanted[4] or not found


@compiled
def test_gradients_of_some_weights():
    case = make_case(PLANS["normal"])
    everything = evaluate(case, backend="cpu")
    for weight in case.weights[::2]:
        weight.requires_grad_(False)
    output, _ = case(backend="cpu")
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, dtype=torch.float64).float())
    parts = everything["weights"].split([weight.numel() for weight in case.weights])
    for index, (weight, expected) in enumerate(zip(case.weights, parts, strict=True)):
        assert (weight.grad is None) is (index % 2 == 0)
        assert weight.grad is None or torch.equal(weight.grad.flatten(), expected)


@compiled
def test_a_weight_may_be_in_several_places():
    case = make_case(PLANS["one convolution"])
    shared = [case.weights[0].clone(), case.weights[1].clone()] * (len(case.weights) // 2)
    found = evaluate(replace(case, weights=shared), backend="cpu")
    apart = evaluate(replace(case, weights=[w.detach().clone() for w in shared]), backend="cpu")
    assert torch.equal(found["output"], apart["output"])
    both = [each["weights"].view(len(shared) // 2, -1).sum(0) for each in (apart,)]
    torch.testing.assert_close(found["weights"].view(len(shared) // 2, -1)[0], both[0])


@compiled
def test_twice_in_one_graph():
    case = make_case(PLANS["dense"], (2, 5, 5)).to(torch.float64).require()

    def twice(backend):
        x, _ = case(backend=backend)
        y, _ = cell([x], case.p.flip(0), case.g, case.weights, case.plan, backend=backend)
        return torch.autograd.grad((x * y).sum(), case.leaves)

    for found, expected in zip(twice("cpu"), twice("reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["after a reduction, odd", "dense"])
def test_compiles_without_a_graph_break(name, layout):
    case = make_case(PLANS[name], frozen="some")
    case.inputs = [x.contiguous(memory_format=layout) for x in case.inputs]

    @compiled_whole
    def function(inputs, p, g, weights):
        return replace_tensors(case, inputs, p, g, weights)

    def replace_tensors(case, inputs, p, g, weights):
        options = {"running": case.running, "frozen": case.frozen, "eps": 1e-3}
        return cell(inputs, p, g, weights, case.plan, backend="cpu", **options)

    def called(case):
        return function(case.inputs, case.p, case.g, case.weights)

    assert_same_bits(evaluate(case, called), evaluate(case, backend="cpu"))
    # Another batch: the compiler's sizes become symbols, the kernels' do not.
    larger = make_case(PLANS[name], (5, 7, 6), frozen="some")
    case = replace(larger, running=case.running)
    assert_same_bits(evaluate(case, called), evaluate(case, backend="cpu"))


@compiled
def test_changed_weights_are_noticed():
    case = make_case(PLANS["mixed op"]).require()
    output, _ = case(backend="cpu")
    with torch.no_grad():
        case.weights[3].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def norms_of(case, momentum):
    """BatchNorms in the state that the case describes."""
    norms = []
    for slot, channels in enumerate(case.plan.norm_channels):
        norm = nn.BatchNorm2d(channels, affine=False, momentum=momentum)
        norm.running_mean.copy_(case.running[2 * slot])
        norm.running_var.copy_(case.running[2 * slot + 1])
        norms.append(norm.train(slot not in case.frozen))
    return norms


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
@pytest.mark.parametrize("name", ["reduction", "after a reduction", "dense", "cut"])
def test_running_statistics_move_as_those_of_batch_norm(name, momentum, dtype):
    case = make_case(PLANS[name], (3, 5, 4), frozen="some")
    with torch.no_grad():
        _, statistics = case.to(torch.float64)(backend="cpu")
    check_running(case, statistics, momentum, dtype)


def check_running(case, statistics, momentum, dtype):
    """Of norms whose buffers have a type, after a batch of (3, 5, 4)."""
    plan, device = case.plan, statistics.device
    norms = [norm.to(device, dtype) for norm in norms_of(case, momentum)]
    running = [t for norm in norms for t in (norm.running_mean, norm.running_var)]
    tracked = [norm.num_batches_tracked for norm in norms]
    for slot, count in enumerate(tracked):
        count.fill_(slot % 4)
    expected = [value.clone().double() for value in running]
    exact = statistics.double()
    after = 3 * (3 * 2 if plan.reduction else 5 * 4)
    for slot in set(active_slots(plan)) - set(case.frozen):
        count = 3 * 5 * 4 if slot < len(plan.preprocess_norms) else after
        start = 2 * sum(plan.norm_channels[:slot])
        channels = plan.norm_channels[slot]
        mean, variance = exact[start : start + 2 * channels].view(2, -1)
        for i, new in ((0, mean), (1, variance * count / (count - 1))):
            share = 1 / (slot % 4 + 1) if momentum is None else momentum
            old = expected[2 * slot + i]
            expected[2 * slot + i] = (1 - share) * old + share * new
    versions = [value._version for value in running]
    update_running(
        statistics, running, tracked, plan, size=(3, 5, 4), frozen=case.frozen, momentum=momentum
    )
    unit = torch.finfo(dtype).eps
    for value, wanted in zip(running, expected, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=4 * unit, atol=4 * unit)
    moved = [slot in set(active_slots(plan)) - set(case.frozen) for slot in range(len(norms))]
    assert [int(count) for count in tracked] == [slot % 4 + m for slot, m in enumerate(moved)]
    assert all(value._version > before for value, before in zip(running, versions, strict=True))


@compiled
def test_frozen_statistics_come_back_as_they_were():
    case = make_case(PLANS["reduction"], frozen="all")
    found = evaluate(case, backend="cpu")
    assert torch.equal(found["statistics"], torch.cat(case.running))


@compiled
@pytest.mark.parametrize("name", PLANS)
def test_operations_are_counted_as_those_of_eager(name):
    case = make_case(PLANS[name]).require()

    def counted(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    forward = counted(lambda: case(backend="reference"))
    assert counted(lambda: case(backend="cpu")) == forward
    # Torch's own formula for gradients of grouped convolutions' weights counts too much.
    assert counted(lambda: evaluate(case, backend="cpu")) == 3 * forward
