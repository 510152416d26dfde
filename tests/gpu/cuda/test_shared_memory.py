"""Tiles for GPUs with little shared memory, compute capability 8.6, 8.9 and 12.0, and with much."""

from typing import Any

import pytest
import torch

from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.layout import layout_of
from da2s_fast.ops.cell.triton.tables import tables_of
from da2s_fast.spaces.space import DA2S
from tests.gpu.cells import check
from tests.gpu.cuda.cells import ONE_PLACE
from tests.ops.cell_cases import make_case

SMALL, LARGE = 99 << 10, 227 << 10


@pytest.fixture
def small(monkeypatch) -> None:
    """A device whose programs have 99 KB."""
    monkeypatch.setattr(compiled, "_shared_memory", lambda device: SMALL)


def arguments_of(plan: CellPlan, *size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of both kernels, for 64 images of a size."""
    shapes = ((plan.channels, *size),) * plan.inputs
    key = tuple(plan.code), 64, shapes, True
    cpu = torch.device("cpu")
    layout, tables = layout_of(*key), tables_of(*key, (), False, cpu)
    return (
        compiled.nodes_arguments(layout, tables.making, cpu),
        compiled.reach_arguments(layout, tables.reaching, cpu),
    )


# Of 32x32 images, and of 224x224 behind a stem that leaves 28x28.
STAGES = [(16, 32), (32, 16), (64, 8), (4, 56), (8, 28), (16, 28), (32, 14), (64, 7)]


@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
@pytest.mark.parametrize(("channels", "side"), STAGES)
def test_every_stage_has_a_tile(small, channels, side, reduction):
    plan = CellPlan(channels, DA2S.primitives, DA2S.nodes, reduction, ("conv", "conv"))
    size = side * (2 if reduction else 1)
    for arguments in arguments_of(plan, size, size):
        assert 0 < arguments["shared"] <= SMALL


@pytest.mark.parametrize(
    ("channels", "side", "reduction"),
    [
        *((*stage, False) for stage in STAGES),
        *((*stage, True) for stage in STAGES if stage[0] not in (16, 64)),
    ],
)
def test_two_programs_fit_where_there_is_much(monkeypatch, channels, side, reduction):
    """A multiprocessor has one KB more than a program may have, and takes one for each."""
    monkeypatch.setattr(compiled, "_shared_memory", lambda device: LARGE)
    plan = CellPlan(channels, DA2S.primitives, DA2S.nodes, reduction, ("conv", "conv"))
    size = side * (2 if reduction else 1)
    for arguments in arguments_of(plan, size, size):
        assert 2 * (arguments["shared"] + 1024) <= LARGE + 1024


def test_no_tile_has_more_images_than_a_chunk(monkeypatch):
    """Their numbers would be computed in vain."""
    monkeypatch.setattr(compiled, "_shared_memory", lambda device: LARGE)
    plan = CellPlan(16, DA2S.primitives, DA2S.nodes, False, ("conv", "conv"))
    images = layout_of(tuple(plan.code), 64, ((16, 8, 8),) * 2, True).images
    # A whole tile has 4.
    assert arguments_of(plan, 8, 8)[1]["log_images"] == (images - 1).bit_length() < 2


@ONE_PLACE
def test_gradients_are_as_accurate_out_of_smaller_tiles(device, small):
    plan = CellPlan(64, ("sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3"), 1, True, ("identity",))
    case = make_case(plan, (1, 6, 16))
    _, arguments = arguments_of(plan, *case.inputs[0].shape[2:])
    extents = arguments["log_width"] + arguments["log_height"] + arguments["log_images"]
    assert plan.channels << extents < 4096
    check(case, torch.float32, device)
