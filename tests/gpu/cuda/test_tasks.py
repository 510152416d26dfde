"""Tasks that wait for one another: the tables of csrc/cuda's kernels, and mistakes in them."""

from collections import Counter

import pytest
import torch

from da2s_fast.kernels.cell.rows import BYPASS, DENSE, SEPARABLE, Group, Layer, Task, Wait, Work
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton.layout import Layout, layout_of
from da2s_fast.ops.cell.triton.packs import Rows
from da2s_fast.ops.cell.triton.tables import Tables, tables_of
from da2s_fast.ops.cell.triton.tasks import TaskList
from da2s_fast.spaces.space import DA2S, DARTS
from tests.gpu.cells import gradients_of
from tests.gpu.cuda.cells import ONE_ARCHITECTURE, PLANS, SMALL, forward_of
from tests.gpu.ptx.errors import NoProgress, Race
from tests.ops.cell_cases import make_case

# Three nodes: the gradients inside of the first lie where those of the last did.
CHAIN = CellPlan(4, ("sep_conv_3x3", "skip_connect"), 3, False, ("identity",))
BOTH = ("conv", "conv")
TABLES = {
    **PLANS,
    "chain": CHAIN,
    "DA2S": CellPlan(16, DA2S.primitives, DA2S.nodes, False, BOTH),
    "DA2S, reduction": CellPlan(32, DA2S.primitives, DA2S.nodes, True, BOTH),
    "PC-DARTS": CellPlan(16, DARTS.primitives, DARTS.nodes, False, BOTH, 4),
}


def key_of(plan: CellPlan, save: bool) -> tuple:
    case = make_case(plan, (2, 6, 6))
    return tuple(plan.code), 2, tuple(tuple(x.shape[1:]) for x in case.inputs), save


def tables_for(plan: CellPlan, save: bool) -> Tables:
    return tables_of(*key_of(plan, save), (), False, torch.device("cpu"))


def layout_for(plan: CellPlan, save: bool) -> Layout:
    return layout_of(*key_of(plan, save))


def rows_of(rows: Rows, kind: type) -> list:
    width = len(kind._fields)
    return [kind(*row) for row in rows.table[: rows.length * width].view(-1, width).tolist()]


@pytest.mark.parametrize("save", [True, False], ids=["save", "recompute"])
@pytest.mark.parametrize("name", TABLES)
def test_nobody_waits_for_what_comes_later(name, save):
    """A counter is waited for as far as tasks before count it up, and once they are all there."""
    tables, layout = tables_for(TABLES[name], save), layout_for(TABLES[name], save)
    for own, chunks in ((tables.making, layout.chunks), (tables.reaching, layout.image_chunks)):
        tasks, waits = rows_of(own.tasks, Task), rows_of(own.waits, Wait)
        assert sum(own.lengths) == len(tasks)
        counted: Counter[int] = Counter()
        arrivals = [task.arrivals for task in tasks if task.arrivals]
        assert len(set(arrivals)) == len(arrivals)
        for task in tasks:
            for wait in waits[task.first : task.first + task.length]:
                assert wait.count == counted[wait.counter] > 0
            assert (task.arrivals > 0) == (task.work in (Work.FIRST, Work.SECOND))
            counted[task.counter] += 1 if task.arrivals else chunks
        assert not set(arrivals) & set(counted)
        assert max([*counted, *arrivals], default=0) < layout.counters


def test_first_layers_go_ahead_of_a_node_that_they_do_not_read():
    """Where z have a place of their own."""

    def is_ahead(save: bool) -> bool:
        works = [task.work for task in rows_of(tables_for(CHAIN, save).making.tasks, Task)]
        return works.index(Work.FIRST, 1) < works.index(Work.MIX)

    assert is_ahead(save=True)
    assert not is_ahead(save=False)


def test_what_is_left_to_triton():
    """Inputs' sums are among the tasks where nothing is."""

    def left(plan: CellPlan) -> set[int]:
        reaching = tables_for(plan, True).reaching
        layers = rows_of(reaching.layers, Layer)
        groups = rows_of(reaching.others, Group)
        kinds = {row.kind for own in groups for row in layers[own.first : own.first + own.length]}
        assert reaching.inputs == (not kinds)
        assert reaching.dense == (DENSE.value in kinds)
        return kinds

    assert left(TABLES["DA2S, reduction"]) == set()
    assert left(PLANS["partial"]) == {BYPASS.value}
    assert left(CellPlan(4, ("skip_connect",), 1, True, ("identity",))) == {DENSE.value}
    assert left(CellPlan(8, ("nor_conv_1x1",), 1, True, ("identity",))) == {DENSE.value}


