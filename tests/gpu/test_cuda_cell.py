"""The kernels of csrc/cuda for the cell, as nvcc compiles them; test_cell.py has Triton's.

tests/csrc/cuda runs the same sources on the processor.
"""

import re
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.launch import CudaKernel, Launch, launch, launched_by
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import compiled, forward, packs
from da2s_fast.ops.cell.triton.layout import layout_of
from da2s_fast.ops.cell.triton.tables import tables_of
from tests.gpu.cells import check, evaluate, gradients_of, on, tiles_of
from tests.gpu.conftest import ARCHITECTURES, drivers_take_cpu_tensors, executed
from tests.gpu.ptx import cuda
from tests.gpu.ptx.errors import KernelFault, Race
from tests.gpu.ptx.launcher import PtxLauncher
from tests.ops.cell_cases import Case, make_case
from tests.ops.compare import Mismatch, assert_as_accurate

ONLY_SEPARABLE = ("sep_conv_3x3", "dil_conv_3x3")
POOLS = ("max_pool_3x3", "avg_pool_3x3")
PLANS = {
    "two layers": CellPlan(8, ONLY_SEPARABLE, 1, False, ("conv",)),
    "pools": CellPlan(4, ("sep_conv_3x3", *POOLS), 1, False, ("conv", "identity")),
    "reduction": CellPlan(16, ("skip_connect", "dil_conv_5x5", *POOLS), 1, True, ("conv",)),
    "partial": CellPlan(16, ("sep_conv_5x5", "max_pool_3x3"), 1, True, ("identity",), 4),
    "widest": CellPlan(4, ("sep_conv_7x7",), 1, False, ("identity",)),
    "shuffled": CellPlan(16, ("dil_conv_5x5", "max_pool_3x3"), 2, True, ("conv",), 4),
}
SMALL = PLANS["two layers"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> Iterator[None]:
    """Several tiles of tiny images, and packs of all rows, as large images have them."""
    monkeypatch.setattr(packs, "ENOUGH_PROGRAMS", 1)
    with tiles_of(32):
        yield


GPU = pytest.param("gpu", marks=pytest.mark.gpu)


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
    for name in ("convolve_reason", "reach_reason"):
        monkeypatch.setattr(compiled, name, without_reason(getattr(compiled, name)))
    with drivers_take_cpu_tensors(), executed(int(request.param.removeprefix("sm_"))):
        yield torch.device("cpu")


def without_reason(asked: Callable[..., str | None]) -> Callable[..., None]:
    """No launch of these tests may be left to Triton."""

    def ask(*arguments):
        assert asked(*arguments) is None

    return ask


ONE_PLACE = pytest.mark.parametrize("device", ["sm_80", GPU], indirect=True)
ONE_ARCHITECTURE = pytest.mark.parametrize("device", ["sm_80"], indirect=True)


def forward_of(case: Case) -> dict[str, torch.Tensor]:
    """Output and statistics by the driver, on the CPU."""
    arguments = case.inputs, case.p, case.g, case.weights, case.running if case.frozen else []
    with torch.no_grad():
        output, statistics, _ = forward.cell(*arguments, case.frozen, [*case.plan.code], 1e-3, True)
    return {"output": output.cpu(), "statistics": statistics.cpu()}


def check_forward(case: Case, device: torch.device) -> None:
    """As `check`, without the backward pass, which takes Triton's kernels long."""
    own = case.to(torch.float32)
    exact, eager = (
        dict(zip(("output", "statistics"), one(backend="reference"), strict=True))
        for one in (case.to(torch.float64), own)
    )
    assert_as_accurate(forward_of(on(own, device)), eager, exact)


@pytest.mark.parametrize("name", PLANS)
def test_as_accurate_as_eager(device, name):
    check_forward(make_case(PLANS[name], (3, 7, 10), frozen="some"), device)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("sm_80", "pools"),
        ("sm_80", "shuffled"),
        ("sm_90", "reduction"),
        ("sm_90", "widest"),
        ("sm_100", "two layers"),
        pytest.param("gpu", "pools", marks=pytest.mark.gpu),
        pytest.param("gpu", "shuffled", marks=pytest.mark.gpu),
        pytest.param("gpu", "reduction", marks=pytest.mark.gpu),
        pytest.param("gpu", "widest", marks=pytest.mark.gpu),
        pytest.param("gpu", "two layers", marks=pytest.mark.gpu),
    ],
    indirect=["device"],
)
def test_gradients_are_as_accurate_as_eager_ones(device, name):
    """Triton's backward pass reads what CUDA's forward pass leaves: z, moments, positions."""
    check(make_case(PLANS[name], (2, 5, 7)), torch.float32, device)


@ONE_PLACE
def test_gradients_of_a_chunk_of_several_tiles(device):
    case = make_case(CellPlan(16, ONLY_SEPARABLE, 1, False, ("identity",)), (1, 9, 20))
    with tiles_of(256):
        check(case, torch.float32, device)


