"""Drawings of cells as graphs: inputs, numbered nodes, output, and an operation on every edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from da2s_fast.nn.topology import CellTopology
from da2s_fast.report.layout import place
from da2s_fast.report.style import (
    operation_slots,
    printable,
    split_subscript,
    state_names,
)

_CHARACTER = 6.7  # width in px that each character of a label is given (textLength enforces it)
_LABEL_LIMIT = 24
_LABEL_HEIGHT = 24.0
_NODE_HEIGHT = 30.0
_LINE = 6.0  # room for a line that passes a column
_DISTANCE = 12.0
_MARGIN = 8.0
_ARROW = 6.0


class CellEdge(NamedTuple):
    """A kept edge: the operation, and the states it joins (the cell's inputs are the first)."""

    operation: str
    source: int
    target: int


class _Box(NamedTuple):
    """An item of the drawing."""

    kind: str  # "input", "node", "output", "operation" or "line"
    text: str
    width: float
    height: float
    slot: int = 0


def cell_edges(cell: CellTopology) -> list[CellEdge]:
    """The edges of ``cell`` with their targets, node by node."""
    return [
        CellEdge(edge.operation, edge.source, target)
        for target, edges in enumerate(cell.nodes, start=cell.inputs)
        for edge in edges
    ]


def draw_cell(
    edges: Sequence[CellEdge],
    *,
    inputs: int,
    nodes: int,
    concat: Sequence[int],
    slots: Mapping[str, int] | None = None,
    upright: bool = False,
) -> Markup:
    """Draw a cell as SVG that takes its colours from the page (:mod:`da2s_fast.report.style`).

    The data flow from left to right. Each operation stands as a label in a column of its own just
    before its target, and lines only run where no label is.

    Args:
        edges: the kept edges, any number per node.
        inputs: number of input states.
        nodes: number of intermediate nodes, the states ``inputs`` ... ``inputs + nodes - 1``.
        concat: the states that form the output.
        slots: colour slot by operation; chosen from the edges' operations if not given.
        upright: the data flow from top to bottom, for narrow screens.
    """
    slots = slots or operation_slots(edge.operation for edge in edges)
    return _Drawing(edges, inputs, nodes, concat=concat, slots=slots, upright=upright).svg()


def describe_cell(edges: Sequence[CellEdge], inputs: int, nodes: int) -> str:
    """The cell in words, for readers who do not see the drawing."""
    names = [base + sub for base, sub in map(split_subscript, state_names(inputs, nodes))]
    parts = []
    for target in range(inputs, inputs + nodes):
        terms = [f"{e.operation}({names[e.source]})" for e in edges if e.target == target]
        parts.append(f"node {names[target]} = {' + '.join(terms) or 'nothing'}")
    return "; ".join(parts)


class _Drawing:
    def __init__(
        self,
        edges: Sequence[CellEdge],
        inputs: int,
        nodes: int,
        *,
        concat: Sequence[int],
        slots: Mapping[str, int],
        upright: bool,
    ) -> None:
        self.edges, self.inputs, self.nodes, self.upright = edges, inputs, nodes, upright
        self.names = state_names(inputs, nodes)
        self.columns: list[list[str]] = []
        self.boxes: dict[str, _Box] = {}
        self.column_of: dict[str, int] = {}
        self.links: list[tuple[str, str]] = []
        ranks = self._ranks()
        output_column = 2 * max(ranks) + 1
        self.columns = [[] for _ in range(output_column + 1)]
        for state, name in enumerate(self.names):
            width = 24.0 + 8 * len("".join(split_subscript(name)))
            kind = "input" if state < inputs else "node"
            self._add(f"state {state}", 2 * ranks[state], _Box(kind, name, width, _NODE_HEIGHT))
        self._add("output", output_column, _Box("output", "output", 70.0, _NODE_HEIGHT))
        for number, edge in enumerate(edges):
            label = printable(edge.operation, _LABEL_LIMIT)
            width = len(label) * _CHARACTER + 18
            box = _Box("operation", label, width, _LABEL_HEIGHT, slots[edge.operation])
            key = f"edge {number}"
            self._add(key, 2 * ranks[edge.target] - 1, box)
            self._link_far(edge.source, key)
            self.links.append((key, f"state {edge.target}"))
        used = set(self.links)
        for state in concat:
            self._link_far(state, "output")
        self.concat_links = set(self.links) - used

    def _ranks(self) -> list[int]:
        """Longest way from an input to each state, counted in nodes."""
        ranks = [0] * self.inputs
        for target in range(self.inputs, self.inputs + self.nodes):
            sources = [ranks[e.source] for e in self.edges if e.target == target]
            ranks.append(1 + max(sources, default=0))
        return ranks

    def _add(self, key: str, column: int, box: _Box) -> None:
        self.boxes[key] = box
        self.column_of[key] = column
        self.columns[column].append(key)

    def _link_far(self, source: int, target: str) -> None:
        """Link a state to a later column over lines, which all links of the state share."""
        previous = f"state {source}"
        for column in range(self.column_of[previous] + 1, self.column_of[target]):
            key = f"line {source} {column}"
            if key not in self.boxes:
                self._add(key, column, _Box("line", "", _LINE, _LINE))
                self.links.append((previous, key))
            previous = key
        self.links.append((previous, target))

    def _along(self, key: str) -> float:
        box = self.boxes[key]
        return box.height if self.upright else box.width

    def _across(self, key: str) -> float:
        box = self.boxes[key]
        return box.width if self.upright else box.height

    def svg(self) -> Markup:
        breadth = {key: self._across(key) for key in self.boxes}
        passed = {key for key, box in self.boxes.items() if box.kind == "line"}
        middle = {
            key: value + _MARGIN
            for key, value in place(self.columns, self.links, breadth, _DISTANCE, passed).items()
        }
        left, right = self._column_places(middle)
        lines = [self._line(a, b, middle, left, right) for a, b in self.links]
        boxes = []
        for key, box in self.boxes.items():
            if box.kind != "line":
                column = self.column_of[key]
                boxes.append(
                    _box(box, *self._point((left[column] + right[column]) / 2, middle[key]))
                )
        width, height = self._point(
            right[-1] + _MARGIN, max(middle[k] + breadth[k] / 2 for k in middle) + _MARGIN
        )
        return Markup(
            '<svg class="cell{}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" '
            'width="{w:.0f}" height="{h:.0f}" viewBox="0 0 {w:.0f} {h:.0f}" '
            'style="--w:{w:.0f}px">{}</svg>'
        ).format(
            " upright" if self.upright else "",
            printable(describe_cell(self.edges, self.inputs, self.nodes)),
            Markup("").join(lines + boxes),
            w=width,
            h=height,
        )

    def _point(self, along: float, across: float) -> tuple[float, float]:
        """(x, y) of a point by its place along and across the flow."""
        return (across, along) if self.upright else (along, across)

    def _column_places(self, middle: Mapping[str, float]) -> tuple[list[float], list[float]]:
        """First and last place of every column; steep links get more room to bend."""
        left, right = [], []
        start = _MARGIN
        for index, column in enumerate(self.columns):
            left.append(start)
            right.append(start + max((self._along(key) for key in column), default=0.0))
            drops = [
                abs(middle[a] - middle[b]) for a, b in self.links if self.column_of[a] == index
            ]
            start = right[-1] + min(54.0, 22.0 + 0.2 * max(drops, default=0.0))
        return left, right

    def _line(
        self,
        source: str,
        target: str,
        middle: Mapping[str, float],
        left: Sequence[float],
        right: Sequence[float],
    ) -> Markup:
        """A link: out of its box, in a bend to the next column, and into or past its box."""
        start_box, end_box = self.boxes[source], self.boxes[target]
        a, b = self.column_of[source], self.column_of[target]
        # Boxes stand in the middle of their column and may be narrower than it.
        begin, end = right[a], right[b]
        if start_box.kind != "line":
            begin = (left[a] + right[a] + self._along(source)) / 2
        if end_box.kind != "line":
            end = (left[b] + right[b] - self._along(target)) / 2
        arrow = end_box.kind in ("node", "output")
        bend = (right[a] + left[b] - _ARROW) / 2
        path = [
            (begin, middle[source]),
            (right[a], middle[source]),
            (bend, middle[source]),
            (bend, middle[target]),
            (left[b] - _ARROW, middle[target]),
            (end - _ARROW if arrow else end, middle[target]),
        ]
        numbers = [number for point in path for number in self._point(*point)]
        of_operation = start_box.kind == "operation"
        colour = f' style="--c:var(--s{start_box.slot})"' if of_operation else ""
        dashes = ' stroke-dasharray="3 4"' if start_box.text == "none" else ""
        drawing = Markup(
            '<path class="flow{}"{}{} d="M{:.1f} {:.1f}L{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} '
            '{:.1f} {:.1f}L{:.1f} {:.1f}"/>'
        ).format(
            " concat" if (source, target) in self.concat_links else "",
            *(Markup(colour), Markup(dashes), *numbers),
        )
        if arrow:
            half = _ARROW / 2 + 0.5
            tip = [(end, 0.0), (end - _ARROW - 1, -half), (end - _ARROW - 1, half)]
            corners = [self._point(along, middle[target] + across) for along, across in tip]
            drawing += Markup(
                '<path class="arrow"{} d="M{:.1f} {:.1f}L{:.1f} {:.1f}L{:.1f} {:.1f}z"/>'
            ).format(Markup(colour), *(number for corner in corners for number in corner))
        return drawing


def _box(box: _Box, x: float, y: float) -> Markup:
    """A box with its text, the middle at (x, y)."""
    radius = 5 if box.kind == "operation" else box.height / 2
    shape = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{:.0f}"/>')
    content = shape.format(x - box.width / 2, y - box.height / 2, box.width, box.height, radius)
    if box.kind == "operation":
        text = Markup(
            '<text x="{:.1f}" y="{:.1f}" textLength="{:.1f}" lengthAdjust="spacingAndGlyphs">'
            "{}</text>"
        ).format(x, y + 4, len(box.text) * _CHARACTER, box.text)
    else:
        base, subscript = split_subscript(box.text)
        small = (
            Markup('<tspan class="sub" dy="4">{}</tspan>').format(subscript) if subscript else ""
        )
        text = Markup('<text x="{:.1f}" y="{:.1f}">{}{}</text>').format(x, y + 4.5, base, small)
    return Markup('<g class="{}" style="--c:var(--s{})">{}{}</g>').format(
        box.kind, box.slot, content, text
    )
