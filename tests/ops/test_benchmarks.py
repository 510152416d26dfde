"""No speed is reported for results that are wrong."""

import pytest

from benchmarks import bench_discretization_loss, bench_mixed_sum
from da2s_fast.ops import discretization_loss, mixed_sum
from tests.ops.compare import Mismatch


class Recorder:
    def __init__(self):
        self.timed = 0

    def __call__(self, function):
        self.timed += 1
        function()


def slightly_wrong_sum(*arguments, backend, **keywords):
    output = mixed_sum(*arguments, backend=backend, **keywords)
    return output * (1 + 1e-5) if backend == "cpu" else output


def slightly_wrong_loss(*arguments, backend, **keywords):
    loss = discretization_loss(*arguments, backend=backend, **keywords)
    return loss._replace(total=loss.total * (1 + 1e-5)) if backend == "cpu" else loss


def run_mixed_sum(recorder, row):
    shape = (2, 3, 4, 4)
    for passes in ("forward", "forward+backward"):
        bench_mixed_sum.bench_mixed_sum(recorder, shape, "channels_last", passes, "cpu", row)


def test_mixed_sum(monkeypatch):
    for row in ("reference", "cpu", "copy"):
        recorder = Recorder()
        run_mixed_sum(recorder, row)
        assert recorder.timed == 2
    monkeypatch.setattr(bench_mixed_sum, "mixed_sum", slightly_wrong_sum)
    recorder = Recorder()
    with pytest.raises(Mismatch):
        run_mixed_sum(recorder, "cpu")
    assert recorder.timed == 0


def test_discretization_loss(monkeypatch):
    for row in ("reference", "cpu"):
        recorder = Recorder()
        bench_discretization_loss.bench_discretization_loss(recorder, "cpu", row)
        assert recorder.timed == 1
    monkeypatch.setattr(bench_discretization_loss, "discretization_loss", slightly_wrong_loss)
    recorder = Recorder()
    with pytest.raises(Mismatch):
        bench_discretization_loss.bench_discretization_loss(recorder, "cpu", "cpu")
    assert recorder.timed == 0