@pytest.mark.parametrize("name", ["reduction", "halves", "DA2S, reduction"])
def test_both_halves_come_last_and_follow_one_another(name):
    reaching = tables_for(TABLES[name], True).reaching
    layers, groups = rows_of(reaching.layers, Layer), rows_of(reaching.groups, Group)
    found = 0
    for group in groups:
        rows = layers[group.first : group.first + group.length]
        places = [place for place, row in enumerate(rows) if row.kind == DENSE.value]
        if not places:
            continue
        found += 1
        assert places == [len(rows) - 2, len(rows) - 1]
        first, second = rows[-2:]
        channels = first.cout
        assert second == first._replace(
            product=first.product + 2 * channels**2, column=channels, padding=-1
        )
    assert found > 0


def test_the_last_edges_from_preprocessed_inputs_are_shared_out():
    """Half of the separable convolutions hand what they have to a place of their own."""
    plan = TABLES["DA2S"]
    layout, reaching = layout_for(plan, True), tables_for(plan, True).reaching
    layers, groups = rows_of(reaching.layers, Layer), rows_of(reaching.groups, Group)
    assert list(layout.beside) == [0, 1]
    for state, place in layout.beside.items():
        (beside,) = [own for own in groups if own.gradient == place]
        at = groups.index(beside)
        both = [layers[own.first : own.first + own.length] for own in groups[at : at + 2]]
        assert groups[at + 1].gradient == layout.gradients[state]
        assert [sum(row.kind == SEPARABLE.value for row in rows) for rows in both] == [2, 2]
        assert {row.source for rows in both for row in rows} == {layout.states[state]}
        assert len(both[0]) + len(both[1]) == len(DA2S.primitives)
        rooms = [{row.reached for row in rows if row.kind == SEPARABLE.value} for rows in both]
        assert not rooms[0] & rooms[1]
    assert not layout_for(PLANS["partial"], True).beside, "its inputs have no norms"


class _Without:
    """A list of tasks of which some do not wait for some others."""

    def __init__(self, monkeypatch, who: int, whom: int) -> None:
        self.dropped = 0
        add = TaskList.add

        def without(own, work, row, needed, chunks):
            kept = [one for one in needed if (work[2], one[2]) != (who, whom)]
            self.dropped += len(kept) < len(needed)
            add(own, work, row, kept, chunks)

        monkeypatch.setattr(TaskList, "add", without)
        tables_of.cache_clear()


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("who", "whom"),
    [
        (Work.FIRST, Work.MIX),
        (Work.SECOND, Work.FIRST),
        (Work.MIX, Work.SECOND),
        (Work.SUMS, Work.STATES),
        (Work.INNER, Work.SUMS),
        (Work.INNER, Work.STATES),
        (Work.STATES, Work.INNER),
    ],
    ids=[
        "node",
        "first layers",
        "second layers",
        "gradient",
        "sums",
        "room",
        "inner norms",
    ],
)
def test_a_task_that_does_not_wait_is_noticed(device, monkeypatch, who, whom):
    without = _Without(monkeypatch, who, whom)
    with pytest.raises(Race):
        gradients_of(make_case(CHAIN, (2, 5, 7)).to(torch.float32))
    assert without.dropped > 0


@ONE_ARCHITECTURE
def test_a_state_that_two_nodes_reach_at_once_is_noticed(device, monkeypatch):
    """Where nothing else comes between: two skips from one state."""
    plan = CellPlan(4, ("skip_connect", "none"), 2, False, ("identity",))
    _Without(monkeypatch, Work.STATES, Work.STATES)
    with pytest.raises(Race):
        gradients_of(make_case(plan, (2, 5, 7)).to(torch.float32))


@ONE_ARCHITECTURE
def test_halves_that_share_a_room_are_noticed(device, monkeypatch):
    own = Layout.reached.fget

    def shared(layout: Layout) -> dict:
        rooms = dict(own(layout))
        for edge in layout.plan.edges:
            for key in layout.layers_beside(edge):
                rooms[key] = rooms[layout.first_layers(edge)[-1]]
        return rooms

    monkeypatch.setattr(Layout, "reached", property(shared))
    tables_of.cache_clear()
    with pytest.raises(Race):
        gradients_of(make_case(PLANS["reduction"], (2, 5, 7)).to(torch.float32))


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ld.acquire.gpu", "ld.relaxed.gpu"),
        ("red.release.gpu", "red.relaxed.gpu"),
        ("atom.acq_rel.gpu", "atom.relaxed.gpu"),
    ],
)
def test_order_that_is_relaxed_is_noticed(device, planted, old, new):
    planted("cell/task.cuh", old, new)
    with pytest.raises(Race):
        forward_of(make_case(SMALL, (3, 5, 7)).to(torch.float32))


@ONE_ARCHITECTURE
def test_a_count_that_nobody_reaches_is_noticed(device, planted):
    planted(
        "cell/task.cuh",
        "static_cast<int>(wait[kWaitCount])",
        "static_cast<int>(wait[kWaitCount]) + 1",
    )
    with pytest.raises(NoProgress):
        forward_of(make_case(SMALL, (3, 5, 7)).to(torch.float32))
