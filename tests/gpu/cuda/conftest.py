"""Where the tests here run kernels of csrc/cuda: as nvcc compiles them, without a GPU or on one.

tests/csrc/cuda runs the same sources on the processor.
"""

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch

from da2s_fast.ops.cell.triton import compiled, packs
from tests.gpu.cells import tiles_of
from tests.gpu.conftest import ARCHITECTURES, drivers_take_cpu_tensors, executed
from tests.gpu.cuda.cells import GPU
from tests.gpu.ptx import cuda


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> Iterator[None]:
    """Several tiles of tiny images, and packs of all rows, as large images have them."""
    monkeypatch.setattr(packs, "ENOUGH_PROGRAMS", 1)
    with tiles_of(32):
        yield


@pytest.fixture(params=[*(f"sm_{architecture}" for architecture in ARCHITECTURES), GPU])
def device(request, monkeypatch) -> Iterator[torch.device]:
    """Where kernels of csrc/cuda run: what nvcc compiles, executed on CPU tensors; or a GPU."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")
        here = torch.device("cuda", 0)
        if reason := compiled._library_reason(here):
            pytest.skip(reason)
        yield here
        return
    if not cuda.has_nvcc():
        pytest.skip(cuda.MISSING)
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    for name in ("nodes_reason", "reach_reason"):
        monkeypatch.setattr(compiled, name, without_reason(getattr(compiled, name)))
    with drivers_take_cpu_tensors(), executed(int(request.param.removeprefix("sm_"))):
        yield torch.device("cpu")


def without_reason(asked: Callable[..., str | None]) -> Callable[..., None]:
    """No launch of these tests may be left to Triton."""

    def ask(*arguments):
        assert asked(*arguments) is None

    return ask


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Callable[..., None]:
    """Return what makes launches run sources in which one text is replaced by another."""

    def plant(file: str, old: str, new: str) -> None:
        folder = tmp_path / "planted"
        shutil.copytree(cuda.SOURCES / "cuda", folder / "cuda")
        changed = folder / "cuda" / file
        text = changed.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
        changed.write_text(text.replace(old, new))
        monkeypatch.setattr(cuda, "SOURCES", folder)

    return plant


@pytest.fixture(params=["shared memory", "global memory"])
def handed_in(request, monkeypatch) -> str:
    """Where rows lie that a tile hands to the next: small cells have enough shared memory."""
    if request.param == "global memory":
        monkeypatch.setattr(compiled, "_handed_of", lambda *given: 1 << 20)
    return request.param
