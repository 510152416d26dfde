"""Search spaces as data."""

import pytest

from da2s_fast.errors import UserError
from da2s_fast.nn.operations import OPERATIONS, ReLUConvBN, register_operation
from da2s_fast.spaces import DA2S, DARTS, NAS_BENCH_201, get_space


def test_darts_has_the_papers_candidates_and_edges():
    assert DARTS.primitives == (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    )
    assert DA2S.primitives == DARTS.primitives[1:]
    assert DARTS.edges_per_node == (2, 3, 4, 5)
    assert DARTS.num_edges == 14
    assert DARTS.edges[:5] == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def test_nas_bench_201_edges_follow_the_tables_order():
    assert NAS_BENCH_201.edges == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert NAS_BENCH_201.kinds == ("normal",)
    assert NAS_BENCH_201.keep_targets() == {"normal": (1, 2, 3)}


def test_get_space_changes_operations_and_nodes():
    space = get_space("da2s", operations=["skip_connect", "sep_conv_7x7"], nodes=3)
    assert space.primitives == ("skip_connect", "sep_conv_7x7")
    assert space.num_edges == 9
    assert get_space("da2s") == DA2S


def test_registered_operation_can_be_searched():
    register_operation("spaces_test_conv", lambda C, stride, affine: ReLUConvBN(C, C, 1, stride, 0))
    try:
        assert get_space("da2s", ["skip_connect", "spaces_test_conv"]).nodes == 4
    finally:
        del OPERATIONS["spaces_test_conv"]


def test_keep_targets_balanced_imbalanced_and_per_kind():
    assert DA2S.keep_targets() == {"normal": (2, 2, 2, 2), "reduce": (2, 2, 2, 2)}
    assert DA2S.keep_targets([1, 2, 3, 3])["reduce"] == (1, 2, 3, 3)
    assert DA2S.keep_targets({"normal": [1, 1, 4, 5]}) == {
        "normal": (1, 1, 4, 5),
        "reduce": (2, 2, 2, 2),
    }


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([2, 2, 2], "3 numbers for normal cells; give 4"),
        ([3, 2, 2, 2], "keep is 3 for node 1 of normal cells; this node can keep 1 to 2"),
        ([0, 2, 2, 2], "keep is 0 for node 1"),
        ([True, 2, 2, 2], "keep is True"),
        ([2, 2.0, 2, 2], "keep is 2.0 for node 2"),
        ("2222", "keep is '2222'"),
        (2, "keep is 2 for normal cells; give one number per node"),
        ({"norml": [2, 2, 2, 2]}, "cell kind 'norml'"),
        ({"reduce": [2, 2, 2, 6]}, "keep is 6 for node 4 of reduce cells"),
    ],
)
def test_keep_targets_refuses(keep, message):
    with pytest.raises(UserError, match=message):
        DA2S.keep_targets(keep)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dart",), "'dart' .did you mean 'darts'"),
        (("darts", ["sep_conv_3x4"]), "'sep_conv_3x4' .did you mean 'sep_conv_"),
        (("darts", ["skip_connect", "skip_connect"]), "listed twice"),
        (("darts", []), "at least one operation"),
        (("darts", ["none"]), "at least one operation other than 'none'"),
        (("darts", "none"), "give a list of names"),
        (("darts", None, 0), "nodes is 0"),
        (("darts", None, 2.5), "nodes is 2.5"),
    ],
)
def test_get_space_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        get_space(*arguments)
