"""Steps recorded once per epoch and replayed: the same search, to the same bits.

Without a GPU a stand-in takes the place of CUDA's recording: it replays by taking the step again,
on the buffers that were given when it was recorded.
"""

import contextlib
import copy
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from da2s_fast.errors import UserError
from da2s_fast.search import SearchSettings, graph
from da2s_fast.search.graph import FIRST_STEPS, GraphSteps, Recorder, StepResult
from da2s_fast.search.loop import run_search
from tests.search.conftest import TINY
from tests.search.test_session import METHODS, assert_same_bits

EPOCHS, STEPS = 4, 6


class StandIn:
    """As `Recorder`, on the CPU: recording takes no step, results are NaN until replayed."""

    recorded: int
    replayed: int

    def __init__(self, device):
        pass

    def beside(self):
        return contextlib.nullcontext()

    def record(self, step):
        StandIn.recorded += 1
        nan = torch.full((), torch.nan)
        result = StepResult(nan, nan.clone(), torch.tensor(-1))

        def replay():
            StandIn.replayed += 1
            for place, value in zip(result, step(), strict=True):
                place.copy_(value)

        return replay, result


@pytest.fixture
def stand_in(monkeypatch):
    StandIn.recorded = StandIn.replayed = 0
    monkeypatch.setattr(graph, "Recorder", StandIn)
    return StandIn


class Folder:
    """Keeps what a run folder would write."""

    path = checkpoint = None

    def __init__(self):
        self.saved = []

    def save(self, state, history):
        self.saved.append((copy.deepcopy(state), copy.deepcopy(history)))

    def write_metrics(self, history):
        pass

    def write_result(self, genotype, summary):
        pass


def recorded(session):
    """The session with graphs, which the settings only allow on GPUs."""
    session.settings = replace(session.settings, cuda_graph=True)
    return session


def run(session, folder=None, **options) -> dict[str, Any]:
    """The last checkpoint and all metrics."""
    folder = folder or Folder()
    run_search(session, folder, **options)
    state, history = folder.saved[-1]
    history = [{k: v for k, v in metrics.items() if k != "seconds"} for metrics in history]
    return {"state": state, "history": history}


@pytest.mark.parametrize(
    "settings",
    [
        *({"method": method, "channels": 8} for method in METHODS),
        {"method": "darts", "second_order": True},
    ],
    ids=[*METHODS, "second order"],
)
def test_the_same_search_with_and_without(make_session, stand_in, settings):
    expected = run(make_session(**settings))
    assert stand_in.recorded == 0
    assert_same_bits(run(recorded(make_session(**settings))), expected)
    assert stand_in.recorded == EPOCHS
    assert stand_in.replayed == EPOCHS * (STEPS - FIRST_STEPS)


def test_resumed_to_the_same_bits(make_session, stand_in):
    folder = Folder()
    expected = run(recorded(make_session()), folder)
    state, history = folder.saved[2]
    assert len(history) == 2
    session = recorded(make_session())
    session.load_state_dict(state)
    assert_same_bits(run(session, history=history), expected)


def test_a_checkpoint_of_another_kind_of_device(make_session):
    """Adam counts on the device on GPUs, and only there."""
    session, other = make_session(), make_session()
    for one in (session, other):
        one.begin_epoch(2)
        one.step(one.weight_loader.next_batch(), one.arch_loader.next_batch())
    state = session.state_dict()
    for group in state["arch_optimizer"]["param_groups"]:
        group["capturable"] = True
    session.load_state_dict(state)
    for one in (session, other):
        one.step(one.weight_loader.next_batch(), one.arch_loader.next_batch())
    assert_same_bits(session.state_dict(), other.state_dict())


WAITS = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique_dim",
    "aten._unique2",
}
# Numbers of the host as a tensor: on a GPU, a copy that waits.
COPIES = {"aten.lift_fresh", "aten.lift_fresh_copy"}


