"""The kernels of csrc/cuda for the cell."""

import re

import pytest
import torch

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.launch import CudaKernel, Launch, launch, launched_by
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.layout import layout_of
from da2s_fast.ops.cell.triton.tables import tables_of
from tests.gpu.cells import check, evaluate, gradients_of, on, tiles_of
from tests.gpu.cuda.cells import (
    ONE_PLACE,
    ONLY_SEPARABLE,
    PLANS,
    POOLS,
    SEVERAL_TILES,
    SMALL,
    check_forward,
    forward_of,
)
from tests.gpu.ptx import cuda
from tests.ops.cell_cases import as_results, make_case


@pytest.mark.parametrize("name", PLANS)
def test_as_accurate_as_eager(device, name):
    check_forward(make_case(PLANS[name], (3, 7, 10), frozen="some"), device)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("sm_80", "pools"),
        ("sm_80", "shuffled"),
        ("sm_80", "halves"),
        ("sm_90", "reduction"),
        ("sm_90", "widest"),
        ("sm_90", "all kinds"),
        ("sm_100", "two layers"),
        pytest.param("gpu", "pools", marks=pytest.mark.gpu),
        pytest.param("gpu", "all kinds", marks=pytest.mark.gpu),
        pytest.param("gpu", "shuffled", marks=pytest.mark.gpu),
        pytest.param("gpu", "halves", marks=pytest.mark.gpu),
        pytest.param("gpu", "reduction", marks=pytest.mark.gpu),
        pytest.param("gpu", "widest", marks=pytest.mark.gpu),
        pytest.param("gpu", "two layers", marks=pytest.mark.gpu),
    ],
    indirect=["device"],
)
def test_gradients_are_as_accurate_as_eager_ones(device, name):
    """Triton's backward pass reads what CUDA's forward pass leaves: z, moments, positions."""
    check(make_case(PLANS[name], (2, 5, 7)), torch.float32, device)


@ONE_PLACE
@pytest.mark.usefixtures("handed_in")
def test_gradients_of_a_chunk_of_several_tiles(device):
    """A tile hands rows to the next."""
    with tiles_of(256):
        check(make_case(*SEVERAL_TILES), torch.float32, device)


@ONE_PLACE
@pytest.mark.parametrize("name", ["two layers", "halves"])
def test_weights_that_want_no_gradients_change_no_others(device, name):
    case = on(make_case(PLANS[name], (2, 5, 7)).to(torch.float32), device)
    _, _, (inputs, p, g, _) = gradients_of(case)
    mask = [True] * (len(inputs) + 2) + [False]
    _, _, (own_inputs, own_p, own_g, weights) = gradients_of(case, mask=mask)
    assert all(torch.equal(*pair) for pair in zip(inputs, own_inputs, strict=True))
    assert torch.equal(p, own_p)
    assert torch.equal(g, own_g)
    assert weights.numel() == 0


@ONE_PLACE
@pytest.mark.parametrize(("channels", "parts"), [(16, 1), (32, 2), (32, 1), (64, 1)])
def test_gradients_through_halves(device, channels, parts):
    """Of given statistics, and of partial channels too."""
    plan = CellPlan(channels, ("skip_connect",), 1, True, ("identity",), parts)
    check(make_case(plan, (3, 3, 10), frozen="some"), torch.float32, device)


@ONE_PLACE
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 40), (3, 33, 3)])
def test_images_of_any_shape(device, size):
    check_forward(make_case(SMALL, size), device)


@ONE_PLACE
@pytest.mark.parametrize("channels", [32, 64])
def test_many_channels(device, channels):
    plan = CellPlan(channels, (*ONLY_SEPARABLE, "avg_pool_3x3"), 1, True, ("identity",))
    check_forward(make_case(plan, (1, 5, 9)), device)


@ONE_PLACE
def test_a_chunk_of_several_tiles(device):
    """More pixels than a tile has, and a norm whose values are far from 0."""
    case = make_case(CellPlan(16, ONLY_SEPARABLE, 1, False, ("identity",)), (1, 20, 20))
    case.inputs[0] += 100
    with tiles_of(256):
        check_forward(case, device)


@ONE_PLACE
def test_nan_and_ties_of_pools_go_where_those_of_eager_go(device):
    case = make_case(CellPlan(4, POOLS, 1, True, ("identity",)), (2, 5, 7))
    case.inputs[0] = case.inputs[0].round().sub_(3)
    case.inputs[0][0, 0, 2, 2] = torch.nan
    case.inputs[0][1, 1] = -torch.inf
    own = case.to(torch.float32)
    expected, _ = own(backend="reference")
    found = forward_of(on(own, device))["output"]
    assert torch.equal(found.isnan(), expected.isnan())


