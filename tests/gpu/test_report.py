"""Nothing that is metered has got worse than the committed table, docs/gpu_meters.json, says.

What is quick to compile or to execute is measured here; `make gpu-report-check` measures all of it.
"""

from copy import deepcopy

import pytest
import triton

from da2s_fast.kernels import tuning
from da2s_fast.kernels.launch import launched_by
from da2s_fast.ops import mixed_sum_triton
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import forward
from da2s_fast.ops.mixed_sum_tiles import Tuning
from da2s_fast.spaces.space import DA2S
from tests.gpu.ptx.cuda import MISSING, has_nvcc, nvcc_version
from tests.gpu.ptx.launcher import PtxLauncher
from tests.gpu.ptx.meter import Meter, widths
from tests.gpu.ptx.parse import parse
from tests.gpu.ptx.snippets import kernel
from tests.gpu.report import network, table
from tests.gpu.report.cases import BATCH_SIZE, CASES, EXECUTED, SMALL, CellCase, in_cuda
from tests.gpu.report.compiled import compiled_rows
from tests.gpu.report.executed import Chunked, chunked, chunks, executed_rows, rows_of
from tests.gpu.report.measure import chunked_network, counted_network

needs_nvcc = pytest.mark.skipif(not has_nvcc(), reason=MISSING)


def compilers() -> dict[str, str]:
    return {"triton": triton.__version__, "nvcc": nvcc_version()}


@pytest.fixture(scope="module")
def committed():
    return table.load()


def test_both_files_say_the_same(committed):
    assert table.PAGE.read_text() == table.page_of(committed)
    assert table.NUMBERS.read_text() == table.text_of(committed)


def test_every_case_is_in_the_table(committed):
    assert {row["case"] for row in committed[table.COMPILED]} == set(CASES)
    assert {row["case"] for row in committed[table.EXECUTED]} == set(EXECUTED)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("discretization_loss", 100),
        ("mixed_sum", 100),
        ("separable_conv", 80),
        ("cell, C=32, reduction", 90),
        pytest.param(in_cuda("cell, C=32, reduction"), 90, marks=needs_nvcc),
    ],
)
def test_compiled_code_is_no_worse(committed, name, architecture):
    rows = compiled_rows(name, CASES[name], architecture)
    assert table.worse(committed, table.COMPILED, rows) == []


@pytest.mark.parametrize(
    "name",
    [
        "discretization_loss",
        "mixed_sum",
        "separable_conv, C=144",
        SMALL,
        pytest.param(in_cuda(SMALL), marks=needs_nvcc),
    ],
)
def test_executed_code_is_no_worse(committed, name):
    rows = executed_rows(name, EXECUTED[name], 80)
    assert table.worse(committed, table.EXECUTED, rows) == []


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("cuda", [False, True], ids=["triton", "cuda"])
def test_the_network_makes_no_more_launches(committed, memory, cuda):
    row = counted_network(in_cuda(memory) if cuda else memory)
    assert table.worse(committed, table.NETWORK, [row]) == []


@pytest.mark.parametrize("section", [table.COMPILED, table.EXECUTED, table.NETWORK])
def test_whatever_is_worse_is_said(committed, section):
    committed = {**committed, **compilers()}
    rows = deepcopy(committed[section])
    assert table.worse(committed, section, rows) == []
    more = [n for n in table.MORE_IS_WORSE if n in rows[0]]
    less = [n for n in table.LESS_IS_WORSE if n in rows[0]]
    assert more
    for step, names in ((1, more), (-0.001, less)):
        for name in names:
            (changed,) = deepcopy(rows[:1])
            changed[name] += step
            others = rows[1:]
            (said,) = table.worse(committed, section, [changed, *others])
            assert f"{name} {changed[name]}, was {rows[0][name]}" in said
            changed[name] -= 2 * step
            assert table.worse(committed, section, [changed, *others]) == []


def test_kernels_that_come_and_go_are_said(committed):
    rows = [row for row in committed[table.COMPILED] if row["case"] == "mixed_sum"]
    new = {**rows[0], "kernel": "new"}
    (said,) = table.worse(committed, table.COMPILED, [*rows, new])
    assert said == "mixed_sum, new, sm_80: not in the table"
    (said,) = table.worse(committed, table.COMPILED, rows[1:])
    assert said == "mixed_sum, moments, sm_80: not launched any more"


def test_another_compiler_is_not_compared_by_its_registers(committed):
    other = {**committed, "triton": "0"}
    rows = deepcopy(committed[table.COMPILED])
    rows[0]["registers"] += 1
    loudly = pytest.warns(UserWarning, match=r"of Triton 0, .*registers, .* NOT compared")
    with loudly:
        assert table.worse(other, table.COMPILED, rows) == []
    rows[0]["launches"] += 1
    with loudly:
        assert len(table.worse(other, table.COMPILED, rows)) == 1


def test_kernels_are_compiled_as_they_are_launched_on_the_architecture(monkeypatch):
    def row(entries):
        monkeypatch.setitem(tuning.TABLE, "discretization_loss", entries)
        return compiled_rows("discretization_loss", CASES["discretization_loss"], 90)

    one, four = tuning.Parameters(warps=1), tuning.Parameters(warps=4)
    assert row({80: one, 90: four}) == row({80: four}) != row({80: one})


