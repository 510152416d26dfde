"""Cutting: hand-made alpha and beta with a known outcome."""

import math

import pytest
import torch
from torch import Tensor

from da2s_fast.nn import ArchitectureParameters, EdgeMode
from da2s_fast.search import discretize
from da2s_fast.spaces import DA2S, DARTS, NAS_BENCH_201, SearchSpace, get_space

OPERATIONS = ["max_pool_3x3", "skip_connect", "dil_conv_3x3"]
SPACE = get_space("da2s", OPERATIONS, 3)
MAX, SKIP, DIL = range(3)


def make(
    space: SearchSpace, mode: EdgeMode, keep: dict[str, tuple[int, ...]] | None = None
) -> ArchitectureParameters:
    """All zero, so that tests set what they mean."""
    return ArchitectureParameters(
        space.kinds,
        space.edges_per_node,
        len(space.primitives),
        keep=space.keep_targets(keep),
        strengthen_operations=mode == "da2s",
        edge_mode=mode,
        noise=0.0,
        generator=torch.Generator(),
    )


def put(target: Tensor, values: list) -> None:
    with torch.no_grad():
        target.copy_(torch.tensor(values))


# Nine edges: node 0 has 2, node 1 has 3, node 2 has 4.
ALPHA_NORMAL = [
    [0.0, 1.0, 0.5],
    [2.0, 1.0, 0.5],
    [0.1, 0.2, 0.9],
    [0.0, 0.0, 0.3],
    [-3.0, -2.0, -2.5],
    [0.0, 0.6, 0.5],
    [0.4, 0.3, 0.2],
    [0.0, -1.0, 0.1],
    [0.0, 3.0, 0.0],
]
ALPHA_REDUCE = [[0.0, 0.0, 1.0]] * 9
BETA_NORMAL = [0.2, 0.9, 0.1, 1.4, 0.8, 0.3, 2.0, -1.0, 0.5]
BETA_REDUCE = [0.0, 1.0, 0.5, 0.4, 0.3, 1.0, 0.2, 0.3, 0.1]


def da2s(keep: dict[str, tuple[int, ...]] | None = None) -> ArchitectureParameters:
    architecture = make(SPACE, "da2s", keep)
    put(architecture.alphas["normal"], ALPHA_NORMAL)
    put(architecture.alphas["reduce"], ALPHA_REDUCE)
    put(architecture.betas["normal"], BETA_NORMAL)
    put(architecture.betas["reduce"], BETA_REDUCE)
    return architecture


def test_da2s_keeps_the_edges_with_the_largest_beta() -> None:
    cut = discretize(da2s(), SPACE)
    assert cut.genotype.normal.nodes == (
        (("skip_connect", 0), ("max_pool_3x3", 1)),
        (("dil_conv_3x3", 1), ("skip_connect", 2)),
        (("max_pool_3x3", 1), ("skip_connect", 3)),
    )
    assert cut.genotype.reduce.nodes == (
        (("dil_conv_3x3", 0), ("dil_conv_3x3", 1)),
        (("dil_conv_3x3", 0), ("dil_conv_3x3", 1)),
        (("dil_conv_3x3", 0), ("dil_conv_3x3", 2)),
    )
    assert cut.genotype.normal.concat == (2, 3, 4)


def test_da2s_cut_mixture() -> None:
    cut = discretize(da2s(), SPACE)
    normal = cut.mixtures["normal"]
    expected = torch.zeros(9, 3)
    for edge, op in ((0, SKIP), (1, MAX), (3, DIL), (4, SKIP), (6, MAX), (8, SKIP)):
        expected[edge, op] = 1
    assert torch.equal(normal.weights, expected)
    assert normal.edge_weights.tolist() == [1, 1, 0, 1.5, 1.5, 0, 2, 0, 2]
    assert normal.active == ((1,), (0,), (), (2,), (1,), (), (0,), (), (1,))
    assert not normal.weights.requires_grad


IMBALANCED = {"normal": (1, 3, 1), "reduce": (2, 1, 3)}


def test_imbalanced_targets() -> None:
    cut = discretize(da2s(IMBALANCED), SPACE)
    assert cut.genotype.normal.nodes == (
        (("max_pool_3x3", 1),),
        (("dil_conv_3x3", 0), ("dil_conv_3x3", 1), ("skip_connect", 2)),
        (("max_pool_3x3", 1),),
    )
    assert cut.genotype.reduce.edges_per_node == (2, 1, 3)
    assert [edge.source for edge in cut.genotype.reduce.edges] == [0, 1, 0, 0, 1, 2]
    assert cut.mixtures["normal"].edge_weights.tolist() == [0, 2, 1, 1, 1, 0, 4, 0, 0]
    expected = torch.tensor([1, 1, 3, 0, 0, 4 / 3, 4 / 3, 4 / 3, 0])
    torch.testing.assert_close(cut.mixtures["reduce"].edge_weights, expected)


def test_kept_beta() -> None:
    # The first node is not weighed by beta where it keeps both edges.
    normal, reduce = (1 + 0.8 + 1 + 0.5), (0.5 + 0.4 + 1.0 + 0.3)
    assert discretize(da2s(), SPACE).kept_beta == pytest.approx((normal + reduce) / 8)
    normal = 0.9 + (0.1 + 1 + 0.8) + 1
    reduce = 0.5 + (1.0 + 0.2 + 0.3)
    assert discretize(da2s(IMBALANCED), SPACE).kept_beta == pytest.approx((normal + reduce) / 9)
    assert discretize(make(SPACE, "softmax"), SPACE).kept_beta is None
    assert discretize(make(SPACE, "none"), SPACE).kept_beta is None


