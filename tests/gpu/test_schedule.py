"""Launches without Triton's own way to them, on a driver that only notes what it is handed over."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import lru_cache, partial
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from da2s_fast.kernels import direct, schedule
from da2s_fast.kernels.launch import CudaKernel, Launch, launch, launched_by
from da2s_fast.ops import discretization_loss_triton, mixed_sum_triton
from da2s_fast.ops.cell.triton import compiled, drivers
from da2s_fast.ops.cell.triton.tables import tables_of
from da2s_fast.ops.mixed_sum import BATCH, NONE, RUNNING
from tests.gpu.cells import gradients_of
from tests.ops.cell_cases import PLANS, make_case


@triton.jit
def both(tensors, scale, to, missing, COUNT: triton.language.constexpr):
    """Add up two tensors."""
    at = triton.language.arange(0, COUNT)
    value = triton.language.load(tensors[0] + at) + triton.language.load(tensors[1] + at)
    triton.language.store(to + at, value * scale)


class Driver:
    """What Triton needs of one for compute capability 9.0.

    Attributes:
        started: what launchers were called with.
        asked: how often Triton was asked to start a kernel.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.started: list[tuple[Any, ...]] = []
        self.stream = 7
        self.utils = SimpleNamespace(
            load_binary=lambda *of: (object(), object(), 32, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
        )
        self.launcher_cls = lambda source, metadata: self.launcher
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: self.stream
        self.get_current_target = lambda: GPUTarget("cuda", 90, 32)

    def launcher(self, *arguments: Any) -> None:
        self.started.append(arguments)

    def taken(self) -> list[tuple[Any, ...]]:
        """What was started since the last question, addresses instead of tensors."""
        found, self.started = self.started, []
        # Behind grid, stream, function and metadata is what hooks would be told.
        return [(*one[:6], *map(addressed, one[9:])) for one in found]


def addressed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(addressed, value))
    return value.data_ptr() if isinstance(value, Tensor) else value


@pytest.fixture
def driver(monkeypatch) -> Iterator[Driver]:
    """Triton's active driver; what it compiled is forgotten afterwards."""
    found = Driver()
    kernels: dict[int, Any] = {}
    once = triton.JITFunction.run

    def run(kernel: Any, *of: Any, **by: Any) -> Any:
        kernels[id(kernel)] = kernel
        found.asked += 1
        return once(kernel, *of, **by)

    monkeypatch.setattr(triton.JITFunction, "run", run)
    triton.runtime.driver.set_active(found)
    schedule.forget()
    yield found
    schedule.forget()
    for kernel in kernels.values():
        kernel.device_caches.clear()
    triton.runtime.driver._active = None


def run_cell(name: str, seed: int) -> None:
    case = make_case(PLANS[name], (2, 5, 4), frozen="some", seed=seed).to(torch.float32)
    _, statistics, _ = gradients_of(case)
    tracked = [torch.zeros((), dtype=torch.int64) for _ in case.plan.norm_channels]
    settings = case.frozen, list(case.plan.code), [40, 40, 40], 0.1
    drivers.cell_update_running(statistics, case.running, tracked, *settings)


def run_operators(seed: int) -> None:
    """mixed_sum and discretization_loss."""
    torch.manual_seed(seed)
    alphas, betas = [torch.randn(5, 4), torch.randn(5, 3).t().contiguous().t()], [torch.randn(5)]
    discretization_loss_triton.discretization_loss(alphas, betas, [2, 3], [2, 1])
    inputs = [torch.randn(2, 3, 4, 5) for _ in range(3)]
    weights, running = torch.randn(3), [[torch.rand(3)], [torch.rand(3)]]
    settings = [BATCH, NONE, RUNNING], [1e-5, 0.0, 1e-3]
    grad, *statistics = mixed_sum_triton.mixed_sum(inputs, weights, *running, *settings)
    mixed_sum_triton.mixed_sum_backward(
        grad, inputs, weights, *statistics, *settings, [True, False, True], True
    )


