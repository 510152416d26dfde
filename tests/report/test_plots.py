import re
from xml.etree import ElementTree

import numpy as np
import pytest

from da2s_fast.report.plots import Line, plot_lines, plot_small
from da2s_fast.report.style import SLOTS, operation_slots


def rising(slot=4, name="a", n=3):
    return Line(name, np.linspace(0.1, 0.9, n), slot)


def test_lines_use_the_colours_of_the_page_and_nothing_else():
    lines = [rising(4), Line("b", np.array([0.2, np.nan, 0.4]), 1, dashed=True)]
    svg = plot_lines([1, 2, 3], lines, label="l", percent=True, between=(0, 1))
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", svg))
    assert {"--s4", "--s1", "--bad", "--line", "--muted"} <= used
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
    assert "stroke-dasharray" in svg


def test_svg_is_well_formed_without_addresses_and_with_references_that_exist():
    svg = plot_small([1, 2, 3], [rising()], label='<a & "b">')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == '<a & "b">'
    assert not re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg))
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)
    assert references
    assert set(references) <= set(ids)


def test_two_plots_in_one_page_do_not_share_ids_and_the_same_plot_is_the_same():
    a, b = (plot_small([1, 2, 3], [rising()], label=label) for label in ("one", "two"))
    assert not set(re.findall(r'\bid="([^"]+)"', a)) & set(re.findall(r'\bid="([^"]+)"', b))
    assert plot_small([1, 2, 3], [rising()], label="one") == a


@pytest.mark.parametrize("plot", [plot_small, plot_lines])
def test_a_single_epoch_shows_as_a_point(plot):
    svg = plot([1], [rising(n=1)], label="l")
    points = re.findall(r'<use [^>]*style="fill: var\(--s4\)', svg)
    assert len(points) == 1


def test_operation_colours_are_distinct_and_stable():
    names = ["none", "skip_connect", "sep_conv_3x3", "my_op", "my_other_op", "nor_conv_3x3"]
    slots = operation_slots(names)
    assert list(slots) == names
    assert len(set(slots.values())) == len(names)
    assert slots["skip_connect"] == operation_slots(["skip_connect"])["skip_connect"]
    many = operation_slots([f"op{i}" for i in range(30)])
    assert len(many) == 30
    assert set(many.values()) <= set(range(SLOTS))