@ONE_PLACE
def test_weights_that_want_no_gradients_change_no_others(device):
    case = on(make_case(SMALL, (2, 5, 7)).to(torch.float32), device)
    _, _, (inputs, p, g, _) = gradients_of(case)
    mask = [True] * (len(inputs) + 2) + [False]
    _, _, (own_inputs, own_p, own_g, weights) = gradients_of(case, mask=mask)
    assert all(torch.equal(*pair) for pair in zip(inputs, own_inputs, strict=True))
    assert torch.equal(p, own_p)
    assert torch.equal(g, own_g)
    assert weights.numel() == 0


@ONE_PLACE
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 40), (3, 33, 3)])
def test_images_of_any_shape(device, size):
    check_forward(make_case(SMALL, size), device)


@ONE_PLACE
@pytest.mark.parametrize("channels", [32, 64])
def test_many_channels(device, channels):
    plan = CellPlan(channels, (*ONLY_SEPARABLE, "avg_pool_3x3"), 1, True, ("identity",))
    check_forward(make_case(plan, (1, 5, 9)), device)


@ONE_PLACE
def test_a_chunk_of_several_tiles(device):
    """More pixels than a tile has, and a norm whose values are far from 0."""
    case = make_case(CellPlan(16, ONLY_SEPARABLE, 1, False, ("identity",)), (1, 20, 20))
    case.inputs[0] += 100
    with tiles_of(256):
        check_forward(case, device)


@ONE_PLACE
def test_nan_and_ties_of_pools_go_where_those_of_eager_go(device):
    case = make_case(CellPlan(4, POOLS, 1, True, ("identity",)), (2, 5, 7))
    case.inputs[0] = case.inputs[0].round().sub_(3)
    case.inputs[0][0, 0, 2, 2] = torch.nan
    case.inputs[0][1, 1] = -torch.inf
    own = case.to(torch.float32)
    expected, _ = own(backend="reference")
    found = forward_of(on(own, device))["output"]
    assert torch.equal(found.isnan(), expected.isnan())


@ONE_PLACE
def test_recomputing_gives_the_same_bits(device):
    case = on(make_case(SMALL, (2, 5, 7), frozen="some").to(torch.float32), device)
    saved, again = evaluate(case), evaluate(case, memory="recompute")
    for key, value in saved.items():
        assert torch.equal(again[key], value), key


def test_columns_are_those_of_the_tables():
    """The enumerations of table.cuh follow the classes of rows.py."""
    text = (cuda.SOURCES / "cuda/cell/table.cuh").read_text()
    groups = [
        re.findall(r"k(\w+)", body) for body in re.findall(r"enum : int \{(.*?)\}", text, re.S)
    ]
    layer, kinds, group, pack = groups
    assert layer == [*map(camel, rows.Layer._fields), "Layer"]
    assert group == [*(f"Group{camel(name)}" for name in rows.Group._fields), "Group"]
    assert pack == [*(f"Pack{camel(name)}" for name in rows.Pack._fields), "Pack"]
    assert [getattr(rows, kind.upper()).value for kind in kinds] == [*range(len(kinds))]


def camel(name: str) -> str:
    return name.title().replace("_", "")


def test_why_it_does_not_run(monkeypatch):
    """Every reason is said, and nothing else is left to Triton."""
    cpu = torch.device("cpu")

    def reason(plan, size=(2, 8, 8), dtype=torch.float32):
        case = make_case(plan, size)
        key = tuple(plan.code), size[0], tuple(tuple(x.shape[1:]) for x in case.inputs), True
        step = tables_of(*key, (), False, cpu).rounds[0]
        z = torch.empty(0, dtype=dtype)
        return compiled.convolve_reason(layout_of(*key), step.first_packs.windows, False, z)

    assert "a tensor is on cpu" in reason(SMALL)
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    assert reason(SMALL) is None
    assert "float64" in reason(SMALL, dtype=torch.float64)
    assert "5 channels" in reason(CellPlan(5, ONLY_SEPARABLE, 1, False, ("identity",)))
    dense = CellPlan(4, ("nor_conv_3x3",), 1, False, ("identity",))
    assert "dense convolutions" in reason(dense)
    halves = CellPlan(4, ("skip_connect",), 1, True, ("identity",))
    assert "no multiple of 8" in reason(halves)
    wide = CellPlan(64, ONLY_SEPARABLE, 1, False, ("identity",))
    assert "more than a tile" in reason(wide, (1, 2, 65))
    wide = CellPlan(64, ("dil_conv_5x5",), 1, True, ("identity",))
    assert "bytes of shared memory" in reason(wide, (1, 4, 128))


def test_operators_take_what_launches_hand_over(monkeypatch):
    """Names and types of all arguments: what is missing is a kernel for the CPU, and no more."""
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    launches: list[Launch] = []
    with launched_by(launches.append):
        gradients_of(make_case(SMALL, (2, 5, 7)).to(torch.float32))
    own = [started for started in launches if isinstance(started.kernel, CudaKernel)]
    assert {started.kernel for started in own} == {
        compiled.CONVOLVE,
        compiled.REACH_INNER,
        compiled.REACH_STATES,
    }
    for started in own:
        with pytest.raises(NotImplementedError, match="'CPU' backend"):
            launch(started.kernel, started.grid, **started.arguments)


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