def test_kept_beta_is_none_where_beta_decides_nothing() -> None:
    everything = {"normal": (2,), "reduce": (2,)}
    space = get_space("da2s", OPERATIONS, 1)
    assert discretize(make(space, "da2s", everything), space).kept_beta is None


def test_skip_fraction_counts_kept_edges_of_the_normal_cell() -> None:
    assert discretize(da2s(), SPACE).skip_fraction == pytest.approx(3 / 6)
    assert discretize(da2s(IMBALANCED), SPACE).skip_fraction == pytest.approx(1 / 5)


def test_mean_max_p() -> None:
    def largest(row: list[float]) -> float:
        logits = [2 * a if 2 * a >= -1 else (2 * a) ** 3 for a in row]
        return 1 / sum(math.exp(x - max(logits)) for x in logits)

    rows = ALPHA_NORMAL + ALPHA_REDUCE
    expected = sum(map(largest, rows)) / len(rows)
    assert discretize(da2s(), SPACE).mean_max_p == pytest.approx(expected, rel=1e-5)


def test_kept_p_is_the_weakest_of_the_operations_that_are_kept() -> None:
    cut = discretize(da2s(), SPACE)
    kept = []
    for kind in SPACE.kinds:
        p = da2s().operation_weights(kind).tolist()
        for row, active in zip(p, cut.mixtures[kind].active or (), strict=True):
            kept += [row[operation] for operation in active]
    assert len(kept) == 12
    assert cut.kept_p == min(kept) < cut.mean_max_p


def test_ties_go_to_the_earlier_edge_and_operation() -> None:
    cut = discretize(make(SPACE, "da2s"), SPACE)
    assert [edge.source for edge in cut.genotype.normal.edges] == [0, 1, 0, 1, 0, 1]
    assert {edge.operation for edge in cut.genotype.normal.edges} == {"max_pool_3x3"}
    assert cut.mean_max_p == pytest.approx(1 / 3)
    assert cut.skip_fraction == 0


class TestDarts:
    SPACE = get_space("darts", ["none", *OPERATIONS], 2)
    # Edges 0, 1 | 2, 3, 4; `none` is the strongest of most.
    ALPHA = (
        [9.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
        [0.0, 2.0, 0.0, 0.0],  # p(max) = 0.71
        [9.0, 5.0, 0.0, 0.0],  # p(max) = 0.018: most goes to none
        [0.0, 0.0, 0.0, 1.0],  # p(dil) = 0.48
    )

    def make(self, mode: EdgeMode) -> ArchitectureParameters:
        architecture = make(self.SPACE, mode)
        for kind in self.SPACE.kinds:
            put(architecture.alphas[kind], list(self.ALPHA))
        return architecture

    def test_none_is_never_chosen_but_takes_its_share(self) -> None:
        cut = discretize(self.make("none"), self.SPACE)
        assert cut.genotype.normal.nodes == (
            (("skip_connect", 0), ("dil_conv_3x3", 1)),
            (("max_pool_3x3", 0), ("dil_conv_3x3", 2)),
        )
        mixture = cut.mixtures["normal"]
        assert mixture.edge_weights is None
        assert mixture.active == ((2,), (3,), (1,), (), (3,))
        none = math.exp(9)
        assert cut.kept_p == pytest.approx(math.e / (none + 2 + math.e), rel=1e-5)
        assert mixture.weights.sum(1).tolist() == [1, 1, 1, 0, 1]
        assert cut.kept_beta is None

    def test_pc_darts_multiplies_by_softmax_beta(self) -> None:
        architecture = self.make("softmax")
        # softmax: 0.58, 0.21, 0.21 would drop edge 3; a large beta lets it win.
        put(architecture.betas["normal"], [0.3, 0.7, 1.0, 6.0, 0.0])
        put(architecture.betas["reduce"], [0.0, 0.0, 1.0, 0.0, 0.0])
        cut = discretize(architecture, self.SPACE)
        assert [edge.source for edge in cut.genotype.normal.nodes[1]] == [0, 1]
        assert [edge.source for edge in cut.genotype.reduce.nodes[1]] == [0, 2]
        g = cut.mixtures["normal"].edge_weights
        expected = torch.zeros(5)
        expected[:2] = torch.softmax(torch.tensor([0.3, 0.7]), 0)
        expected[2:4] = torch.softmax(torch.tensor([1.0, 6.0]), 0)
        torch.testing.assert_close(g, expected)


def test_nas_bench_201_keeps_all_edges_and_may_choose_none() -> None:
    architecture = make(NAS_BENCH_201, "none")
    put(
        architecture.alphas["normal"],
        torch.eye(6, 5).tolist(),
    )
    cut = discretize(architecture, NAS_BENCH_201)
    assert cut.genotype.to_nas_bench_201() == (
        "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )
    assert cut.genotype.reduce is None
    assert cut.mixtures["normal"].edge_weights is None
    assert cut.skip_fraction == pytest.approx(1 / 6)


@pytest.mark.parametrize("space", [DA2S, DARTS])
@pytest.mark.parametrize("mode", ["none", "softmax", "da2s"])
def test_changes_nothing_and_draws_nothing(space: SearchSpace, mode: EdgeMode) -> None:
    architecture = make(space, mode)
    before = architecture.state_dict()
    random = torch.get_rng_state()
    discretize(architecture, space)
    after = architecture.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in architecture.parameters())
