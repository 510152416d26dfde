"""The code compiled of the cell's kernels; `interpreted/` has more cases."""

from collections.abc import Iterator

import pytest
import torch

from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import backward, ends, forward
from tests.gpu.cells import SMALL, WIDE, check, evaluate, gradients_of, on, tiles_of
from tests.gpu.ptx.errors import KernelFault, Race
from tests.ops.cell_cases import make_case
from tests.ops.compare import Mismatch

# Two layers of an edge, which go back through the same room.
TWO = CellPlan(3, ("sep_conv_3x3", "dil_conv_3x3"), 1, False, ("conv",))
# Where one architecture's code is as good as another's.
ONE_PLACE = pytest.mark.parametrize(
    "device", ["sm_80", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True
)


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    with tiles_of(32):
        yield


@ONE_PLACE
def test_dense_layers_and_partial_channels(device):
    check(make_case(SMALL["dense, partial"], (2, 5, 7), frozen="some"), torch.float32, device)


@pytest.mark.parametrize(
    ("device", "plan"),
    [("sm_80", TWO), ("sm_90", TWO), ("sm_100", SMALL["cut"])],
    indirect=["device"],
    ids=["sm_80", "sm_90", "sm_100"],
)
def test_as_accurate_as_eager(device, plan):
    check(make_case(plan, (2, 5, 7)), torch.float32, device)


@ONE_PLACE
def test_one_image_in_tensor_shapes(device):
    check(make_case(WIDE, (1, 5, 4)), torch.float32, device)


@ONE_PLACE
def test_sums_over_many_chunks(device, monkeypatch):
    """Several of them are read at once, several times; the last ones are empty."""
    monkeypatch.setattr(forward, "_MERGED", 4 * 4)
    monkeypatch.setattr(ends, "_ADDED_CHUNKS", 4)
    monkeypatch.setattr(ends, "_SUMMED", 4 * 4 * 2)
    check(make_case(TWO, (9, 5, 11)), torch.float32, device)


@ONE_PLACE
@pytest.mark.parametrize("plan", [TWO, SMALL["halves"]], ids=["convolution", "FactorizedReduce"])
def test_what_a_program_takes_on_changes_no_bits(device, monkeypatch, plan):
    """Some tiles of inputs with all channels, or one tile with some, down to a block."""
    case = on(make_case(plan, (2, 9, 11)).to(torch.float32), device)
    grids = []

    def evaluated(programs):
        monkeypatch.setattr(ends, "ENOUGH_PROGRAMS", programs)
        return evaluate(case)

    def launch(kernel, grid, **arguments):
        if kernel.__name__ == "leave":
            grids.append(grid)
        correct(kernel, grid, **arguments)

    correct = ends.launch
    monkeypatch.setattr(ends, "launch", launch)
    expected = evaluated(1)
    for programs in (3, 256):
        for name, value in evaluated(programs).items():
            assert torch.equal(value, expected[name]), name
    assert len(set(grids)) == 3


@ONE_PLACE
def test_recomputing_gives_the_same_bits(device):
    case = on(make_case(TWO, (2, 5, 7), frozen="some").to(torch.float32), device)
    saved, again = evaluate(case), evaluate(case, memory="recompute")
    for key, value in saved.items():
        assert torch.equal(again[key], value), key


@ONE_PLACE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_rounded_only_at_the_end(device, dtype):
    """Inputs and weights of 16 bits give what the same numbers in float32 give, rounded."""
    short = on(make_case(TWO, (2, 5, 7)).to(dtype), device)
    wide = short.to(torch.float32)
    incoming = torch.randn_like(evaluate(wide)["output"]).to(dtype)
    found = evaluate(short, incoming=incoming)
    for name, value in evaluate(wide, incoming=incoming.float()).items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
        assert found[name].dtype == (torch.float32 if name == "statistics" else dtype)


ONE_ARCHITECTURE = pytest.mark.parametrize("device", ["sm_80"], indirect=True)


def check_two(device):
    check(make_case(TWO, (2, 5, 7)), torch.float32, device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("driver", "name", "old", "new"),
    [
        # Outputs that nobody writes.
        (backward, "sums", "tl.store(to + channels, products, mask=own)", "pass"),
        (forward, "mix", "if HAS_OUTPUT:", "if HAS_OUTPUT and part > 0:"),
        # A tile, a pixel, a row of the image too few or too many.
        (forward, "convolve", "tl.cdiv(pixels, PIXELS))", "tl.cdiv(pixels, PIXELS) - 1)"),
        (forward, "convolve", "live = p < pixels", "live = p <= pixels"),
        (ends, "prepare_backward", "live = p < last", "live = p < last - 1"),
        # Height in the place of width.
        (forward, "convolve", "split(p, height, width)", "split(p, width, height)"),
    ],
)
def test_planted_bugs_are_noticed(device, plant, driver, name, old, new):  # noqa: PLR0917
    plant(driver, old, new, name)
    with pytest.raises((Mismatch, KernelFault)):
        check_two(device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize("depth", [8, 16], ids=["reach_inner", "reach_states"])
def test_missing_barriers_are_noticed(device, plant, depth):
    """Without gradients of weights, whose sums have barriers of their own."""
    kept = "other threads.\n" + " " * depth + "tl.debug_barrier()"
    case = make_case(TWO, (2, 5, 7)).to(torch.float32)
    mask = [True, True, True, False]
    gradients_of(case, mask=mask)
    plant(backward, kept, kept.replace("tl.debug_barrier()", "pass"), "reach")
    with pytest.raises(Race, match="without a barrier"):
        gradients_of(case, mask=mask)


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("driver", "argument"),
    [(forward, "pitch"), (forward, "tiles_per_chunk"), (backward, "images"), (backward, "width")],
)
def test_wrong_arguments_are_noticed(device, monkeypatch, driver, argument):
    def launch(kernel, grid, **arguments):
        if argument in arguments:
            arguments[argument] -= 1
        correct(kernel, grid, **arguments)

    correct = driver.launch
    monkeypatch.setattr(driver, "launch", launch)
    with pytest.raises((Mismatch, KernelFault)):
        check_two(device)
