"""Rows that only GPUs have, with stand-ins for CUDA's graphs and events."""

import contextlib
from functools import partial

import pytest
import torch

from benchmarks import rounds
from benchmarks import subject as subjects
from benchmarks.cases import EAGER, EAGER_CHANNELS_LAST, all_rows, gpu_rows, our_rows
from benchmarks.exactness import check_full_size
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
    check_full_size({row.name: build(row).prepare(3) for row in rows}, rows)
    monkeypatch.setattr(subjects, "Recorder", Wrong)
    with pytest.raises(Mismatch, match="CUDA graph"):
        check_full_size({row.name: build(row).prepare(3) for row in rows}, rows)


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
