"""What times are held against: operations, bytes, rates; and the tables they go into."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks.bench_scaling import growth_table
from benchmarks.bench_search_step import parts_table
from benchmarks.cases import Row
from benchmarks.limits import Limits, Rates
from benchmarks.memory import PeakMemory
from benchmarks.modules import Derived, Edge
from benchmarks.networks import DA2S, NAS_BENCH_201, PC_DARTS, SearchNetwork
from benchmarks.operations import operations
from benchmarks.results import Measurement, Result
from benchmarks.search_step import PARTS, STEPS, SearchStep
from benchmarks.subject import Prepared
from da2s_fast.ops.cell.cost import Size, backward_operations, forward_operations
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.spaces import get_space

OURS = Row("ours", "ours")


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("weights", [True, False])
def test_operations_are_those_of_stem_cells_and_classifier(k: int, weights: bool) -> None:
    C, image = 4, 8
    case = SearchNetwork("da2s", "pc-darts", C, 1, k, image)  # one cell, and it reduces
    plan = CellPlan(C * 2, get_space("da2s").primitives, 4, True, ("conv", "conv"), k)
    stem = Size(3 * C, image, image)
    wanted = [weights, weights]
    expected = forward_operations(plan, 1, [stem, stem])
    expected += backward_operations(plan, 1, [stem, stem], wanted, weights)
    # The images need no gradient; the last cell's output always does.
    expected += 2 * (1 + weights) * 3 * 3 * C * 9 * image**2
    expected += 2 * (2 + weights) * 4 * 2 * C * 10
    assert operations(case, "all" if weights else "architecture") == expected


def test_bytes_grow_with_the_cells_and_fall_without_weight_gradients() -> None:
    for case in (DA2S, PC_DARTS, NAS_BENCH_201):
        whole = case.least_bytes("all")
        assert case.least_bytes("weights") == whole
        assert case.least_bytes("architecture") <= whole
        assert replace(case, cells=case.cells + 3).least_bytes("all") > whole
        assert replace(case, image_size=64).least_bytes("all") == pytest.approx(4 * whole)
    assert Derived().least_bytes("all") < DA2S.least_bytes("all") / 3
    assert Edge(16, 2, 32).least_bytes("all") < Edge(16, 1, 32).least_bytes("all")


def test_rates_are_measured() -> None:
    rates = Limits("cpu", side=64, copied=1 << 20).measure()
    assert rates.operations > 1e6
    assert rates.bytes > 1e6
    assert Rates(10.0, 5.0).seconds(20, 5) == 3


def test_peak_memory_is_that_of_the_stretch() -> None:
    torch.ones(1 << 26)  # freed before
    memory = PeakMemory(torch.device("cpu"))
    torch.ones(1 << 24)  # 64 MB, freed within
    peak = memory.above_start()
    assert peak is None or 60e6 < peak < 200e6


def measurement() -> Measurement:
    slow, fast, none = (Result(Row(name, "eager"), 1e9, 1e9) for name in ("a", "b", "c"))
    slow.prepared = fast.prepared = Prepared(1.0, 10**9, {}, ())
    slow.seconds, fast.seconds = [4.0, 6.0, 40.0], [2.0, 2.0, 10.0]
    none.failure = "not finished after 3 s"
    return Measurement([slow, fast, none], [Rates(1e9, 2e9)] * 3)


def test_ratios_are_taken_within_rounds() -> None:
    found = measurement()
    slow, fast, _ = found.results
    assert fast.speedup(slow) == 3  # the median of 2, 3 and 4; a third round was disturbed
    assert found.share(slow) == 1.5 / 6
    assert found.result("c") is None


def test_tables_are_printed_and_written() -> None:
    found = measurement()
    found.results.pop()
    table = growth_table("title", found, [2, 1])
    output = io.StringIO()
    table.print(Console(file=output, width=120))
    for text in (output.getvalue(), table.markdown()):
        assert "straight line through the medians: -2 s + 4 s each" in text
        assert "25%" in text


def test_the_parts_of_a_search_step_are_its_whole() -> None:
    step = SearchStep("cpu", 4, channels=4, cells=3, nodes=2)
    found = [step.measure() for _ in range(2)]
    for name in STEPS:
        assert set(found[0][name]) <= set(PARTS)
        assert all(seconds >= 0 for seconds in found[0][name].values())
        assert found[0][name]["cells, backward"] > 0
        assert (found[0][name]["stem, backward"] > 0) == (name == "weights")
    table = parts_table("title", found)
    assert [cells[0] for cells in table.rows] == [*PARTS, "all"]
