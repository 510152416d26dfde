"""Rows that only GPUs have, with stand-ins for CUDA's graphs and events."""

import contextlib
from functools import partial

import pytest
import torch

from benchmarks import exactness, rounds, traffic
from benchmarks import subject as subjects
from benchmarks.cases import EAGER, EAGER_CHANNELS_LAST, all_rows, gpu_rows, our_rows
from benchmarks.networks import SearchNetwork
from tests.benchmarks.test_rows import TINY
from tests.ops.compare import Mismatch

ROWS = gpu_rows([EAGER, *our_rows(TINY)])


class StandIn:
    """As `Recorder`, on the CPU: replays by taking the step again."""

    def __init__(self, device):
        self.replays = 0

    def beside(self):
        return contextlib.nullcontext()

    def record(self, step):
        output, gradients = step()
        nan = partial(torch.full_like, fill_value=torch.nan)
        places = nan(output), {name: nan(value) for name, value in gradients.items()}

        def replay():
            found, more = step()
            places[0].copy_(found)
            for name, place in places[1].items():
                place.copy_(more[name])

        return replay, places


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(subjects, "Recorder", StandIn)


def build(row):
    return rounds._subject(TINY, row, "cpu")


def test_names():
    names = [row.name for row in [*all_rows(TINY), *ROWS]]
    assert len(set(names)) == len(names)
    assert sum(row.graph for row in ROWS) == 4
    assert [row.name for row in ROWS if row.autocast and not row.graph] == [
        "eager, channels_last, bfloat16"
    ]


@pytest.mark.parametrize("row", [row for row in ROWS if row.graph], ids=lambda row: row.name)
def test_graphs_compute_what_the_row_without_computes(row):
    """What a replay leaves behind is what is compared, and what is timed."""
    prepared = build(row).prepare(3)
    plain = rounds._subject(TINY, EAGER_CHANNELS_LAST if row.autocast else EAGER, "cpu")
    expected = plain.prepare(3)
    tolerance = 0.05 if row.autocast else 1e-3
    assert prepared.norms == pytest.approx(expected.norms, rel=tolerance)


def test_autocast_reaches_the_step():
    cast = next(row for row in ROWS if row.autocast)
    assert build(cast).step(2)[0].dtype == torch.bfloat16
    assert build(EAGER).step(2)[0].dtype == torch.float32


def test_a_wrong_replay_is_noticed(monkeypatch):
    """Nobody gets a time whose graph replays something else."""

    class Wrong(StandIn):
        def record(self, step):
            replay, places = super().record(step)

            def broken():
                replay()
                places[0].mul_(1.1)

            return broken, places

    rows = [EAGER, next(row for row in ROWS if row.graph and row.engine == "ours")]
    exactness.check_full_size({row.name: build(row).prepare(3) for row in rows}, rows)
    monkeypatch.setattr(subjects, "Recorder", Wrong)
    with pytest.raises(Mismatch, match="CUDA graph"):
        exactness.check_full_size({row.name: build(row).prepare(3) for row in rows}, rows)


def test_a_measured_graph_replays_and_nothing_else(monkeypatch):
    subject = build(next(row for row in ROWS if row.graph))
    subject.prepare(2)
    subject.release()
    assert not subject._replays  # its memory is given back
    assert subject.measure(2) > 0
    steps = []
    monkeypatch.setattr(subject, "step", steps.append)
    subject._replays[2] = lambda: steps.append("replay")
    subject._timed(2)
    assert steps == ["replay"]


def test_time_between_events(monkeypatch):
    """Marks lie around the step and nothing else."""
    calls = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("mark")

        def synchronize(self):
            calls.append("wait for the mark")

        def elapsed_time(self, end):
            return 2.5  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    seconds = subjects._by_events(lambda: calls.append("step"), torch.device("cuda", 0))
    assert seconds == 0.0025
    assert calls == ["wait", "mark", "step", "mark", "wait for the mark"]


LARGE = SearchNetwork("darts", "pc-darts", 8, 3, partial_channels=4, image_size=128)


def test_large_images():
    """Through the stem of ImageNet ours is eager PyTorch's network."""
    exactness.check(LARGE, our_rows(LARGE)[:1])


@pytest.mark.parametrize("case", [LARGE, TINY], ids=["imagenet", "cifar"])
def test_sizes_behind_the_stem(case):
    """What the least bytes are counted from is what the first cell gets."""
    subject, seen = case.subject(EAGER), []
    first = case.parts(subject.module)[0]
    first.register_forward_pre_hook(lambda _, inputs: seen.extend(x.shape[1:] for x in inputs[:2]))
    subject.step(2)
    total, sizes = traffic.stems(case.channels, case.image_size, True)
    assert [tuple(size) for size in sizes] == [tuple(shape) for shape in seen]
    assert 0 < traffic.stems(case.channels, case.image_size, False)[0] < total
    # What a convolution reads and writes is less than what training it does.
    assert total < case.least_bytes("all")