CONVOLVE, PULL, REACH = "cell/convolve.cuh", "cell/pull.cuh", "cell/reach.cuh"
REACH_STATES = "cell/reach_states.cuh"


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # Outputs that nobody writes.
        (CONVOLVE, "live[j] = pixel.live &&", "live[j] = c == 0 && pixel.live &&"),
        (CONVOLVE, "    to[C] = squares;", ""),
        # An index off by one: a tap, a row of the image, a pixel of the chunk.
        ("cell/depthwise.cuh", "weights[(tap + k) * C + c]", "weights[(tap + k + 1) * C + c]"),
        ("cell/tile.cuh", "y < input.height &&", "y <= input.height &&"),
        ("cell/tile.cuh", "tile.top + pixel.y < height", "tile.top + pixel.y <= height"),
        # A stride of one pixel in the place of a row's.
        ("cell/depthwise.cuh", "from += kDilation * tile.columns * C;", "from += kDilation * C;"),
    ],
)
def test_planted_bugs_are_noticed(device, planted, file, old, new):
    planted(file, old, new)
    with pytest.raises((Mismatch, KernelFault)):
        check_forward(make_case(SMALL, (3, 5, 7)), device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # An output that nobody writes.
        (REACH, "    to[C] = room.sums[C + threadIdx.x];", ""),
        # An index off by one: a tap of the kernel that is turned around, an image.
        (REACH, "taps - 1 - tap", "(taps - tap) % taps"),
        (REACH, "end < images ? end : images", "end < images ? end : images - 1"),
        # A row's pitch in the place of a pixel's.
        (PULL, "gradient + pixel.at * pitch + c", "gradient + pixel.at * C * 2 + c"),
        (REACH_STATES, "const int64_t at = pixel * call.pitch;", "const int64_t at = pixel;"),
        # What is there already is forgotten.
        (REACH_STATES, "to->x + found[0]", "found[0]"),
        # A tap of the next row.
        (PULL, "from[(ky * kDilation * tile.columns + i) * C]", "from[(ky * C + i) * C]"),
    ],
    ids=["sums", "tap", "image", "pitch", "state's pitch", "sum", "row of taps"],
)
def test_planted_bugs_of_the_backward_pass_are_noticed(device, planted, file, old, new):
    planted(file, old, new)
    with pytest.raises((Mismatch, KernelFault)):
        check(make_case(SMALL, (3, 5, 7)), torch.float32, device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize("argument", ["pitch", "chunk_pixels", "width", "halo"])
def test_wrong_arguments_are_noticed(device, monkeypatch, argument):
    def launch(kernel, grid, **arguments):
        if kernel is compiled.CONVOLVE:
            arguments[argument] -= 1
        correct(kernel, grid, **arguments)

    correct = forward.launch
    monkeypatch.setattr(forward, "launch", launch)
    with pytest.raises((Mismatch, KernelFault)):
        check_forward(make_case(SMALL, (2, 5, 7)), device)


BARRIER = re.compile(r"\n\s*bar\.sync\s+0;")


@pytest.mark.skipif(not cuda.has_nvcc(), reason=cuda.MISSING)
@pytest.mark.parametrize("second", [False, True], ids=["first layers", "second layers"])
def test_every_missing_barrier_is_noticed(monkeypatch, second):
    """By the machine; but the last of second layers.

    Where a pack has one row, each thread has its own sums before moments are written.
    tests/csrc/cuda has the backward pass too, whose entries hold the same barriers for several
    kernel sizes.
    """
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    launches: list[Launch] = []
    plan = CellPlan(16, (*ONLY_SEPARABLE, "max_pool_3x3"), 2, False, ("identity",))
    # Two tiles of one chunk; packs with and without pools.
    with tiles_of(512), launched_by(launches.append):
        forward_of(make_case(plan, (1, 20, 20)).to(torch.float32))
    *_, last = [
        one
        for one in launches
        if one.kernel is compiled.CONVOLVE and one.arguments["second"] == second
    ]
    entry = cuda.entry_of(last)
    PtxLauncher(80)(last)
    barriers = barriers_of(cuda.compile_cuda(last, 80).ptx, entry)
    unnoticed = []
    for number, (start, end) in enumerate(barriers):

        def drop(text: str, start: int = start, end: int = end) -> str:
            return text[:start] + text[end:]

        try:
            PtxLauncher(80, change=drop)(last)
        except Race:
            continue
        unnoticed.append(number)
    assert unnoticed == ([len(barriers) - 1] if second else [])


def barriers_of(text: str, entry: str) -> list[tuple[int, int]]:
    """Where those of an entry are."""
    start = text.index(f".entry {entry}(")
    end = text.find(".entry", start + 1)
    return [match.span() for match in BARRIER.finditer(text, start, end if end > 0 else len(text))]
