"""What is said where a GPU cannot do it: failures made to happen."""

from importlib import import_module

import pytest
import torch
from triton.runtime.errors import OutOfResources

from da2s_fast import backends, kernels
from da2s_fast.errors import UserError
from da2s_fast.kernels.launch import launched_by
from da2s_fast.nn import MixedOp, use_backend
from da2s_fast.ops import _triton, mixed_sum
from da2s_fast.search import SearchSettings
from tests.gpu.conftest import drivers_take_cpu_tensors
from tests.gpu.test_cell import ONE_PLACE
from tests.search.conftest import TINY, digits  # noqa: F401 - a fixture

GPU = torch.device("cuda", 0)


def fail(error):
    def start(launch):
        raise error

    return launched_by(start)


@pytest.fixture
def visible(monkeypatch):
    """A GPU that torch and Triton see; its memory is the CPU's."""
    zeros = torch.zeros

    def on_cpu(*shape, **options):
        return zeros(*shape, **options | {"device": "cpu"})

    monkeypatch.setattr(kernels, "can_run", lambda: (True, "Triton runs on nvidia."))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**36))
    monkeypatch.setattr(torch, "zeros", on_cpu)
    _triton.device_reason.cache_clear()
    yield
    _triton.device_reason.cache_clear()


def fill(launch):
    launch.arguments["place"].fill_(1)


@ONE_PLACE
def test_the_probe_runs(device):
    assert _triton._starting_problem(device) is None


def test_a_gpu_that_works(visible):
    with launched_by(fill):
        assert _triton.device_reason(GPU) is None
        status = {status.name: status for status in backends.backend_report()}["triton"]
    assert status.available
    assert status.detail == "kernels on H100, compute capability 9.0, 16.0 of 64.0 GiB free."


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the provided PTX was compiled with an unsupported toolchain\nat launch"),
        RuntimeError("Failed to find C compiler"),
        FileNotFoundError("no ptxas"),
    ],
)
def test_what_cannot_start_is_left_to_the_reference(visible, error):
    """A driver that does not fit, a missing compiler: a reason, asked for once."""
    with fail(error):
        reason = _triton.device_reason(GPU)
        status = {status.name: status for status in backends.backend_report()}["triton"]
    assert str(error).split("\n")[0] in reason
    assert "at launch" not in reason
    assert "needs a C compiler and an NVIDIA driver" in reason
    assert (status.available, status.detail) == (False, f"{reason}.")


def test_kernels_that_do_nothing_are_noticed(visible):
    with launched_by(lambda launch: None):
        assert "wrote a wrong number" in _triton.device_reason(GPU)


def test_a_reason_is_said_where_triton_is_demanded(visible, monkeypatch):
    with fail(RuntimeError("no driver")):
        reason = _triton.device_reason(GPU)
    monkeypatch.setattr(_triton, "_device_reason", lambda device: reason)
    module, x, p = MixedOp(4, 1), torch.randn(2, 4, 5, 5), torch.rand(8)
    module(x, p)  # elsewhere
    with use_backend("triton"), pytest.raises(UserError, match="cannot start kernels on cuda:0"):
        module(x, p)


def test_too_little_shared_memory_stops_with_a_sentence(monkeypatch):
    y = torch.randn(2, 3, 4, 4)
    message = "of cell needs shared memory of 300000, and this GPU has 101376: .*use_backend"
    error = OutOfResources(300_000, 101_376, "shared memory")
    with drivers_take_cpu_tensors(), fail(error), use_backend("triton"):
        with pytest.raises(UserError, match=message):
            MixedOp(4, 1)(torch.randn(2, 4, 5, 5), torch.rand(8))
        with pytest.raises(UserError, match="a kernel of mixed_sum needs"):
            mixed_sum([y, y], torch.rand(2))


def test_other_errors_of_kernels_stay_what_they_are():
    broken = fail(ZeroDivisionError("odd"))
    expected = pytest.raises(ZeroDivisionError, match="odd")
    with drivers_take_cpu_tensors(), use_backend("triton"), broken, expected:
        mixed_sum([torch.ones(3)], torch.ones(1))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate"),
        AssertionError("Torch not compiled with CUDA enabled"),
    ],
)
def test_a_search_on_a_gpu_whose_driver_does_not_fit(digits, monkeypatch, error):  # noqa: F811
    def init():
        raise error

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", init)
    expected = str(error).splitlines()[0].rstrip(".")
    with pytest.raises(UserError, match="driver and a torch that fit") as raised:
        SearchSettings(**TINY | {"device": "cuda"}).resolved(digits)
    assert f"device='cuda' cannot be used ({expected});" in str(raised.value)


def test_a_kernel_package_without_triton_is_no_reason_to_fail(monkeypatch):
    sentence = "Triton is not installed: install a torch build for GPUs, which brings it."
    monkeypatch.setattr(import_module("da2s_fast.kernels"), "can_run", lambda: (False, sentence))
    assert _triton.device_reason.__wrapped__(GPU) == sentence.rstrip(".")
