"""The code compiled of the cell's kernels; `interpreted/` has more cases."""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.cells import SMALL, WIDE, check, evaluate, on, tiles_of
from tests.ops.cell_cases import make_case

# Where one architecture's code is as good as another's.
ONE_PLACE = pytest.mark.parametrize(
    "device", ["sm_80", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True
)


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    with tiles_of(32):
        yield


@ONE_PLACE
@pytest.mark.parametrize("name", ["separable", "dense, partial"])
def test_as_accurate_as_eager(device, name):
    check(make_case(SMALL[name], (2, 5, 7), frozen="some"), torch.float32, device)


def test_every_architecture(device):
    check(make_case(SMALL["cut"], (2, 5, 7)), torch.float32, device)


@ONE_PLACE
def test_one_image_in_tensor_shapes(device):
    check(make_case(WIDE, (1, 4, 4)), torch.float32, device)


@ONE_PLACE
def test_recomputing_gives_the_same_bits(device):
    case = on(make_case(SMALL["cut"], (2, 5, 7), frozen="some").to(torch.float32), device)
    saved, again = evaluate(case), evaluate(case, memory="recompute")
    for key, value in saved.items():
        assert torch.equal(again[key], value), key


@ONE_PLACE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_rounded_only_at_the_end(device, dtype):
    """Inputs and weights of 16 bits give what the same numbers in float32 give, rounded."""
    short = on(make_case(SMALL["cut"], (2, 5, 7)).to(dtype), device)
    wide = short.to(torch.float32)
    incoming = torch.randn_like(evaluate(wide)["output"]).to(dtype)
    found = evaluate(short, incoming=incoming)
    for name, value in evaluate(wide, incoming=incoming.float()).items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
        assert found[name].dtype == (torch.float32 if name == "statistics" else dtype)
