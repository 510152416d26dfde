"""What the cell's drivers and modules do around their kernels on CUDA tensors without memory."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from da2s_fast.kernels.launch import launched_by
from da2s_fast.nn import Cell, MixedOp, use_backend
from da2s_fast.ops import _triton
from da2s_fast.ops.cell import memory
from da2s_fast.ops.cell.function import update_running
from da2s_fast.ops.cell.triton import compiled, drivers
from da2s_fast.ops.cell.triton.tables import tables_of
from tests.gpu.cells import on
from tests.gpu.test_launches import Called, fake  # noqa: F401 - a fixture
from tests.ops.cell_cases import PLANS, Case, make_case

# What only allocates, shares memory or computes on the device.
QUIET = {
    "aten.as_strided",
    "aten.empty",
    "aten.empty_like",
    "aten.new_empty",
    "aten.new_zeros",
    "aten.slice",
    "aten.view",
    "aten.cat",
    "aten.zero_",
    "prim.device",
}


def key_of(case: Case, save: bool, *, again: bool) -> tuple:
    """Of the cell's tables."""
    sizes = tuple(tuple(x.shape[1:]) for x in case.inputs)
    images = case.inputs[0].shape[0]
    device = torch.device("cuda", 0)
    return tuple(case.plan.code), images, sizes, save, tuple(case.frozen), again, device


@pytest.fixture
def gpu(fake, monkeypatch) -> Iterator[list[torch.device]]:  # noqa: F811
    """The GPU that is not there, for cells, whose tables would stay behind in a cache."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**36))
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(compiled, "_shared_memory", lambda device: 227 << 10)
    monkeypatch.setattr(memory, "_answers", {})
    caches = tables_of, drivers._table
    for cache in caches:
        cache.cache_clear()
    yield fake
    for cache in caches:
        cache.cache_clear()


def flat(outputs) -> list[Tensor]:
    return [t for item in outputs for t in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("operator", ["cell", "cell_backward", "cell_update_running"])
def test_cuda_tensors_get_the_driver(operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"da2s_fast::{operator}", "CUDA")
    assert operator in _triton.DRIVERS


@pytest.mark.parametrize("save", [True, False], ids=["save", "recompute"])
@pytest.mark.parametrize("frozen", ["none", "some"])
@pytest.mark.parametrize("name", PLANS)
def test_drivers_return_what_the_fake_operators_promise(gpu, name, frozen, save):
    """Shapes, strides, types and devices; and nothing is waited for or read."""
    case = on(make_case(PLANS[name], (2, 5, 4), frozen=frozen), "cuda")
    running = case.running if case.frozen else []
    settings = case.frozen, list(case.plan.code), 1e-3, save
    arguments = case.inputs, case.p, case.g, case.weights, running, *settings
    tables_of(*key_of(case, save, again=False))  # made once, on the host
    with launched_by(lambda launch: None), Called() as called:
        found = _triton.DRIVERS["cell"](*arguments)
    expected = torch.ops.da2s_fast.cell(*arguments)
    tables_of(*key_of(case, save, again=True))
    output, statistics, saved = found
    mask = [True] * (len(case.inputs) + 3)
    arguments = output, *arguments[:4], statistics, saved, *settings, mask
    with launched_by(lambda launch: None), called:
        gradients = _triton.DRIVERS["cell_backward"](*arguments)
    assert called.names <= QUIET
    promised = torch.ops.da2s_fast.cell_backward(*arguments)
    for own, fake_own in zip(flat([*found, *gradients]), flat([*expected, *promised]), strict=True):
        assert (own.shape, own.dtype, own.device) == (fake_own.shape, fake_own.dtype, own.device)
        assert own.stride() == fake_own.stride()
    assert gpu == [torch.device("cuda", 0)] * 2  # made the current device


@pytest.mark.parametrize("momentum", [0.1, -1.0])
def test_running_statistics_move_in_one_launch(gpu, momentum):
    """Nothing else is called, and buffers may lie elsewhere at the next call."""
    case = on(make_case(PLANS["cut"], (2, 5, 4), frozen="some"), "cuda")
    tracked = [torch.empty((), dtype=torch.int64, device="cuda") for _ in case.plan.norm_channels]
    statistics = torch.empty(2 * sum(case.plan.norm_channels), device="cuda")
    started = []

    def update(running):
        settings = case.frozen, list(case.plan.code), [40, 40, 40], momentum
        arguments = statistics, running, tracked, *settings
        with Called() as called, launched_by(started.append):
            _triton.DRIVERS["cell_update_running"](*arguments)
        return called.names

    update(case.running)  # the table is made once, on the host
    moved = [buffer.clone() for buffer in case.running]
    assert update(moved) <= {"prim.device"}
    assert [launch.kernel.__name__ for launch in started] == ["update_running"] * 2
    assert all(any(own is buffer for buffer in moved) for own in started[1].arguments["means"])


def test_autograd_notices_that_running_statistics_moved(gpu):
    case = on(make_case(PLANS["cut"], (2, 5, 4), frozen="some"), "cuda")
    statistics = torch.empty(2 * sum(case.plan.norm_channels), device="cuda")
    before = [tensor._version for tensor in case.running]
    update_running(statistics, case.running, [], case.plan, size=(2, 5, 4), frozen=case.frozen)
    assert all(t._version > v for t, v in zip(case.running, before, strict=True))


@pytest.mark.parametrize("make", [lambda: MixedOp(8, 2), lambda: Cell(2, 2, 8, 8, 8, False, False)])
def test_modules_on_a_gpu_choose_the_kernels(gpu, make):
    with torch.device("cuda"):
        module = make()
    x = torch.empty(2, 8, 6, 6, device="cuda")
    inputs, rows = ([x], ()) if isinstance(module, MixedOp) else ([x, x], (5,))
    p = torch.empty(*rows, 8, device="cuda", requires_grad=True)
    for backend in (None, "triton"):
        with use_backend(backend), Called() as called:
            output = module(*inputs, p)
        assert output.device == x.device
        names = {name for name in called.names if name.startswith("da2s_fast.")}
        assert names == {"da2s_fast.cell", "da2s_fast.cell_update_running"}


@pytest.mark.parametrize(
    ("free", "unused", "saves"), [(2**36, 0, True), (0, 0, False), (0, 2**36, True)]
)
def test_auto_asks_for_the_memory_of_the_gpu(gpu, monkeypatch, free, unused, saves):
    """What torch holds and does not use is as free as what the driver has."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**36))
    held = {"reserved": unused + 2**20, "allocated": 2**20}
    stats = {f"{kind}_bytes": {"all": {"current": size}} for kind, size in held.items()}
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: stats)
    monkeypatch.setattr(memory, "memory", lambda: pytest.fail("asked for the machine's memory"))
    case = on(make_case(PLANS["mixed op"], (2, 5, 4)), "cuda")
    kept = {}
    for choice in ("auto", "save", "recompute"):
        output, _ = case.require()(memory=choice)
        kept[choice] = output.grad_fn.saved_tensors[-1].numel()
    assert kept["auto"] == kept["save" if saves else "recompute"]
    assert kept["save"] > kept["recompute"]


@pytest.mark.parametrize("saves", [True, False])
def test_a_recorded_step_keeps_what_the_steps_before_it_kept(gpu, monkeypatch, saves):
    """While a graph is recorded, nothing is asked of the GPU."""
    case = on(make_case(PLANS["mixed op"], (2, 5, 4)), "cuda").require()

    def kept():
        return case()[0].grad_fn.saved_tensors[-1].numel()

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36 * saves, 2**36))
    before = kept()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("asked"))
    assert kept() == before