@ONE_PLACE
def test_nan_and_infinities_come_back_where_they_do_in_eager(device):
    """Also through `none`, which multiplies by 0."""
    case, eager = (make_case(PLANS["all kinds"], (2, 5, 7)).to(torch.float32) for _ in range(2))
    incoming = torch.ones(2, 16, 5, 7)
    incoming[0, 5, 2, 3], incoming[1, 0, 0, 0] = torch.nan, torch.inf
    eager.require()
    output, statistics = eager(backend="reference")
    gradients = torch.autograd.grad(output, eager.leaves, incoming)
    expected = as_results(eager, output, statistics, gradients)
    found = evaluate(on(case, device), incoming=incoming.to(device))
    for key in ("input 0", "p", "g"):
        assert torch.equal(found[key].cpu().isfinite(), expected[key].isfinite()), key
    assert not found["input 0"].isfinite().all()
    assert found["input 0"].isfinite().any()


@ONE_PLACE
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, torch.channels_last),
        (torch.float16, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last),
    ],
)
def test_the_output_has_the_type_and_layout_of_the_inputs(device, dtype, layout):
    """Rounded once, to nearest."""
    case = on(make_case(PLANS["all kinds"], (2, 5, 7)).to(torch.float32), device)
    rounded = [x.to(dtype) for x in case.inputs]
    case.inputs = [x.float() for x in rounded]
    expected = forward_of(case)["output"].to(dtype)
    case.inputs = [x.contiguous(memory_format=layout) for x in rounded]
    found = forward_of(case)["output"]
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)


@ONE_PLACE
def test_recomputing_gives_the_same_bits(device):
    case = on(make_case(SMALL, (2, 5, 7), frozen="some").to(torch.float32), device)
    saved, again = evaluate(case), evaluate(case, memory="recompute")
    for key, value in saved.items():
        assert torch.equal(again[key], value), key


def test_columns_are_those_of_the_tables():
    """The enumerations of table.cuh follow the classes of rows.py."""
    text = (cuda.SOURCES / "cuda/cell/table.cuh").read_text()
    groups = [
        re.findall(r"k(\w+)", body) for body in re.findall(r"enum : int \{(.*?)\}", text, re.S)
    ]
    layer, kinds, group, task, works, wait, pack, mix = groups
    assert layer == [*map(camel, rows.Layer._fields), "Layer"]
    assert group == [*(f"Group{camel(name)}" for name in rows.Group._fields), "Group"]
    assert task == [*(f"Task{camel(name)}" for name in rows.Task._fields), "Task"]
    assert wait == [*(f"Wait{camel(name)}" for name in rows.Wait._fields), "Wait"]
    assert pack == [*(f"Pack{camel(name)}" for name in rows.Pack._fields), "Pack"]
    assert mix == [*(f"Mix{camel(name)}" for name in rows.Mix._fields), "Mix"]
    assert [getattr(rows, kind.upper()).value for kind in kinds] == [*range(len(kinds))]
    works = [work.removeprefix("Work").upper() for work in works]
    assert [getattr(rows.Work, work) for work in works] == [*range(len(works))]


def camel(name: str) -> str:
    return name.title().replace("_", "")


def test_why_it_does_not_run(monkeypatch):
    """Every reason is said, and nothing else is left to Triton."""
    cpu = torch.device("cpu")

    def reason(plan, size=(2, 8, 8), dtype=torch.float32, weights=torch.float32):
        case = make_case(plan, size)
        key = tuple(plan.code), size[0], tuple(tuple(x.shape[1:]) for x in case.inputs), True
        tasks = tables_of(*key, (), False, cpu).making
        z = torch.empty(0, dtype=dtype)
        p = torch.empty(0, dtype=weights)
        return compiled.nodes_reason(layout_of(*key), tasks, p, None, z)

    assert "a tensor is on cpu" in reason(SMALL)
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    assert reason(SMALL) is None
    assert "float64" in reason(SMALL, dtype=torch.float64)
    assert "p is torch.float64" in reason(SMALL, weights=torch.float64)
    assert "5 channels" in reason(CellPlan(5, ONLY_SEPARABLE, 1, False, ("identity",)))
    dense = CellPlan(4, ("nor_conv_3x3",), 1, False, ("identity",))
    assert "dense convolutions" in reason(dense)
    halves = CellPlan(4, ("skip_connect",), 1, True, ("identity",))
    assert "no multiple of 8" in reason(halves)
    wide = CellPlan(64, ONLY_SEPARABLE, 1, False, ("identity",))
    assert "more than a tile" in reason(wide, (1, 2, 65))
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_MOST_PIXELS", 127)
        assert "128 pixels are more than 127" in reason(SMALL)
    wide = CellPlan(64, ("dil_conv_5x5",), 1, True, ("identity",))
    assert "bytes of shared memory" in reason(wide, (1, 4, 128))


def test_operators_take_what_launches_hand_over(monkeypatch):
    """Names and types of all arguments: what is missing is a kernel for the CPU, and no more."""
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    launches: list[Launch] = []
    with launched_by(launches.append):
        gradients_of(make_case(SMALL, (2, 5, 7)).to(torch.float32))
    own = [started for started in launches if isinstance(started.kernel, CudaKernel)]
    assert {started.kernel for started in own} == {
        compiled.NODES,
        compiled.REACH,
    }
    for started in own:
        with pytest.raises(NotImplementedError, match="'CPU' backend"):
            launch(started.kernel, started.grid, **started.arguments)
