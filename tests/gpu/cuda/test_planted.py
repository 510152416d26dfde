"""Bugs in the kernels of csrc/cuda are noticed: planted ones, wrong arguments, missing barriers."""

import re

import pytest
import torch

from da2s_fast.kernels.launch import Launch, launched_by
from da2s_fast.ops.cell.plan import CellPlan
from da2s_fast.ops.cell.triton import compiled, nodes
from tests.gpu.cells import check, tiles_of
from tests.gpu.cuda.cells import (
    ONE_ARCHITECTURE,
    ONLY_SEPARABLE,
    PLANS,
    SEVERAL_TILES,
    SMALL,
    check_forward,
    forward_of,
)
from tests.gpu.ptx import cuda
from tests.gpu.ptx.errors import KernelFault
from tests.gpu.ptx.launcher import PtxLauncher
from tests.ops.cell_cases import make_case
from tests.ops.compare import Mismatch

CONVOLVE, PULL, REACH = "cell/convolve.cuh", "cell/pull.cuh", "cell/reach.cuh"
COLLECT, REACH_STATES = "cell/collect.cuh", "cell/reach_states.cuh"
HALVES = "cell/halves.cuh"


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # Outputs that nobody writes.
        (CONVOLVE, "if (at[j] >= 0)", "if (at[j] >= 0 && c == 0)"),
        (CONVOLVE, "    to[C] = squares;", ""),
        # An index off by one: a tap, a row of the image, a pixel of the chunk.
        ("cell/depthwise.cuh", "(kTurned ? -k : k)", "(kTurned ? -k : k + 1)"),
        ("cell/tile.cuh", "y < height && n", "y <= height && n"),
        ("cell/tile.cuh", "static_cast<unsigned>(height)", "static_cast<unsigned>(height + 1)"),
        # A stride of one pixel in the place of a row's.
        (
            "cell/depthwise.cuh",
            "from += kDilation * tile.columns * kPairs;",
            "from += kDilation * kPairs;",
        ),
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
        (REACH, "  to[pitch + channel] = room.sums[C + channel];", ""),
        # An index off by one: a tap of the kernel that is turned around, an image.
        ("cell/depthwise.cuh", "(kTurned ? -k : k)", "k"),
        (REACH, "end < images ? end : images", "end < images ? end : images - 1"),
        # A row's pitch in the place of a pixel's.
        (PULL, "gradient + at * pitch)", "gradient + at * C * 2)"),
        (REACH_STATES, "place_of(pixel, tile, call) * call.pitch;", "place_of(pixel, tile, call);"),
        # What was collected beside an input's gradient is not added.
        ("cell/candidate_sums.cuh", "before.w + v.w", "before.w"),
        # A tap of the next row.
        (PULL, "from[(ky * kDilation * tile.columns + i) * C]", "from[(ky * C + i) * C]"),
    ],
    ids=["sums", "tap", "image", "pitch", "state's pitch", "beside", "row of taps"],
)
def test_planted_bugs_of_the_backward_pass_are_noticed(device, planted, file, old, new):
    planted(file, old, new)
    with pytest.raises((Mismatch, KernelFault)):
        check(make_case(SMALL, (3, 5, 7)), torch.float32, device)


# A row in the place of the one behind it; the last one is not looked for.
ROWS_HANDED_OVER = {
    "shared memory": ("(y + above)", "(y + above - 1)"),
    "global memory": ("y < 0 && !call.kept", "y < -1 && !call.kept"),
}


@ONE_ARCHITECTURE
def test_planted_bugs_of_rows_that_are_handed_over_are_noticed(device, planted, handed_in):
    planted("cell/layer.cuh", *ROWS_HANDED_OVER[handed_in])
    with pytest.raises((Mismatch, KernelFault)), tiles_of(256):
        check(make_case(*SEVERAL_TILES), torch.float32, device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Another tap than won, another column of outputs, a share of another window.
        ("won.x == tap", "won.x == tap + 1"),
        ("const int left = x + 1 - kx;", "const int left = x + kx;"),
        ("inside(x, input.stride, input.width)", "3"),
        # The last row of the image is nobody's.
        ("y < height && tile.image", "y < height - 1 && tile.image"),
        # Channels of the candidates in the place of those that go past them.
        ("past ? C + c : c;", "c;"),
        # `none` hands on its gradient.
        ("== kNothing ? 0.f : 1.f", "== kNothing ? 1.f : 1.f"),
        # What is there already is forgotten.
        ("before.x + found.x", "found.x"),
    ],
    ids=["tap", "column", "share", "row", "channel", "none", "sum"],
)
def test_planted_bugs_of_what_has_no_layers_are_noticed(device, planted, old, new):
    planted(COLLECT, old, new)
    with pytest.raises((Mismatch, KernelFault)):
        check(make_case(PLANS["all kinds"], (2, 5, 7)), torch.float32, device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Of the second half: a row that there is not, the first one's inputs.
        ("y + 1 < row[kHeight]", "y < row[kHeight]"),
        ("? room.between : room.tile;", "? room.between : room.between;"),
        # What is there already.
        ("before[j].x + (", "("),
    ],
    ids=["row", "input", "sum"],
)
def test_planted_bugs_of_halves_are_noticed(device, planted, old, new):
    planted(HALVES, old, new)
    with pytest.raises((Mismatch, KernelFault)):
        check(make_case(PLANS["halves"], (2, 5, 7)), torch.float32, device)


@ONE_ARCHITECTURE
@pytest.mark.parametrize("argument", ["pitch", "pixels", "width", "halo"])
def test_wrong_arguments_are_noticed(device, monkeypatch, argument):
    def launch(kernel, grid, **arguments):
        if kernel is compiled.NODES:
            arguments[argument] -= 1
        correct(kernel, grid, **arguments)

    correct = nodes.launch
    monkeypatch.setattr(nodes, "launch", launch)
    with pytest.raises((Mismatch, KernelFault)):
        check_forward(make_case(SMALL, (2, 5, 7)), device)


BARRIER = re.compile(r"\n\s*bar\.sync\s+0;")


@pytest.mark.skipif(not cuda.has_nvcc(), reason=cuda.MISSING)
def test_missing_barriers_are_noticed(monkeypatch):
    """By the machine: the one behind what a program is told, and those of mixing.

    tests/csrc/cuda takes out every barrier of both kernels.
    """
    monkeypatch.setattr(compiled, "_library_reason", lambda device: None)
    launches: list[Launch] = []
    plan = CellPlan(16, (*ONLY_SEPARABLE, "max_pool_3x3"), 2, False, ("identity",))
    # Two chunks of two tiles.
    with tiles_of(128), launched_by(launches.append):
        forward_of(make_case(plan, (1, 20, 20)).to(torch.float32))
    (started,) = [one for one in launches if one.kernel is compiled.NODES]
    counters = started.arguments["counters"]
    counters.zero_()
    PtxLauncher(80)(started)
    barriers = barriers_of(cuda.compile_cuda(started, 80).ptx, cuda.entry_of(started))
    for start, end in barriers[:4]:

        def drop(text: str, start: int = start, end: int = end) -> str:
            return text[:start] + text[end:]

        counters.zero_()
        with pytest.raises(KernelFault):
            PtxLauncher(80, change=drop)(started)


def barriers_of(text: str, entry: str) -> list[tuple[int, int]]:
    """Where those of an entry are."""
    start = text.index(f".entry {entry}(")
    end = text.find(".entry", start + 1)
    return [match.span() for match in BARRIER.finditer(text, start, end if end > 0 else len(text))]
