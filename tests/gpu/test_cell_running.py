"""Running statistics of a cell on the compiled code of the GPU's kernel."""

import pytest
import torch
from torch import Tensor

from da2s_fast.ops.cell.function import update_running
from da2s_fast.ops.cell.triton import drivers
from tests.gpu.ptx.errors import KernelFault
from tests.gpu.test_cell import ONE_PLACE
from tests.ops.cell_cases import PLANS, Case, make_case
from tests.ops.test_cell_function import check_running


def make_running(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Case, Tensor]:
    case = make_case(PLANS[name], (3, 5, 4), frozen="some")
    torch.manual_seed(0)
    return case, torch.rand(2 * sum(case.plan.norm_channels), device=device, dtype=dtype)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_as_those_of_batch_norm(device, momentum):
    check_running(*make_running("reduction", device, torch.float32), momentum, torch.float32)


@ONE_PLACE
@pytest.mark.parametrize(
    ("statistics", "buffers"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("momentum", [0.7, 1.0, None])
def test_other_types(device, momentum, statistics, buffers):
    check_running(*make_running("cut", device, statistics), momentum, buffers)


@ONE_PLACE
def test_several_launches_blocks_and_types(device, monkeypatch):
    monkeypatch.setattr(drivers, "_MOST_NORMS", 3)
    monkeypatch.setattr(drivers, "_BLOCK", 2)
    case, statistics = make_running("dense", device, torch.float32)
    check_running(case, statistics, 0.1, torch.float32)
    own = [buffer.to(device) for buffer in case.running]
    mixed = [b.double() if slot % 2 else b.clone() for slot, b in enumerate(own)]
    gaps = [torch.stack([b, b], 1)[:, 0] for b in own]
    for running in (own, mixed, gaps):
        update_running(statistics, running, [], case.plan, size=(3, 5, 4), frozen=case.frozen)
    for value, *others in zip(own, mixed, gaps, strict=True):
        for other in others:
            torch.testing.assert_close(other.to(value), value)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("values / (values - 1)", "values / values"),
        ("tl.load(counter) + 1", "tl.load(counter)"),
        ("index == other", "index > other"),
        ("share = 1 / count.to", "share = 1 + count.to"),
        ("tl.load(new + channels + c", "tl.load(new + c"),
        ("table + 3 * index + 2)", "table + 2)"),
    ],
)
def test_planted_bugs_are_noticed(device, plant, old, new):
    plant(drivers, old, new)
    with pytest.raises((AssertionError, KernelFault)):
        check_running(*make_running("reduction", device, torch.float32), None, torch.float32)