class NoReading(TorchDispatchMode):
    """Fails where a graph could not be recorded."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        if name in WAITS | COPIES:
            raise AssertionError(f"{name} waits for the device")
        indices = args[1] if name in {"aten.index", "aten.index_put_"} else ()
        if any(i is not None and i.dtype == torch.bool for i in indices):
            raise AssertionError(f"the shape of {name} depends on numbers")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "settings",
    [
        *({"method": method, "channels": 8} for method in METHODS),
        {"method": "darts", "second_order": True},
        {"method": "da2s", "precision": "bfloat16"},
        {"space": "nas-bench-201", "operations": None, "cells": 1},
    ],
    ids=[*METHODS, "second order", "bfloat16", "nas-bench-201"],
)
def test_a_step_reads_no_number(make_session, monkeypatch, settings):
    session = make_session(**settings)
    # Adam as on a GPU, where it counts its steps in a tensor.
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    for group in session.arch_optimizer.param_groups:
        group["capturable"] = True
    session.begin_epoch(3)
    batches = session.weight_loader.next_batch(), session.arch_loader.next_batch()
    session.step(*batches)  # makes what is made once
    with NoReading():
        session.step(*batches)


@pytest.mark.parametrize(
    "reads", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0])]
)
def test_reading_would_be_noticed(reads):
    x = torch.ones(3)
    with NoReading(), pytest.raises(AssertionError):
        reads(x)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"device": "cpu"}, "cuda_graph=True needs a GPU, but device='cpu'"),
        ({"device": "cuda", "precision": "float16"}, "cannot scale the loss"),
    ],
)
def test_what_cannot_be_recorded_is_refused(digits, monkeypatch, settings, problem):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(UserError, match=problem):
        SearchSettings(**TINY | settings, cuda_graph=True).resolved(digits)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"device": "cpu"}, False),
        ({"device": "cuda"}, True),
        ({"device": "cuda", "cuda_graph": False}, False),
        ({"device": "cuda", "precision": "float16"}, False),
        ({"device": "cuda", "method": "darts", "second_order": True}, False),
    ],
)
def test_gpus_record_by_default(digits, monkeypatch, settings, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert SearchSettings(**TINY | settings).resolved(digits).cuda_graph is expected


def steps_of(session):
    session.begin_epoch(2)
    steps = GraphSteps(session)
    return lambda: steps(session.weight_loader.next_batch(), session.arch_loader.next_batch())


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (RuntimeError("operation not permitted\nwhen capturing"), UserError, "cuda_graph=False"),
        (torch.OutOfMemoryError("too much"), torch.OutOfMemoryError, "too much"),
    ],
)
def test_steps_that_cannot_be_recorded(  # noqa: PLR0917
    make_session, stand_in, monkeypatch, error, expected, message
):
    def fail(self, step):
        raise error

    monkeypatch.setattr(StandIn, "record", fail)
    step = steps_of(make_session())
    for _ in range(FIRST_STEPS):
        step()
    with pytest.raises(expected, match=message):
        step()


def test_recording_keeps_the_order_of_streams(monkeypatch):
    """Steps beside the current stream wait for it, and it for them; a graph has their stream."""
    calls = []

    class Stream:
        device = torch.device("cuda", 0)

        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def inside(name):
        calls.append(f"into {name}")
        yield
        calls.append(f"out of {name}")

    class Graph:
        def replay(self):
            calls.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: inside(f"graph {stream.name}"))
    recorder = Recorder(torch.device("cuda", 0))
    with recorder.beside():
        calls.append("step")
    replay, result = recorder.record(lambda: "found")
    replay()
    assert result == "found"
    assert calls == [
        *("side waits for main", "into side", "step", "out of side", "main waits for side"),
        *("into graph side", "out of graph side", "replay"),
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu(make_session, method):
    settings = {"method": method, "channels": 8, "device": "cuda"}
    expected = run(make_session(**settings, cuda_graph=False))
    assert_same_bits(run(make_session(**settings)), expected)
