"""Genotypes: reading, writing and refusing."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from da2s_fast.errors import UserError
from da2s_fast.nn.operations import OPERATIONS
from da2s_fast.nn.topology import CellTopology, Edge
from da2s_fast.spaces import Genotype

DARTS_V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
PC_DARTS_CIFAR = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), "
    "('dil_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), "
    "('dil_conv_3x3', 1)], normal_concat=range(2, 6), reduce=[('sep_conv_5x5', 1), "
    "('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))"
)
NASNET = """Genotype(
  normal = [
    ('sep_conv_5x5', 1), ('sep_conv_3x3', 0),
    ('sep_conv_5x5', 0), ('sep_conv_3x3', 0),
    ('avg_pool_3x3', 1), ('skip_connect', 0),
    ('avg_pool_3x3', 0), ('avg_pool_3x3', 0),
    ('sep_conv_3x3', 1), ('skip_connect', 1),
  ],
  normal_concat = [2, 3, 4, 5, 6],
  reduce = [
    ('sep_conv_5x5', 1), ('sep_conv_7x7', 0),
    ('max_pool_3x3', 1), ('sep_conv_7x7', 0),
    ('avg_pool_3x3', 1), ('sep_conv_5x5', 0),
    ('skip_connect', 3), ('avg_pool_3x3', 2),
    ('sep_conv_3x3', 2), ('max_pool_3x3', 1),
  ],
  reduce_concat = [4, 5, 6],
)"""
AMOEBANET = """Genotype(
  normal = [
    ('avg_pool_3x3', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 2),
    ('sep_conv_3x3', 0), ('avg_pool_3x3', 3), ('sep_conv_3x3', 1), ('skip_connect', 1),
    ('skip_connect', 0), ('avg_pool_3x3', 1),
  ],
  normal_concat = [4, 5, 6],
  reduce = [
    ('avg_pool_3x3', 0), ('sep_conv_3x3', 1), ('max_pool_3x3', 0), ('sep_conv_7x7', 2),
    ('sep_conv_7x7', 0), ('avg_pool_3x3', 1), ('max_pool_3x3', 0), ('max_pool_3x3', 1),
    ('conv_7x1_1x7', 0), ('sep_conv_3x3', 5),
  ],
  reduce_concat = [3, 4, 6]
)"""
NB201 = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


@pytest.mark.parametrize("text", [DARTS_V1, DARTS_V2, PC_DARTS_CIFAR, NASNET, AMOEBANET])
def test_published_genotypes_survive_the_round_trip(text):
    genotype = Genotype.parse(text)
    assert Genotype.parse(str(genotype)) == genotype
    assert genotype.reduce is not None
    assert str(genotype) == genotype.to_darts()


def test_darts_text_is_what_searches_print():
    assert str(Genotype.parse(PC_DARTS_CIFAR)) == PC_DARTS_CIFAR
    assert str(Genotype.parse(DARTS_V1)) == DARTS_V1.replace("[2, 3, 4, 5]", "range(2, 6)")


def test_darts_text_is_read_into_the_right_cells():
    genotype = Genotype.parse(AMOEBANET)
    assert genotype.normal.nodes[1] == (Edge("sep_conv_3x3", 0), Edge("sep_conv_5x5", 2))
    assert genotype.normal.concat == (4, 5, 6)
    assert genotype.reduce is not None
    assert genotype.reduce.nodes[4] == (Edge("conv_7x1_1x7", 0), Edge("sep_conv_3x3", 5))
    assert genotype.reduce.concat == (3, 4, 6)
    assert "reduce_concat=[3, 4, 6]" in str(genotype)


def test_field_order_brackets_quotes_and_whitespace_do_not_matter():
    varied = (
        "\n Genotype( reduce_concat = ( 2 , 3, 4, 5 ) ,\n\treduce=(%s), normal_concat=range(2,6),"
        '\r\n normal=[["sep_conv_3x3",1],%s],)\n'
    )
    text = DARTS_V1
    reduce = text.split("reduce=[")[1].split("]")[0]
    normal = text.split("normal=[('sep_conv_3x3', 1),")[1].split("]")[0]
    assert Genotype.parse(varied % (reduce, normal)) == Genotype.parse(text)


def test_imbalanced_cells_name_the_target_and_are_no_darts_text():
    normal = CellTopology(
        nodes=((Edge("skip_connect", 1),), tuple(Edge("sep_conv_3x3", s) for s in (0, 1, 2))),
        concat=(2, 3),
    )
    genotype = Genotype(normal, Genotype.parse(DARTS_V1).reduce)
    text = str(genotype)
    assert text.startswith(
        "Genotype(normal=[('skip_connect', 1, 2), ('sep_conv_3x3', 0, 3), ('sep_conv_3x3', 1, 3), "
        "('sep_conv_3x3', 2, 3)], normal_concat=range(2, 4), reduce=[('max_pool_3x3', 0, 2)"
    )
    assert Genotype.parse(text) == genotype
    with pytest.raises(UserError, match="node 2 of the normal cell has 1 edge, but DARTS text"):
        genotype.to_darts()
    with pytest.raises(UserError, match="not a NAS-Bench-201 cell"):
        genotype.to_nas_bench_201()


def test_nas_bench_201_string_in_both_directions():
    genotype = Genotype.parse(NB201)
    assert genotype.reduce is None
    assert genotype.normal.inputs == 1
    assert genotype.normal.concat == (3,)
    assert genotype.normal.nodes[1] == (Edge("none", 0), Edge("skip_connect", 1))
    assert str(genotype) == genotype.to_nas_bench_201() == NB201
    with pytest.raises(UserError, match="no DARTS text"):
        genotype.to_darts()


def test_nas_bench_201_cell_with_dropped_edges():
    cell = CellTopology(
        nodes=((Edge("nor_conv_3x3", 0),), (Edge("skip_connect", 1),)), concat=(2,), inputs=1
    )
    genotype = Genotype(cell)
    assert str(genotype) == (
        "Genotype(normal=[('nor_conv_3x3', 0, 1), ('skip_connect', 1, 2)], normal_concat=[2])"
    )
    assert Genotype.parse(str(genotype)) == genotype
    assert genotype.to_nas_bench_201() == "|nor_conv_3x3~0|+|none~0|skip_connect~1|"


def test_every_nas_bench_201_cell(data_root):
    file = data_root / "nasbench201" / "nb201_acc.npz"
    if not file.is_file():
        pytest.skip(f"no real data: {file} is not there")
    with np.load(file, allow_pickle=False) as tables:
        texts = [text.decode() for text in tables["arch"]]
        operations = tables["op_names"][tables["ops"]]
        sources = tables["edge_from_to"][:, 0]
    assert len(set(texts)) == 15_625
    for text, names in zip(texts, operations, strict=True):
        genotype = Genotype.parse(text)
        assert str(genotype) == text
        assert genotype.normal.edges == tuple(
            Edge(str(name), int(source)) for name, source in zip(names, sources, strict=True)
        )


@st.composite
def cells(draw, inputs: int) -> CellTopology:
    names = st.sampled_from(sorted(OPERATIONS))
    nodes = tuple(
        tuple(
            Edge(draw(names), draw(st.integers(0, state - 1)))
            for _ in range(draw(st.integers(1, 4)))
        )
        for state in range(inputs, inputs + draw(st.integers(1, 5)))
    )
    states = list(range(inputs, inputs + len(nodes)))
    concat = draw(st.lists(st.sampled_from(states), min_size=1, unique=True))
    return CellTopology(nodes, tuple(concat), inputs)


genotypes = st.one_of(
    st.builds(Genotype, cells(inputs=2), cells(inputs=2)), st.builds(Genotype, cells(inputs=1))
)


@given(genotypes)
def test_round_trip(genotype):
    assert Genotype.parse(str(genotype)) == genotype


def assert_read_or_refused(text: str) -> None:
    """One sentence or a genotype that survives the round trip, but no other exception."""
    with contextlib.suppress(UserError):
        genotype = Genotype.parse(text)
        assert Genotype.parse(str(genotype)) == genotype


@given(st.one_of(st.text(), st.text(alphabet="Genotype(normal=[('none', 0)],reduce_ct|~+)\n")))
def test_any_text_is_read_or_refused_in_one_sentence(text):
    assert_read_or_refused(text)


@given(
    st.sampled_from([DARTS_V1, NASNET, NB201]),
    st.integers(0, 600),
    st.integers(0, 5),
    st.text(alphabet="()[],='0123456789range_none|~+\n\x00é", max_size=5),
)
def test_damaged_text_is_read_or_refused(text, start, length, inserted):
    assert_read_or_refused(text[:start] + inserted + text[start + length :])


GOOD = "Genotype(normal=[('none', 0), ('none', 1)], normal_concat=[2], reduce=%s, reduce_concat=%s)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("Genotype", r"column 9: expected '\(', found the end of the text"),
        ("os.system('x')", "column 1: expected 'Genotype', found 'os'"),
        ("Genotype()", "normal and normal_concat are missing"),
        ("Genotype(normal=[('none', 0), ('none', 1)])", "'normal_concat' is missing"),
        ("Genotype(normal_concat=[2])", "'normal' is missing"),
        ("Genotype(norml=[])", "column 10: expected one of normal, .* found 'norml'"),
        (DARTS_V1.replace("skip_connect", "skip_conect", 1), "'skip_conect' .*'skip_connect'"),
        (DARTS_V1.replace(", 2)]", ")]", 1), "column .*: expected ',', found '\\)'"),
        (DARTS_V1 + "x", "column .*: expected the end of the text, found 'x'"),
        (DARTS_V1[:-1], r"expected ',' or '\)', found the end of the text"),
        (DARTS_V1.replace("reduce=", "normal="), "'normal' appears twice"),
        (DARTS_V1.replace("[2, 3, 4, 5]", "[2, 3, 4, 7]", 1), "concat names state 7"),
        (DARTS_V1.replace("[2, 3, 4, 5]", "[2, 2]", 1), "names a state twice"),
        (DARTS_V1.replace("[2, 3, 4, 5]", "[]", 1), "concat must name"),
        (DARTS_V1.replace("[2, 3, 4, 5]", "range(2, 999999999)", 1), "more than the cell's 4"),
        (DARTS_V1.replace("[2, 3, 4, 5]", "range(4 * 2)", 1), r"expected ',', found '\*'"),
        (DARTS_V1.replace("[2, 3, 4, 5]", "2", 1), "expected a list of states"),
        (GOOD % ("[('none', 0)]", "[2]"), "reduce cell has 1 entries"),
        (GOOD % ("[]", "[2]"), "reduce cell has no edges"),
        (GOOD % ("[('none', 0), ('none', 2)]", "[2]"), "node 2 cannot read state 2"),
        (GOOD % ("[('none', 0), ('none', 1, 2)]", "[2]"), "mixed"),
        (GOOD % ("[('none', 0, 2), ('none', 1, 4)]", "[2]"), "node 3 has no edges"),
        (GOOD % ("[('none', 0, 2), ('none', 1, 999999999)]", "[2]"), "node 3 has no edges"),
        (GOOD % ("[('none', 0, 1)]", "[1]"), "reduce cell has 1 inputs"),
        (GOOD % ("[('none', -1), ('none', 0)]", "[2]"), "source state, found '-'"),
        (GOOD % ("[('none', 1e3), ('none', 0)]", "[2]"), "found 'e3'"),
        (GOOD % ("[('none', 1234567890), ('none', 0)]", "[2]"), "1234567890... is too large"),
        (GOOD % ("[(none, 0), ('none', 0)]", "[2]"), "operation in quotes, found 'none'"),
        (GOOD % ("None", "[2]"), "list of .* pairs, found 'None'"),
        ("Genotype(normal=[('none', 0), ('none', 1)], normal_concat=[2])", "cell has 2 inputs"),
        (NB201[:-1], r"expected the edges of a node as \|op~0\|"),
        (NB201.replace("skip_connect", "skip"), "column 26: unknown operation 'skip'"),
        (NB201.replace("~1", "~0", 1), "column 26: expected operation~1, found 'skip_connect~0'"),
        (NB201.replace("none~2|", ""), "column 42: node 3: 2 edges found, 3 needed"),
        (NB201.replace("none~2", "none"), "expected operation~2, found 'none'"),
        ("|none~0|none~1|", "node 1: 2 edges found, 1 needed"),
        ("|", "expected the edges of a node"),
    ],
)
def test_refused_with_the_token_and_its_place(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Genotype.parse(text)
    assert "\n" not in str(caught.value)


def test_position_counts_lines():
    text = NASNET.replace("('max_pool_3x3', 1)", "('max_pol_3x3', 1)", 1)
    line = text.split("\n").index("    ('max_pol_3x3', 1), ('sep_conv_7x7', 0),") + 1
    with pytest.raises(UserError, match=rf"line {line}, column 6: .*'max_pool_3x3'"):
        Genotype.parse(text)


def test_only_text_is_parsed():
    with pytest.raises(UserError, match="read from text, but this is list"):
        Genotype.parse([("none", 0)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (2,)), "at least one intermediate node"),
        ((((),), (2,)), "node 2 has no edges"),
        ((((Edge("none", 2),),), (2,)), r"edge \('none', 2\) of node 2 reads state 2"),
        ((((Edge("none", -1),),), (2,)), "reads state -1"),
        ((((Edge("none", 0),),), (1,)), "concat names state 1"),
    ],
)
def test_topology_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        CellTopology(*arguments)
