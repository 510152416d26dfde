"""Cells against the sum over their edges and candidates, one after the other."""

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.nn import DARTS_PRIMITIVES, Cell, Mixture
from tests.nn import reference
from tests.nn.evaluate import assert_equal_to_reference

PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
EXACT = [torch.float64]


def pair(
    C: int,
    reduction: bool,
    reduction_prev: bool,
    *,
    nodes: int = 3,
    K: int = 1,
    primitives: tuple[str, ...] = PRIMITIVES,
) -> tuple[Cell, reference.Cell]:
    torch.manual_seed(0)
    ours = Cell(
        nodes,
        nodes,
        6,
        5,
        C,
        reduction,
        reduction_prev,
        primitives=primitives,
        partial_channels=K,
    )
    theirs = reference.Cell(
        (6, 5),
        C,
        reduction=reduction,
        reduction_prev=reduction_prev,
        primitives=primitives,
        nodes=nodes,
        K=K,
    )
    return ours, theirs


def inputs(size: int, reduction_prev: bool, nodes: int = 3, operations: int = 4) -> list[Tensor]:
    """s0, s1, p and g."""
    generator = torch.Generator().manual_seed(1)
    edges = sum(2 + node for node in range(nodes))
    before = 2 * size - size % 2 if reduction_prev else size
    return [
        torch.randn(2, 6, before, before, generator=generator),
        torch.randn(2, 5, size, size, generator=generator),
        torch.randn(edges, operations, generator=generator).softmax(1),
        torch.rand(edges, generator=generator),
    ]


def call(cell: nn.Module, s0: Tensor, s1: Tensor, p: Tensor, g: Tensor | None = None) -> Tensor:
    return cell(s0, s1, p, g)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("reduction_prev", [False, True])
@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("weighs_edges", [True, False])
def test_equals_reference(
    size: int, reduction_prev: bool, reduction: bool, K: int, weighs_edges: bool
) -> None:
    given = inputs(size, reduction_prev)
    if not weighs_edges:
        given.pop()
    assert_equal_to_reference(*pair(4, reduction, reduction_prev, K=K), call, given, dtypes=EXACT)


@pytest.mark.parametrize("reduction", [False, True])
def test_equals_reference_with_all_operations_of_darts(reduction: bool) -> None:
    cells = pair(4, reduction, False, nodes=4, primitives=DARTS_PRIMITIVES)
    given = inputs(8, False, nodes=4, operations=8)
    assert_equal_to_reference(*cells, call, given, dtypes=EXACT)


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_other_numbers_of_nodes(nodes: int) -> None:
    given = inputs(4, False, nodes)
    assert_equal_to_reference(*pair(4, False, False, nodes=nodes), call, given, dtypes=EXACT)


def test_evaluation_mode() -> None:
    ours, theirs = pair(4, True, False)
    given = inputs(6, False)
    with torch.no_grad():
        for _ in range(3):
            ours(*given)
    assert_equal_to_reference(ours.eval(), theirs.eval(), call, given, dtypes=EXACT)


def test_multiplier_takes_the_last_nodes() -> None:
    torch.manual_seed(0)
    whole = Cell(3, 3, 6, 5, 4, False, False, primitives=PRIMITIVES)
    last = Cell(3, 2, 6, 5, 4, False, False, primitives=PRIMITIVES)
    last.load_state_dict(whole.state_dict())
    given = inputs(6, False)
    assert torch.equal(last(*given), whole(*given)[:, 4:])


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("weighs_edges", [True, False])
def test_mixture_is_the_same_as_separate_weights(K: int, weighs_edges: bool) -> None:
    cell, _ = pair(4, False, False, K=K)
    s0, s1, p, g = inputs(6, False)
    edge_weights = g if weighs_edges else None
    assert torch.equal(cell(s0, s1, Mixture(p, edge_weights)), cell(s0, s1, p, edge_weights))


class TestActive:
    """A mixture that names its active candidates computes the same without the others."""

    ACTIVE = ((2,), (), (0, 3), (3,), (), (2, 1), (), (), (2,))

    def mixture(self) -> tuple[Tensor, Tensor]:
        """Both of them, zero wherever nothing is active."""
        *_, p, g = inputs(6, False)
        for edge, chosen in enumerate(self.ACTIVE):
            p[edge, [op for op in range(4) if op not in chosen]] = 0
            g[edge] *= bool(chosen)
        return p.double(), g.double()

    @pytest.mark.parametrize("reduction", [False, True])
    @pytest.mark.parametrize("K", [1, 2])
    def test_equals_zero_weights(self, reduction: bool, K: int) -> None:
        cell = pair(4, reduction, False, K=K)[0].double()
        s0, s1, *_ = (value.double() for value in inputs(6, False))
        p, g = self.mixture()
        torch.testing.assert_close(
            cell(s0, s1, Mixture(p, g, self.ACTIVE)),
            cell(s0, s1, Mixture(p, g)),
            rtol=1e-10,
            atol=1e-12,
        )

    def test_without_edge_weights(self) -> None:
        cell = pair(4, False, False)[0].double()
        s0, s1, *_ = (value.double() for value in inputs(6, False))
        p, _ = self.mixture()
        torch.testing.assert_close(
            cell(s0, s1, Mixture(p, None, self.ACTIVE)),
            cell(s0, s1, Mixture(p)),
            rtol=1e-10,
            atol=1e-12,
        )

    def test_without_edge_weights_a_cut_edge_loses_its_bypass_too(self) -> None:
        """With partial channels an edge that is cut is gone, unlike one with zero p."""
        cell = pair(4, False, False, K=2)[0].double()
        s0, s1, *_ = (value.double() for value in inputs(6, False))
        p, g = self.mixture()
        torch.testing.assert_close(
            cell(s0, s1, Mixture(p, None, self.ACTIVE)),
            cell(s0, s1, Mixture(p, (g != 0).double())),
            rtol=1e-10,
            atol=1e-12,
        )

    def test_runs_nothing_else(self) -> None:
        cell, _ = pair(4, False, False)
        ran = []
        for edge, mixed in enumerate(cell._ops):
            for op, candidate in enumerate(mixed._ops):
                candidate.register_forward_hook(lambda *_, at=(edge, op): ran.append(at))
        s0, s1, *_ = inputs(6, False)
        p, g = (value.float() for value in self.mixture())
        cell(s0, s1, Mixture(p, g, self.ACTIVE))
        assert sorted(ran) == [
            (e, op) for e, chosen in enumerate(self.ACTIVE) for op in sorted(chosen)
        ]
