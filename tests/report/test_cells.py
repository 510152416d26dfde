"""Drawings of cells: complete, well-formed, and with labels nothing else touches."""

import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from da2s_fast.report.cells import CellEdge, cell_edges, describe_cell, draw_cell
from da2s_fast.spaces import Genotype

SVG = "{http://www.w3.org/2000/svg}"
OPERATIONS = ("skip_connect", "sep_conv_3x3", "none", "my_own_operation_with_a_long_name")


@st.composite
def cells(draw):
    """Any cell: 1 to 3 inputs, up to 6 nodes, each with one or more of its edges."""
    inputs, nodes = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    edges = []
    for target in range(inputs, inputs + nodes):
        sources = draw(st.lists(st.integers(0, target - 1), min_size=1, max_size=5, unique=True))
        edges += [CellEdge(draw(st.sampled_from(OPERATIONS)), s, target) for s in sources]
    states = range(inputs, inputs + nodes)
    concat = draw(st.lists(st.sampled_from(states), min_size=1, max_size=nodes, unique=True))
    return {"edges": edges, "inputs": inputs, "nodes": nodes, "concat": concat}


def groups(svg, name):
    root = ElementTree.fromstring(svg)
    return [g for g in root.iter(f"{SVG}g") if g.get("class") == name]


def rectangle(group):
    values = group.find(f"{SVG}rect").attrib
    x, y, w, h = (float(values[k]) for k in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def curve(path):
    """Points along M, L, C, L: the four parts every link has."""
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))]
    start, before, a, b, after, end = np.array(numbers).reshape(6, 2)
    t = np.linspace(0, 1, 60)[:, None]
    bend = (1 - t) ** 3 * before + 3 * t * (1 - t) ** 2 * a + 3 * t**2 * (1 - t) * b + t**3 * after
    return np.concatenate([start + t * (before - start), bend, after + t * (end - after)])


@settings(max_examples=40, deadline=None)
@given(cells(), st.booleans())
def test_boxes_stand_apart_and_lines_pass_between_them(cell, upright):
    svg = draw_cell(**cell, upright=upright)
    root = ElementTree.fromstring(svg)
    boxes = [
        rectangle(group)
        for kind in ("input", "node", "output", "operation")
        for group in groups(svg, kind)
    ]
    assert len(boxes) == cell["inputs"] + cell["nodes"] + 1 + len(cell["edges"])
    for a, b in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (a, b)
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(a >= 0 and b >= 0 and c <= width and d <= height for a, b, c, d in boxes)
    lines = [p for p in root.iter(f"{SVG}path") if p.get("class").startswith("flow")]
    assert len(lines) >= len(cell["edges"]) * 2
    for line in lines:
        points = curve(line)
        for x0, y0, x1, y1 in boxes:
            inside = (points > (x0 + 0.3, y0 + 0.3)) & (points < (x1 - 0.3, y1 - 0.3))
            assert not inside.all(axis=1).any()


@settings(max_examples=20, deadline=None)
@given(cells(), st.booleans())
def test_labels_fit_into_their_boxes(cell, upright):
    for group in groups(draw_cell(**cell, upright=upright), "operation"):
        x0, _, x1, _ = rectangle(group)
        text = group.find(f"{SVG}text")
        half = float(text.get("textLength")) / 2
        assert x0 + 4 < float(text.get("x")) - half
        assert float(text.get("x")) + half < x1 - 4


def test_every_operation_node_and_input_is_there():
    genotype = Genotype.parse(
        "Genotype(normal=[('sep_conv_3x3', 0, 2), ('skip_connect', 2, 3), ('max_pool_3x3', 1, 3), "
        "('dil_conv_5x5', 0, 3)], normal_concat=[3], reduce=[('skip_connect', 0, 2)], "
        "reduce_concat=[2])"
    )
    edges = cell_edges(genotype.normal)
    assert edges == [
        CellEdge("sep_conv_3x3", 0, 2),
        CellEdge("skip_connect", 2, 3),
        CellEdge("max_pool_3x3", 1, 3),
        CellEdge("dil_conv_5x5", 0, 3),
    ]
    svg = draw_cell(edges, inputs=2, nodes=2, concat=[3])
    texts = {kind: ["".join(g.itertext()) for g in groups(svg, kind)] for kind in ("input", "node")}
    assert texts == {"input": ["ck-2", "ck-1"], "node": ["0", "1"]}
    labels = ["".join(g.itertext()) for g in groups(svg, "operation")]
    assert labels == ["sep_conv_3x3", "skip_connect", "max_pool_3x3", "dil_conv_5x5"]
    assert describe_cell(edges, 2, 2) == (
        "node 0 = sep_conv_3x3(ck-2); "
        "node 1 = skip_connect(0) + max_pool_3x3(ck-1) + dil_conv_5x5(ck-2)"
    )
    assert ElementTree.fromstring(svg).get("aria-label") == describe_cell(edges, 2, 2)


def test_nas_bench_201_cell_has_one_input_and_dashes_for_none():
    cell = Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|").normal
    svg = draw_cell(cell_edges(cell), inputs=1, nodes=2, concat=cell.concat)
    assert ["".join(g.itertext()) for g in groups(svg, "input")] == ["input"]
    root = ElementTree.fromstring(svg)
    assert len([p for p in root.iter(f"{SVG}path") if p.get("stroke-dasharray")]) == 1


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"&\x00\x1b<b>', "ÄÖ∑", "x" * 500])
def test_hostile_operation_names_stay_text(name):
    svg = draw_cell([CellEdge(name, 0, 1)], inputs=1, nodes=1, concat=[1])
    root = ElementTree.fromstring(svg)
    assert {element.tag for element in root.iter()} <= {
        f"{SVG}{tag}" for tag in ("svg", "g", "path", "rect", "text", "tspan")
    }
    (label,) = ["".join(group.itertext()) for group in groups(svg, "operation")]
    assert len(label) <= 24
    assert label[:3] == name.replace("\x00", "").replace("\x1b", "")[:3]