@pytest.mark.parametrize(
    "run", [partial(run_cell, "cut"), partial(run_cell, "normal"), run_operators]
)
def test_what_is_started_is_what_triton_would_start(driver, monkeypatch, run):
    """With other tensors than Triton has seen."""
    run(seed=0)
    first = driver.taken()
    driver.stream = 9
    functions = []
    once = schedule.Schedule.start

    def start(own: schedule.Schedule, tensors: Any) -> None:
        # Both find the same memory.
        with monkeypatch.context() as patch:
            patch.setattr(direct, "is_watched", lambda: True)
            once(own, tensors)
        expected, asked = driver.taken(), driver.asked
        once(own, tensors)
        assert driver.taken() == expected
        assert driver.asked == asked
        functions.extend(one[4:6] for one in expected)
        assert {one[3] for one in expected} == {9}

    monkeypatch.setattr(schedule.Schedule, "start", start)
    run(seed=1)
    assert functions == [one[4:6] for one in first]


def build(slots: dict[str, schedule.Slot], scale: int) -> None:
    part = slots["x"].narrow(0, 1, 4)
    tensors = part, slots["y"]
    launch(both, (2,), tensors=tensors, scale=scale, to=slots["x"], missing=None, COUNT=4)


def started(driver: Driver, x: Tensor, scale: int = 1) -> tuple[Any, ...]:
    schedule.start(build, {"x": x, "y": torch.zeros(4)}, scale)
    (found,) = driver.taken()
    return found


def test_parts_are_where_the_tensor_is(driver):
    for _ in range(3):
        x = torch.zeros(8)
        *_, (first, _), scale, to, missing, count = started(driver, x)
        assert (first, scale, to) == (x.data_ptr() + 4, 1, x.data_ptr())
        assert (missing, count) == (None, 4)


def test_kernels_for_other_alignments_and_values_are_others(driver):
    aligned, other = torch.zeros(16), torch.zeros(16)[1:]
    functions = {}
    for _ in range(3):
        for key in ((aligned, 1), (other, 1), (aligned, 16), (aligned, 3)):
            function = started(driver, *key)[4]
            assert functions.setdefault((key[0].data_ptr(), key[1]), function) is function
    assert len(set(map(id, functions.values()))) == 4
    doubles = started(driver, aligned.double())[4]
    assert doubles not in functions.values()


def test_triton_starts_what_hooks_hear_of(driver, monkeypatch):
    for _ in range(3):
        started(driver, torch.zeros(8))
    asked = driver.asked
    # A function in older versions, a chain of functions in later ones.
    if knobs.runtime.launch_enter_hook is None:
        monkeypatch.setattr(knobs.runtime, "launch_enter_hook", print)
    else:
        monkeypatch.setattr(knobs.runtime.launch_enter_hook, "calls", [print])
    for _ in range(3):
        started(driver, torch.zeros(8))
        started(driver, torch.zeros(12)[1:])  # nothing is learned now
    assert driver.asked == asked + 6


@pytest.mark.parametrize("change", ["more", "another way", "no kernel"])
def test_what_is_not_as_expected_is_left_to_triton(driver, monkeypatch, change):
    """And nothing is started twice."""
    if change == "more":
        once = CompiledKernel.run.fget
        more = property(lambda own: lambda *of: once(own)(*of, "more"))
        monkeypatch.setattr(CompiledKernel, "run", more)
    elif change == "another way":
        monkeypatch.setattr(CompiledKernel, "run", driver.launcher)
    else:
        monkeypatch.setattr(direct, "CompiledKernel", Driver)
    for _ in range(4):
        started(driver, torch.zeros(8))
    assert driver.asked == 4


def test_only_the_thread_that_watches_starts_nothing(driver):
    watching: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            def start(**arguments: Any) -> None:
                thread = Thread(target=compiled._run, args=("another",))
                thread.start()
                thread.join()
                compiled._run("own")
                watching.append(compiled._run)

            return start

    watched = type("", (), {"run": property(lambda own: own._run), "_run": driver.launcher})
    compiled = watched()
    full = Launch(Kernel(), (1,), {}, 4, 1)
    assert direct._watched(full, compiled) == ("own",)
    assert driver.started == [("another",)]
    assert compiled._run == driver.launcher != watching[0]


