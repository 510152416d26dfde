"""What a row computes, and that no speed is reported for results that are wrong."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import bench_mixed_op, bench_super_network, eager, exactness, rounds
from benchmarks import subject as subjects
from benchmarks.cases import (
    EAGER,
    EAGER_CHANNELS_LAST,
    Case,
    Row,
    all_rows,
    half_steps,
    our_rows,
)
from benchmarks.compiled import BY_CELL, WHOLE, compiled_subject
from benchmarks.conftest import Options
from benchmarks.limits import Limits
from benchmarks.modules import Derived, Edge
from benchmarks.networks import SearchNetwork
from benchmarks.process import RowFailed
from benchmarks.subject import Subject
from da2s_fast.nn import Cell
from tests.nn import reference
from tests.ops.compare import Mismatch

SMALL = SearchNetwork("da2s", "da2s", channels=4, cells=3, image_size=8)
TINY = replace(SMALL, cells=1)
PARTIAL = SearchNetwork("darts", "pc-darts", channels=8, cells=3, partial_channels=4, image_size=8)
DENSE = SearchNetwork("nas-bench-201", "da2s", channels=4, cells=1, image_size=8)
CASES = {
    "da2s": SMALL,
    "pc-darts": PARTIAL,
    "nas-bench-201": DENSE,
    "edge": Edge(4, 2, 8),
    "derived": Derived(channels=4, cells=3, image_size=8),
}


class InProcess:
    """Stands in for `Process`: the same calls, here."""

    def __init__(self, build):
        self.subject = pickle.loads(pickle.dumps(build))()

    def call(self, name, *arguments, limit=None):
        return getattr(self.subject, name)(*arguments)

    def close(self):
        pass


class Benchmark:
    """Stands in for pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info = {}
        self.rounds = 0

    def pedantic(self, function, args=(), kwargs=None, rounds=1):
        for _ in range(rounds):
            self.rounds += 1
            result = function(*args, **(kwargs or {}))
        return result


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(rounds, "Process", InProcess)
    monkeypatch.setattr(rounds, "Limits", partial(Limits, side=32, copied=1 << 16))
    monkeypatch.setattr(rounds, "_MOST_ROUNDS", 2)
    monkeypatch.setattr(subjects, "_LEAST_SECONDS", 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_equal_eager(case: Case) -> None:
    rows = all_rows(case)
    if isinstance(case, SearchNetwork):
        rows += half_steps(our_rows(case))
    exactness.check(case, rows)


def wrong(where: str):
    """A cell that is off by a hundred-thousandth."""
    right = Cell.forward

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (1 + 1e-5)

    def forward(self, *inputs):
        output = right(self, *inputs)
        if where == "float32" and output.dtype != torch.float32:
            return output
        return Scaled.apply(output) if where == "gradient" else output * (1 + 1e-5)

    return forward


@pytest.mark.parametrize("where", ["output", "gradient", "float32"])
def test_wrong_results_are_not_timed(monkeypatch, processes, where: str) -> None:
    monkeypatch.setattr(Cell, "forward", wrong(where))
    benchmark = Benchmark()
    with pytest.raises(Mismatch):
        rounds.check_and_measure(benchmark, Options(1, 2, 0), TINY, all_rows(TINY), "cpu")
    assert not benchmark.rounds
    assert not benchmark.extra_info


def test_results_that_are_wrong_at_full_size_only_are_not_timed(monkeypatch, processes) -> None:
    monkeypatch.setattr(exactness, "check", lambda *_: None)
    right = Cell.forward
    monkeypatch.setattr(Cell, "forward", lambda self, *inputs: 1.1 * right(self, *inputs))
    with pytest.raises(Mismatch, match="at full size"):
        rounds.check_and_measure(Benchmark(), Options(1, 2, 0), TINY, all_rows(TINY), "cpu")


def test_a_rival_that_is_wrong_gets_no_time(monkeypatch, processes) -> None:
    """Eager channels_last has had other gradients than eager PyTorch on a GPU."""

    def prepare(self, batch):
        found = right(self, batch)
        if self.layout == torch.channels_last:
            found.norms["gradients"] *= 0.75
        return found

    right = Subject.prepare
    monkeypatch.setattr(Subject, "prepare", prepare)
    rows = all_rows(TINY)
    found = rounds.check_and_measure(Benchmark(), Options(1, 2, 0), TINY, rows, "cpu")
    wrong, *others = sorted(found.results, key=lambda result: not result.failure)
    assert wrong.row == EAGER_CHANNELS_LAST
    assert "norm of the gradients" in wrong.failure
    assert not wrong.seconds
    assert all(result.seconds for result in others)


def test_rows_are_compared_where_eager_failed(monkeypatch, processes) -> None:
    """It may be the only one that a GPU's memory has no room for."""
    right, batches = Subject.prepare, []

    def prepare(self, batch):
        batches.append(batch)
        if len(batches) == 1:
            raise RowFailed("out of memory")
        found = right(self, batch)
        found.norms["output"] *= len(batches)
        return found

    monkeypatch.setattr(Subject, "prepare", prepare)
    rows = all_rows(TINY)
    assert rows[0] == EAGER
    with pytest.raises(Mismatch, match=r"norm of the output .* in 'eager, channels_last'"):
        rounds.check_and_measure(Benchmark(), Options(1, 2, 0), TINY, rows, "cpu")


def test_a_table_of_interleaved_rounds(monkeypatch, processes) -> None:
    monkeypatch.setitem(bench_super_network.TITLES, TINY, "small")
    benchmark, tables = Benchmark(), []
    bench_super_network.bench_super_network(benchmark, Options(2, 2, 0), tables.append, TINY, "cpu")
    rows = [*all_rows(TINY), *half_steps(our_rows(TINY))]
    assert [cells[0] for cells in tables[0].rows] == [row.name for row in rows]
    assert benchmark.rounds >= 2
    assert {len(row["seconds"]) for row in benchmark.extra_info["rows"].values()} == {
        benchmark.rounds
    }
    assert tables[0].rows[0][3] == "1.00x"
    assert any("extrapolated, not measured" in note for note in tables[0].notes)
    assert "| eager |" in tables[0].markdown()


def test_rivals_that_fail_are_reported_and_ours_are_not_excused(monkeypatch, processes) -> None:
    def fails_for(name):
        def call(self, method, *arguments, limit=None):
            if getattr(self.subject, "engine", None) == name and method == "prepare":
                raise RowFailed("its process ended with exit code -9")
            return getattr(self.subject, method)(*arguments)

        return call

    def subject(self, row, device="cpu"):
        found = build(self, row, device)
        found.engine = row.engine
        return found

    build = SearchNetwork.subject
    monkeypatch.setattr(SearchNetwork, "subject", subject)
    rows = [EAGER, our_rows(TINY)[0]]
    monkeypatch.setattr(InProcess, "call", fails_for("eager"))
    found = rounds.check_and_measure(Benchmark(), Options(1, 2, 0), TINY, rows, "cpu")
    assert "exit code -9" in found.results[0].failure
    assert found.results[1].seconds
    monkeypatch.setattr(InProcess, "call", fails_for("ours"))
    with pytest.raises(RowFailed):
        rounds.check_and_measure(Benchmark(), Options(1, 2, 0), TINY, rows, "cpu")


def test_half_a_step_computes_half_of_the_gradients() -> None:
    for row in half_steps([Row("ours", "ours")]):
        _, gradients = SMALL.subject(row).step(2)
        arch = {name.split(".")[0] for name in gradients} & {"alpha", "beta"}
        if row.wanted == "architecture":
            assert arch == {"alpha", "beta"}
            assert len(gradients) == 4
        else:
            assert not arch


def test_published_forms_equal_the_reference() -> None:
    network = reference.Network(8, 10, 3, ("skip_connect", "sep_conv_3x3"), K=4).double()
    partial_network = replace(PARTIAL, space="da2s").subject(EAGER).module
    kinds = ("normal", "reduce")
    arch = [torch.rand(14, 2, dtype=torch.double) for _ in kinds]
    mixtures = eager.mixtures(arch, kinds, "darts", (2, 3, 4, 5))
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    published = eager.as_published(copy.deepcopy(network))
    assert list(published.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(published(x, mixtures), network(x, mixtures))
    names = [type(module).__name__ for module in partial_network.modules()]
    assert "PartialMixedOp" in names
    assert "FactorizedReduce" in names
    assert "Reduce" not in names
    assert "MixedOp" not in names


@pytest.mark.parametrize(
    ("case", "row"), [(TINY, BY_CELL), (CASES["edge"], WHOLE)], ids=["cells", "whole"]
)
def test_compiled_modules_compute_the_same(monkeypatch, tmp_path, case: Case, row: Row) -> None:
    compiled = []

    def compile_(callee, dynamic):
        compiled.append(callee)
        return callee

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    subject = compiled_subject(case, row, "cpu", str(tmp_path))
    assert subject.prepare(2).norms == case.subject(EAGER).prepare(2).norms
    assert len(compiled) == 1


def test_compiling_has_a_limit_and_the_other_rows_are_measured(monkeypatch, processes) -> None:
    def call(self, name, *arguments, limit=None):
        if limit:
            raise RowFailed(f"not finished after {limit:.0f} s")
        return getattr(self.subject, name)(*arguments)

    monkeypatch.setattr(InProcess, "call", call)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    case, tables = CASES["edge"], []
    monkeypatch.setattr(bench_mixed_op, "Edge", lambda *_: case)
    bench_mixed_op.bench_mixed_op(Benchmark(), Options(1, 2, 5), tables.append, 64, 2, "cpu")
    assert tables[0].rows[-1][:2] == [WHOLE.name, "none"]
    assert f"{WHOLE.name}: not finished after 5 s" in tables[0].notes
    assert len(tables[0].rows) == len(all_rows(case)) + 1
    bench_mixed_op.bench_mixed_op(Benchmark(), Options(1, 2, 0), tables.append, 64, 2, "cpu")
    assert len(tables[1].rows) == len(all_rows(case))
