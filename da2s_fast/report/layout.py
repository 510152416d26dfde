"""A layered layout of small directed graphs, from first column to last.

The method of Sugiyama, Tagawa and Toda (1981): items stand in columns, links run between
neighbouring columns only (longer ones are split by the caller into items without a label), the
order inside the columns is chosen for few crossings, and the places are a least-squares fit that
keeps a distance between neighbours. Items of a column therefore never overlap, and links never run
through an item.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import pairwise

import numpy as np

Columns = list[list[str]]
Link = tuple[str, str]

_STRAIGHT = 8.0  # how much harder a link pulls between two items it only passes


def place(
    columns: Sequence[Sequence[str]],
    links: Sequence[Link],
    breadth: Mapping[str, float],
    distance: float,
    lines: Container[str] = (),
) -> dict[str, float]:
    """Place the items of every column across the direction of the links.

    Args:
        columns: items by column; every link joins an item to one of the next column.
        links: pairs (from, to).
        breadth: how much room each item takes.
        distance: room between neighbours of a column.
        lines: items that are only passed by a link, which is kept straight there.

    Returns:
        The middle of each item, the outermost edge of the graph at 0.
    """
    neighbours = _neighbours(columns, links)
    ordered = _order([list(column) for column in columns], neighbours)
    middle = _fit(ordered, neighbours, breadth, distance, lines)
    start = min(middle[item] - breadth[item] / 2 for item in middle)
    return {item: value - start for item, value in middle.items()}


_Neighbours = dict[str, tuple[list[str], list[str]]]


def _neighbours(columns: Sequence[Sequence[str]], links: Sequence[Link]) -> _Neighbours:
    result: _Neighbours = {item: ([], []) for column in columns for item in column}
    for source, target in links:
        result[source][1].append(target)
        result[target][0].append(source)
    return result


def _order(columns: Columns, neighbours: _Neighbours) -> Columns:
    """Barycentre sweeps in both directions, then swaps of neighbours; the best order wins."""
    best, fewest = [list(c) for c in columns], _crossings(columns, neighbours)
    for sweep in range(12):
        side = sweep % 2
        indices = range(len(columns)) if side == 0 else reversed(range(len(columns)))
        for index in indices:
            other = index - 1 if side == 0 else index + 1
            if not 0 <= other < len(columns):
                continue
            columns[index] = _by_barycentre(columns[index], columns[other], neighbours, side)
        _swap(columns, neighbours)
        crossings = _crossings(columns, neighbours)
        if crossings < fewest:
            best, fewest = [list(c) for c in columns], crossings
    return best


def _by_barycentre(
    column: list[str], fixed: list[str], neighbours: _Neighbours, side: int
) -> list[str]:
    """The column by the mean rank of each item's neighbours in the fixed column beside it."""
    rank = {item: i for i, item in enumerate(fixed)}
    keys = {}
    for i, item in enumerate(column):
        near = [rank[n] for n in neighbours[item][side]]
        keys[item] = sum(near) / len(near) if near else i
    return sorted(column, key=keys.__getitem__)


def _swap(columns: Columns, neighbours: _Neighbours) -> None:
    fewest = _crossings(columns, neighbours)
    for column in columns:
        for i in range(len(column) - 1):
            column[i], column[i + 1] = column[i + 1], column[i]
            crossings = _crossings(columns, neighbours)
            if crossings < fewest:
                fewest = crossings
            else:
                column[i], column[i + 1] = column[i + 1], column[i]


def _crossings(columns: Columns, neighbours: _Neighbours) -> int:
    total = 0
    for left, right in pairwise(columns):
        rank = {item: i for i, item in enumerate(right)}
        ends = [rank[n] for item in left for n in sorted(neighbours[item][1], key=rank.__getitem__)]
        total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
    return total


def _fit(
    columns: Columns,
    neighbours: _Neighbours,
    breadth: Mapping[str, float],
    distance: float,
    lines: Container[str],
) -> dict[str, float]:
    middle: dict[str, float] = {}
    for column in columns:
        offsets = _offsets(column, breadth, distance)
        middle.update(zip(column, offsets - offsets.mean(), strict=True))
    for sweep in range(60):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted, weights = [], []
            for item in column:
                near = [n for side in neighbours[item] for n in side]
                pulls = [_STRAIGHT if item in lines and n in lines else 1.0 for n in near]
                places = [middle[n] for n in near]
                wanted.append(np.average(places, weights=pulls) if near else middle[item])
                weights.append(sum(pulls) or 1.0)
            offsets = _offsets(column, breadth, distance)
            fitted = _increasing(np.array(wanted) - offsets, weights) + offsets
            middle.update(zip(column, fitted.tolist(), strict=True))
    return middle


def _offsets(column: Sequence[str], breadth: Mapping[str, float], distance: float) -> np.ndarray:
    """Middles of the items when they stand as close as allowed."""
    sizes = np.array([breadth[item] for item in column])
    steps = (sizes[:-1] + sizes[1:]) / 2 + distance
    return np.concatenate([[0.0], np.cumsum(steps)])


def _increasing(values: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Nearest non-decreasing sequence (weighted least squares, pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights, strict=True):
        mean, mass, size = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            before, heavy, count = blocks.pop()
            mean = (mean * mass + before * heavy) / (mass + heavy)
            mass, size = mass + heavy, size + count
        blocks.append((mean, mass, size))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])
