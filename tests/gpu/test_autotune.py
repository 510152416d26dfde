"""The autotuner, with stand-ins for the GPU and its clock."""

import contextlib

import pytest
import torch
from triton.runtime.errors import OutOfResources

from da2s_fast import kernels
from da2s_fast.kernels.launch import CudaKernel, Launch
from da2s_fast.kernels.tuning import TABLE, Parameters
from da2s_fast.ops import _autotune, _triton

TIMES = {1: 3.0, 2: 2.0, 4: 4.0, 8: 1.0}


def adding(x: torch.Tensor, grid: int = 7, warps: int = 4, registers: int | None = None) -> Launch:
    """Of a kernel that is no good twice, whose arguments share memory."""
    return Launch("add", (grid,), {"x": x, "parts": (x[1:], None), "N": 3}, warps, 1, registers)


class Clock:
    """Executes launches by adding 1, and knows how long they take."""

    def __init__(self, times: dict[int, float]) -> None:
        self.times, self.started, self.tried = times, [], []

    def start(self, launch: Launch) -> None:
        self.started.append((launch.warps, launch.registers))
        launch.arguments["x"].add_(1)

    def measure(self, start, launch: Launch) -> float:
        self.tried.append((launch.warps, launch.registers))
        if launch.warps not in self.times:
            raise OutOfResources(1, 2, "threads")
        start(launch)
        start(launch)
        return self.times[launch.warps]


def test_the_fastest_is_found_once_and_memory_stays(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    clock, x = Clock(TIMES), torch.zeros(4)
    tuner = _autotune.Tuner(clock.start, clock.measure)
    for count in (1, 2):
        tuner(adding(x, registers=64))
        assert torch.equal(x, torch.full((4,), float(count)))
        assert clock.started[-1] == (8, 64)
    # The table's own comes first.
    assert clock.tried[0] == (4, 64)
    assert set(clock.tried) == {(w, r) for w in (2, 4, 8) for r in (64, None)}
    assert len(clock.tried) == 6
    tuner(adding(torch.zeros(5)))  # another size is another kind
    assert len(clock.tried) == 9


def test_compiled_kernels_start_as_they_are():
    clock, launch = Clock(TIMES), adding(torch.zeros(4))
    _autotune.Tuner(clock.start, clock.measure)(launch._replace(kernel=CudaKernel("add", print)))
    assert clock.started == [(4, None)]
    assert not clock.tried


def test_what_does_not_fit_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    clock = Clock({4: 1.0, 2: 1.0})
    _autotune.Tuner(clock.start, clock.measure)(adding(torch.zeros(4)))
    assert clock.started[-1] == (4, None)  # nor what is no faster


def test_nothing_is_tried_while_a_graph_is_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    clock = Clock(TIMES)
    _autotune.Tuner(clock.start, clock.measure)(adding(torch.zeros(4)))
    assert clock.tried == []
    assert clock.started == [(4, None)]


@pytest.mark.parametrize(
    ("asked", "there", "tunes"), [("1", True, True), ("1", False, False), ("", True, False)]
)
def test_only_where_it_was_asked_for_and_a_gpu_is(monkeypatch, asked, there, tunes):
    monkeypatch.setenv("DA2S_AUTOTUNE", asked)
    monkeypatch.setattr(kernels, "can_run", lambda: (there, "so"))
    _autotune._tuner.cache_clear()
    assert isinstance(_autotune.autotuned(), contextlib.nullcontext) == (not tunes)
    _autotune._tuner.cache_clear()


def test_the_table():
    cpu = torch.device("cpu")
    for kernel, entries in TABLE.items():
        assert 80 in entries
        assert all(isinstance(entry, Parameters) for entry in entries.values())
        assert _triton.launched_as(kernel, cpu) == entries[80]._asdict()
    assert _triton.launched_as("mix", cpu, 64)["warps"] == 2
    assert _triton.launched_as("mix", cpu, 4)["warps"] == 1
