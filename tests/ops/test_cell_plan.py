"""Cells of other kinds than DARTS's: one input, cut edges, few outputs, dense convolutions."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.errors import UserError
from da2s_fast.nn import DARTS_PRIMITIVES, Cell, DenseCell, MixedOp, Mixture, use_backend
from da2s_fast.ops.cell.cost import Size, backward_operations, forward_operations, stages
from da2s_fast.ops.cell.norm import Statistics
from da2s_fast.ops.cell.operations import KNOWN
from da2s_fast.ops.cell.plan import CellPlan, decode
from da2s_fast.ops.cell.reference import Parameters, backward, forward
from tests.conditions import counted

NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
FEW = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
# The first node keeps one edge, the second nothing, the third two: one of them from the second.
ACTIVE = ((2, 3), (), (), (), (), (), (1,), (), (0, 1, 2))


def mixed_op(stride: int, k: int) -> tuple[nn.Module, CellPlan]:
    module = MixedOp(4, stride, primitives=DARTS_PRIMITIVES, partial_channels=k)
    return module, CellPlan(4, DARTS_PRIMITIVES, 1, stride == 2, ("identity",), k)


def dense_cell(primitives: Sequence[str], k: int) -> tuple[nn.Module, CellPlan]:
    module = DenseCell(4, 3, primitives=primitives, partial_channels=k)
    plan = CellPlan(
        4, tuple(primitives), 3, False, ("identity",), k, output_nodes=1, pool_norm=False
    )
    return module, plan


def few_outputs(reduction: bool, k: int, outputs: int) -> tuple[nn.Module, CellPlan]:
    module = Cell(3, outputs, 5, 5, 4, reduction, False, primitives=FEW, partial_channels=k)
    return module, CellPlan(4, FEW, 3, reduction, ("conv", "conv"), k, outputs)


CASES = [
    *(pytest.param(mixed_op, (s, k), id=f"mixed op {s} {k}") for s in (1, 2) for k in (1, 2)),
    *(pytest.param(dense_cell, (NAS_BENCH_201, k), id=f"dense {k}") for k in (1, 2)),
    pytest.param(dense_cell, (FEW, 1), id="dense with norms inside only"),
    pytest.param(few_outputs, (False, 1, 2), id="two outputs of three"),
    pytest.param(few_outputs, (True, 2, 1), id="one output of three"),
]


def call(module: nn.Module, plan: CellPlan, inputs: Sequence[Tensor], p: Tensor, g: Tensor):
    """The module's own output, in plain PyTorch."""
    with use_backend("reference"):
        if isinstance(module, MixedOp):
            return g[0] * module(*inputs, p[0])
        return module(*inputs, Mixture(p, g, plan.active))


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("frozen", ["none", "some", "all"])
@pytest.mark.parametrize(("build", "arguments"), CASES)
def test_stages_equal_the_modules(build, arguments, frozen, memory):
    torch.manual_seed(0)
    module, plan = build(*arguments)
    module = module.double()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == list(plan.norm_channels)
    running = [None] * len(norms)
    for slot, norm in enumerate(norms):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.eps = 1e-3
        if frozen == "all" or (frozen == "some" and slot % 2):
            norm.eval()
            running[slot] = Statistics(norm.running_mean, norm.running_var, False, 1e-3)
    channels = 4 if plan.preprocess[0] == "identity" else 5
    inputs = [
        torch.randn(3, channels, 7, 6, dtype=torch.double).requires_grad_() for _ in plan.preprocess
    ]
    p = torch.rand(len(plan.edges), len(plan.operations), dtype=torch.double, requires_grad=True)
    g = torch.rand(len(plan.edges), dtype=torch.double, requires_grad=True)
    weights = list(module.parameters())
    assert [tuple(w.shape) for w in weights] == plan.weight_shapes([channels] * plan.inputs)
    expected = call(module, plan, inputs, p, g)
    gradient = torch.randn_like(expected)
    wanted = [*inputs, p, g, *weights]
    gradients = torch.autograd.grad(
        expected, wanted, gradient, allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        output, _, saved = forward(
            plan, inputs, Parameters(weights, p, g), running=running, memory=memory, eps=1e-3
        )
        found_inputs, found = backward(plan, gradient, Parameters(weights, p, g), saved)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    got = [*found_inputs, found.p, found.g, *found.weights]
    for index, (result, exact) in enumerate(zip(got, gradients, strict=True)):
        torch.testing.assert_close(
            result,
            exact,
            rtol=1e-9,
            atol=1e-10 * max(1e-3, exact.abs().max().item()),
            msg=lambda text, i=index: f"gradient {i}: {text}",
        )


@pytest.mark.parametrize("k", [1, 2])
def test_what_is_not_active_is_as_if_its_weights_were_zero(k):
    torch.manual_seed(0)
    plan = CellPlan(4, FEW, 3, True, ("conv", "conv"), k, active=ACTIVE)
    inputs = [torch.randn(3, 5, 7, 6, dtype=torch.double) for _ in range(2)]
    weights = [torch.randn(s, dtype=torch.double) for s in plan.weight_shapes((5, 5))]
    p, g = torch.rand(9, 4, dtype=torch.double), torch.rand(9, dtype=torch.double)
    cut_p, cut_g = p.clone(), g.clone()
    for edge, columns in enumerate(ACTIVE):
        cut_p[edge, [c for c in range(4) if c not in columns]] = 0
        cut_g[edge] *= bool(columns)
    everything = replace(plan, active=None)
    output, statistics, saved = forward(plan, inputs, Parameters(weights, p, g))
    expected, *_, whole = forward(everything, inputs, Parameters(weights, cut_p, cut_g))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    # FactorizedReduce, both of a separable convolution, two pools.
    assert sum(s is not None for s in statistics[2:]) == 1 + 2 + 1 + 1
    gradient = torch.randn_like(output)
    got, found = backward(plan, gradient, Parameters(weights, p, g), saved)
    exact, all_found = backward(everything, gradient, Parameters(weights, cut_p, cut_g), whole)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(got, exact, **close)
    torch.testing.assert_close(found.weights, all_found.weights, **close)
    active = torch.zeros_like(p, dtype=torch.bool)
    for edge, columns in enumerate(ACTIVE):
        active[edge, list(columns)] = True
    torch.testing.assert_close(found.p, torch.where(active, all_found.p, 0), **close)
    assert not found.p[~active].any()


@pytest.mark.parametrize(
    "plan",
    [
        CellPlan(16, DARTS_PRIMITIVES, 4, True, ("reduce", "conv"), 4),
        CellPlan(6, KNOWN, 3, False, ("identity",), 3, 1, False),
        CellPlan(4, FEW, 3, False, ("conv", "conv"), active=ACTIVE),
    ],
)
def test_codes_say_everything(plan):
    code = plan.encode()
    decoded = decode(tuple(code))
    assert decoded.encode() == code
    everything = ((*range(len(plan.operations)),),) * len(plan.edges)
    complete = replace(plan, output_nodes=plan.outputs, active=plan.active or everything)
    assert decoded == complete


def test_code_of_an_example():
    plan = CellPlan(16, ("none", "dil_conv_5x5"), 1, True, ("reduce", "conv"), 4)
    assert plan.encode() == [16, 4, 1, 1, 1, 1, 2, 2, 1, 2, 0, 8, 3, 3]
    assert plan.encode(((), (1,)))[-2:] == [0, 2]


@pytest.mark.parametrize(("build", "arguments"), CASES)
def test_operations_are_those_that_torch_counts(build, arguments):
    module, plan = build(*arguments)
    channels = 4 if plan.preprocess[0] == "identity" else 5
    inputs = [torch.randn(3, channels, 9, 7) for _ in plan.preprocess]
    p, g = torch.rand(len(plan.edges), len(plan.operations)), torch.rand(len(plan.edges))
    sizes = [Size(channels, 9, 7) for _ in inputs]
    operations = forward_operations(plan, 3, sizes)
    assert operations == counted(lambda: call(module, plan, inputs, p, g)) > 0
    assert backward_operations(plan, 3, sizes, [True] * plan.inputs, True) == 2 * operations
    assert sum(s.operations for s in stages(plan, 3, sizes)) == 3 * operations


@pytest.mark.parametrize(("prepared", "nodes"), [(True, 2), (False, 1)])
def test_gradients_that_nobody_asks_for_cost_nothing(prepared, nodes):
    plan = CellPlan(4, FEW, nodes, False, ("conv", "conv") if prepared else ("identity",))
    sizes = [Size(4, 8, 8)] * plan.inputs
    everything = forward_operations(plan, 1, sizes)
    first = sum(s.operations for s in stages(plan, 1, sizes) if s.name.startswith("bundle 2 for"))
    # Only p: the gradients of the nodes, which the bundles of the inputs do not lead to.
    only_p = backward_operations(plan, 1, sizes, [False] * plan.inputs, False)
    assert only_p == (first if nodes > 1 else 0)
    preprocessing = stages(plan, 1, sizes)[0].operations
    only_weights = backward_operations(plan, 1, sizes, [False] * plan.inputs, True)
    assert only_weights == (2 * everything - preprocessing if prepared else everything)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operations": ("none", "none")}, "at most once"),
        ({"operations": ("conv_7x1_1x7",)}, "some of none"),
        ({"partial_channels": 3}, "K=3"),
        ({"output_nodes": 5}, "output_nodes=5 of 3"),
        ({"preprocess": ("conv", "reduce")}, "last of them not 'reduce'"),
        ({"active": ((0,),)}, "1 edges of 9"),
    ],
)
def test_plans_that_make_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        replace(CellPlan(4, FEW, 3, False, ("conv", "conv")), **change)
