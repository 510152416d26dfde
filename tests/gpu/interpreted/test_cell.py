"""The cell's Triton kernels in Triton's interpreter, against the reference: small cells."""

from collections.abc import Iterator

import pytest
import torch

from da2s_fast.kernels.cell import rows
from da2s_fast.ops.cell.triton import call
from tests.gpu.cells import SMALL, WIDE, check, evaluate, gradients_of, tiles_of
from tests.ops.cell_cases import make_case
from tests.ops.compare import Mismatch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    """Several tiles and chunks even of tiny images."""
    with tiles_of(32):
        yield


small = pytest.mark.parametrize("plan", SMALL.values(), ids=SMALL.keys())


@pytest.mark.parametrize("frozen", ["none", "some", "all"])
@small
def test_equals_the_reference(plan, frozen):
    check(make_case(plan, (2, 5, 7), frozen=frozen))


@small
def test_is_as_accurate_in_single_precision(plan):
    check(make_case(plan, (3, 6, 5), seed=2), torch.float32)


def test_products_in_tensor_shapes():
    check(make_case(WIDE, (2, 4, 4)), torch.float32)


@small
def test_recomputing_gives_the_same_bits(plan):
    case = make_case(plan, (2, 5, 7), frozen="some")
    saved, again = evaluate(case), evaluate(case, memory="recompute")
    for name, value in saved.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("plan", [SMALL["separable"], SMALL["dense, partial"]])
def test_what_is_not_asked_for_is_left_out(plan):
    """The same bits as with everything else beside them."""
    case = make_case(plan, (2, 5, 6)).to(torch.float32)
    everything = len(case.inputs) + 3
    _, _, (inputs, *others) = gradients_of(case)
    expected = [*inputs, *others]
    for wanted in range(everything):
        mask = [position == wanted for position in range(everything)]
        _, _, (inputs, *others) = gradients_of(case, mask=mask)
        for position, found in enumerate([*inputs, *others]):
            assert (found.numel() > 0) == mask[position]
            if mask[position]:
                assert torch.equal(found, expected[position])


def test_zeros_and_ties():
    case = make_case(SMALL["separable"], (2, 5, 6))
    case.inputs = [(4 * x).round() / 4 for x in case.inputs]
    check(case)


def test_nan_is_where_eager_has_it():
    case = make_case(SMALL["separable"], (2, 7, 7), frozen="all")
    case.inputs[0][1, 2, 3, 3] = torch.nan
    check(case, torch.float32)


def test_layouts():
    case = make_case(SMALL["cut"], (2, 6, 4))
    case.inputs[0] = case.inputs[0].contiguous(memory_format=torch.channels_last)
    case.inputs[1] = case.inputs[1].transpose(2, 3).contiguous().transpose(2, 3)
    found = check(case)
    assert found["output"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("field", ["stride", "padding", "z", "spatial", "column"])
def test_a_planted_error_is_found(field, monkeypatch):
    """A wrong stride, a window off by one, an output elsewhere, which leaves NaN behind."""
    case = make_case(SMALL["halves"] if field == "column" else SMALL["separable"], (2, 5, 6))
    check(case)
    right = call.tables_of

    def wrong(*arguments):
        tables = right(*arguments)
        first = tables.rounds[0].first
        size = len(rows.Layer._fields)
        kinds = first.table[: first.length * size : size].tolist()
        layer = next(i for i, kind in enumerate(kinds) if kind <= rows.DENSE.value)
        first.table[layer * size + rows.Layer._fields.index(field)] += 1
        return tables

    monkeypatch.setattr(call, "tables_of", wrong)
    with pytest.raises(Mismatch):
        check(case)