@pytest.mark.parametrize("recorded", [True, False])
def test_what_a_graph_recorded_stays_where_it_is(driver, monkeypatch, recorded):
    """Whatever a cell's drivers hand to kernels of their own, once no cache has it any more."""
    tables: dict[str, list[weakref.ref[Tensor]]] = {}
    once = schedule.Schedule.start

    def start(own: schedule.Schedule, tensors: Any) -> None:
        for one in own._launches:
            values = one.arguments.values()
            found = [weakref.ref(value) for value in values if isinstance(value, Tensor)]
            tables.setdefault(one.kernel.__name__, []).extend(found)
        once(own, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(schedule.Schedule, "start", start)
        patch.setattr(direct, "is_recorded", lambda: recorded)
        run_cell("normal", seed=0)
    driver.taken()
    for cache in (tables_of, drivers._table, schedule._kept):
        cache.cache_clear()
    gc.collect()
    assert {"convolve", "reach_states", "update_running"} <= tables.keys()
    for kernel, found in tables.items():
        assert found, kernel
        assert all((table() is not None) == recorded for table in found), kernel


def test_a_graph_that_is_recorded_anew_starts_what_is_there(driver, monkeypatch):
    made = []

    def build_with_table(slots: dict[str, schedule.Slot], scale: int) -> None:
        made.append(torch.zeros(4))
        tensors = made[-1], slots["x"]
        launch(both, (1,), tensors=tensors, scale=scale, to=slots["x"], missing=None, COUNT=4)

    def tables_at(*scales: int) -> list[int]:
        for scale in scales:
            schedule.start(build_with_table, {"x": torch.zeros(4)}, scale)
        return [tensors[0] for *_, tensors, _, _, _, _ in driver.taken()]

    monkeypatch.setattr(schedule, "_kept", lru_cache(maxsize=1)(schedule._made))
    with monkeypatch.context() as patch:
        patch.setattr(direct, "is_recorded", lambda: True)
        first = tables_at(2, 3)
    assert tables_at(4, 2)[0] not in first  # another takes the only place
    monkeypatch.setattr(direct, "is_recorded", lambda: True)
    assert tables_at(2, 3) == first


def test_operators_are_given_tensors():
    seen = []
    schema = SimpleNamespace(arguments=[SimpleNamespace(name=n) for n in ("grid", "x", "size")])

    def default(*arguments: Any) -> None:
        seen.append(arguments)

    default._schema = schema
    operator = SimpleNamespace(default=default)
    slot = schedule.Slot("x", torch.float32, torch.device("cpu"), (4,), (1,))
    with launched_by(seen.append):
        launch(CudaKernel("own", operator), (3, 2), size=5, x=slot)
    start = direct.operator(seen.pop(), {slot: 0})
    x = torch.zeros(4)
    start([], [x], 0)
    ((grid, given, size),) = seen
    assert grid == [3, 2]
    assert given is x
    assert size == 5


def test_a_list_has_one_type(driver):
    with pytest.raises(ValueError, match="values"):
        schedule.start(build, {"x": [torch.zeros(1), torch.zeros(1).double()]})


def test_tuples_are_lists_that_are_known_to_have_one_type(driver):
    def build_pair(slots: dict[str, Any]) -> None:
        launch(both, (1,), tensors=slots["x"], scale=1, to=slots["y"], missing=None, COUNT=4)

    for kind in (list, tuple, tuple):
        pair = kind(torch.zeros(4) for _ in range(2))
        schedule.start(build_pair, {"x": pair, "y": torch.zeros(4)})
        (found,) = driver.taken()
        assert found[6] == tuple(tensor.data_ptr() for tensor in pair)


@pytest.mark.parametrize("size", [0, 1, 4])
def test_alignment_is_that_of_every_address(size):
    of = [
        direct.alignment([16 * place + (place == odd) * 4 for place in range(size)])
        for odd in range(-1, size)
    ]
    assert len(set(of)) == size + 1


def test_operators_of_the_library_are_called_by_their_schemas(monkeypatch):
    """They have no kernels for CPUs, which torch says once arguments were accepted."""
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    found = []
    once = schedule.Schedule.start

    def start(own: schedule.Schedule, tensors: Any) -> None:
        for one in own._launches:
            if isinstance(one.kernel, CudaKernel):
                parts = [slot.filled(tensors) for slot in own._parts]
                numbers = {slot: number for number, slot in enumerate(own._parts)}
                started = direct.operator(one, numbers)
                with pytest.raises(NotImplementedError, match="'CPU' backend"):
                    started([], parts, 0)
                found.append(one.kernel.name)
        once(own, tensors)

    monkeypatch.setattr(schedule.Schedule, "start", start)
    case = make_case(PLANS["normal"], (2, 5, 4)).to(torch.float32)
    with launched_by(lambda launch: None):
        gradients_of(case)
    assert set(found) == {"cell_nodes", "cell_reach"}