def test_planted_waste_is_noticed(monkeypatch):
    """Registers by fewer warps, narrower loads by smaller tiles, whatever Triton is installed."""

    def rows():
        return compiled_rows("mixed_sum", CASES["mixed_sum"], 80)

    before = {**compilers(), table.COMPILED: rows()}
    with monkeypatch.context() as patch:
        patch.setitem(tuning.TABLE, "mixed_sum", {80: tuning.Parameters(warps=1)})
        said = " ".join(table.worse(before, table.COMPILED, rows()))
    assert "registers" in said
    with monkeypatch.context() as patch:
        narrow = Tuning(largest=256, smallest=256, programs=1024, parts=256)
        patch.setattr(mixed_sum_triton, "_TUNING", {80: narrow})
        said = " ".join(table.worse(before, table.COMPILED, rows()))
    assert "wide" in said


def test_planted_launches_are_noticed(committed, monkeypatch):
    once = forward._mix

    def twice(*arguments):
        once(*arguments)
        once(*arguments)

    monkeypatch.setattr(forward, "_mix", twice)
    (said,) = table.worse(committed, table.NETWORK, [counted_network("save")])
    before = committed[table.NETWORK][0]["launches"]
    assert f"launches {before + network.CELLS * DA2S.nodes}, was {before}" in said


def test_planted_calls_of_torch_are_noticed(committed, monkeypatch):
    once = forward.cell

    def copied(inputs, *rest):
        return once([x.clone() for x in inputs], *rest)

    monkeypatch.setitem(network._OPERATORS, "cell", copied)
    (said,) = table.worse(committed, table.NETWORK, [counted_network("save")])
    assert "calls" in said


def test_partial_sums_are_charged_by_the_chunks_of_a_batch():
    meters = [
        Meter(kernel="begin", by_tensor={"states": (9, 9), "sums": (0, 8)}),
        Meter(kernel="finish", by_tensor={"sums": (8, 0), "weight_gradients": (6, 0)}),
    ]
    one = [
        Chunked("begin", {"sums": 64, "moments": 0}),
        Chunked("finish", {"sums": 64, "weight_gradients": 48}),
    ]
    # An image has a chunk of its own for the sums, and shares one of the gradients with another.
    several = [
        Chunked("begin", {"sums": 256, "moments": 0}),
        Chunked("finish", {"sums": 256, "weight_gradients": 96}),
    ]
    found = chunks(meters, one, several, 4)
    assert found == {"chunks": 32 * (8 + 8 + 6), "chunks of each": 32 * (8 + 8 + 3)}
    row = {"read": 1000, "written": 500, "once": 400, "torch": 70, "torch further": 50}
    assert table.per_image({**row, **found}, 4) == 1500 - 300 - 32 * 3 + 50 + 20 / 4
    for other in (several[::-1], several[:1]):
        with pytest.raises(ValueError, match="4 images are not launched as one is"):
            chunks(meters, one, other, 4)
    with pytest.raises(ValueError, match="not launched as one is"):
        chunks(meters[:1], one, several, 4)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("name", [str, in_cuda], ids=["triton", "cuda"])
def test_a_batch_is_launched_as_one_image_is(memory, name):
    one, several = (chunked_network(name(memory), images) for images in (1, BATCH_SIZE))
    assert [launch.kernel for launch in one] == [launch.kernel for launch in several]
    assert [list(launch.numbers) for launch in one] == [list(launch.numbers) for launch in several]


@pytest.mark.parametrize("cuda", [False, pytest.param(True, marks=needs_nvcc)])
def test_each_of_a_batch_is_charged_what_the_batch_has(cuda):
    """One image is executed, and a batch whose images share chunks."""
    plan = CellPlan(16, ("max_pool_3x3", "sep_conv_3x3"), 2, False, ("conv", "conv"))
    case = CellCase(plan, ((16, 8, 8), (16, 8, 8)), cuda=cuda)
    batch = 8

    def executed(images):
        launcher, sums = PtxLauncher(80), []

        def start(launch):
            sums.append(chunked(launch))
            launcher(launch)

        with launched_by(start):
            case.run(images, "cpu")
        rows = rows_of("cell", launcher.meters, 80)
        row = {part: sum(row[part] for row in rows) for part in ("read", "written", "once")}
        return launcher.meters, sums, row

    meters, one, row = executed(1)
    _, several, found = executed(batch)
    row |= chunks(meters, one, several, batch)
    assert row["chunks of each"] < row["chunks"]
    row |= {"torch": 0, "torch further": 0}
    assert batch * table.per_image(row, batch) == found["read"] + found["written"]


def test_widths_of_loads_and_stores():
    body = """
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%t0];
    ld.global.v2.f64 {%d1, %d2}, [%t0];
    st.global.b32 [%t0], %r1;
    @%p1 st.global.v2.b16 [%t0], {%h1, %h2};
    ld.shared.b32 %r5, [dynamic];
    """
    assert widths(parse(kernel(body, 1))) == {16: 2, 4: 2}
