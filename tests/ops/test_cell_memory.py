"""How much memory there is, and what the cell keeps of it."""

from importlib import import_module

import pytest
import torch

from da2s_fast.errors import UserError
from da2s_fast.ops.cell.memory import memory
from tests.ops.cell_cases import PLANS, compiled, make_case

MEGA = 2**20


def machine(root, *, v1=None, v2=None):
    """A machine of 100 MB, 60 MB of them free, with control groups of either version."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {100 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {60 * 1024} kB\n"
    )
    entries = ["7:cpu,cpuacct:/x"]
    if v1:
        entries.append("4:memory:/jobs/one")
        own = root / "sys/fs/cgroup/memory/jobs/one"
        own.mkdir(parents=True)
        (own / "memory.limit_in_bytes").write_text("9223372036854771712")
        (own / "memory.usage_in_bytes").write_text("0")
        (own.parent / "memory.limit_in_bytes").write_text(f"{v1[0] * MEGA}\n")
        (own.parent / "memory.usage_in_bytes").write_text(f"{v1[1] * MEGA}\n")
        (own.parent / "memory.stat").write_text(
            f"inactive_file 0\ntotal_inactive_file {v1[2] * MEGA}\ntotal_active_file 0\n"
        )
    if v2:
        entries.append("0::/jobs/two")
        own = root / "sys/fs/cgroup/jobs/two"
        own.mkdir(parents=True)
        (own / "memory.max").write_text("max")
        (own / "memory.current").write_text("0")
        (own.parent / "memory.max").write_text(f"{v2[0] * MEGA}\n")
        (own.parent / "memory.current").write_text(f"{v2[1] * MEGA}\n")
        (own.parent / "memory.stat").write_text(f"anon 5\ninactive_file {v2[2] * MEGA}\n")
    (root / "proc/self/cgroup").write_text("\n".join(entries))
    return [value / MEGA for value in memory(root)]


def test_of_a_machine(tmp_path):
    assert machine(tmp_path) == [100, 60]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_of_a_container(tmp_path, version):
    assert machine(tmp_path, **{version: (50, 30, 8)}) == [50, 28]


def test_of_a_container_in_a_busy_machine(tmp_path):
    assert machine(tmp_path, v2=(90, 10, 0)) == [90, 60]


def test_where_nothing_is_known(tmp_path):
    total, available = memory(tmp_path)
    assert 0 < available < total


def test_here():
    total, available = memory()
    assert 0 < available <= total


def kept(case, **options):
    """Numbers that a graph of the case holds besides arguments and statistics."""
    output, _ = case.require()(backend="cpu", **options)
    return output.grad_fn.saved_tensors[-1].numel()


@compiled
@pytest.mark.parametrize(("free", "choice"), [(1.0, "save"), (0.25, "recompute"), (0, "recompute")])
def test_auto_saves_where_there_is_room(monkeypatch, free, choice):
    module = import_module("da2s_fast.ops.cell.memory")
    monkeypatch.setattr(module, "memory", lambda: (2**40, int(free * 2**40)))
    case = make_case(PLANS["normal"])
    assert kept(case) == kept(case, memory=choice)
    assert kept(case, memory="recompute") < kept(case, memory="save")


@compiled
def test_unknown_choice():
    with pytest.raises(UserError, match="memory='all'"):
        make_case(PLANS["normal"]).require()(backend="cpu", memory="all")


@compiled
def test_nothing_is_kept_where_nothing_is_learned(monkeypatch):
    module = import_module("da2s_fast.ops.cell.function")
    monkeypatch.setattr(module, "saves", lambda *_: pytest.fail("asked for memory"))
    case = make_case(PLANS["normal"])
    case(backend="cpu")
    case.require()
    with torch.no_grad():
        case(backend="cpu")
