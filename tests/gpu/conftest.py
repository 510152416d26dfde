"""Where tests run Triton kernels: on a GPU, or on CPU tensors without one.

The fixture `device` hands out tensors' device and stands for one place after the other:

- sm_80, sm_90, sm_100: what Triton compiles for that architecture, executed on CPU tensors;
- gpu: a real one, where torch sees one (`-m gpu` runs only those);
- interpreter: Triton's own, for the tests in `interpreted/`. It must be chosen before kernels are
  imported, so these tests have a process of their own, which `test_interpreted.py` starts.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch

import da2s_fast.ops  # noqa: F401 - registers the drivers
from da2s_fast.kernels import schedule
from da2s_fast.kernels.launch import launched_by
from da2s_fast.ops import _triton
from tests.ops.conftest import poisoned_memory  # noqa: F401 - used by all tests here

if TYPE_CHECKING:
    from tests.gpu.ptx.launcher import PtxLauncher

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ARCHITECTURES = (80, 90, 100)
PLACES = [
    *(f"sm_{architecture}" for architecture in ARCHITECTURES),
    pytest.param("gpu", marks=pytest.mark.gpu),
]

collect_ignore = [] if INTERPRETED else ["interpreted"]


@pytest.fixture(params=["interpreter"] if INTERPRETED else PLACES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Make backend="triton" run in one of the places, for tensors on the device returned."""
    place = request.param
    if place == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")
        # Tests change what launches depend on.
        schedule.forget()
        yield torch.device("cuda", 0)
        schedule.forget()
        return
    with ExitStack() as stack:
        stack.enter_context(drivers_take_cpu_tensors())
        if place != "interpreter":
            stack.enter_context(executed(int(place.removeprefix("sm_"))))
        yield torch.device("cpu")


@contextmanager
def drivers_take_cpu_tensors() -> Iterator[None]:
    """Inside, Triton's drivers take the place of the compiled operators for CPU tensors."""
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.library._scoped_library("da2s_fast", "IMPL") as library,
    ):
        patch.setattr(_triton, "_device_reason", lambda device: None)
        for operator, driver in _triton.DRIVERS.items():
            library.impl(operator, driver, "CPU", allow_override=True)
        yield


@contextmanager
def executed(architecture: int) -> Iterator[PtxLauncher]:
    """Inside, launches execute the code compiled for an architecture, on CPU tensors."""
    from tests.gpu.ptx.launcher import PtxLauncher  # noqa: PLC0415 - it needs a compiling Triton

    launcher = PtxLauncher(architecture)
    with pytest.MonkeyPatch.context() as patch, launched_by(launcher):
        patch.setattr(_triton, "architecture", lambda device: architecture)
        yield launcher


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what gives a driver's module kernels in which one text is replaced by another."""

    def plant(driver: ModuleType, old: str, new: str, name: str = "kernels") -> None:
        source = Path(getattr(driver, name).__file__).read_text()
        assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in the kernels"
        path = tmp_path / "planted.py"  # a file, because Triton reads kernels from theirs
        path.write_text(source.replace(old, new))
        spec = importlib.util.spec_from_file_location("planted", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(driver, name, module)

    return plant
