"""Plots of a search over its epochs, as inline SVG that follows the page's colours.

matplotlib draws with stand-in colours, which are then replaced by the CSS variables of
templates/style.css (see :mod:`da2s_fast.report.style`).
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from da2s_fast.report.style import SLOTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _FILL = "#000001", "#000002", "#000003", "#000004"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line", _FILL: "--bad"}
_VARIABLES |= {f"#0000{16 + slot:02x}": f"--s{slot}" for slot in range(SLOTS)}

_SETTINGS: Any = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "svg.hashsalt": "da2s_fast",  # the same plot gives the same file
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """One line of a plot: a name for the legend, values over the epochs, and how it looks."""

    name: str
    values: np.ndarray
    slot: int
    dashed: bool = False


def plot_lines(
    epochs: Sequence[int],
    lines: Sequence[Line],
    *,
    label: str,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
    between: tuple[int, int] | None = None,
) -> Markup:
    """Lines over the epochs.

    Args:
        epochs: the epochs, from 1.
        lines: values of shape (epochs,), NaN where there is none.
        label: what the plot shows, for readers who do not see it.
        percent: fractions are written as percentages.
        limits: of the vertical axis; fitted to the values if not given.
        between: indices of two lines; the area between them is shaded.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415 - slow to import

    with _axes(360, 210, label) as (axes, result):
        _draw(axes, epochs, lines, dots=len(epochs) < 16)
        if between is not None:
            upper, lower = (lines[i].values for i in between)
            axes.fill_between(epochs, upper, lower, color=_FILL, alpha=0.13, linewidth=0)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.figure.subplots_adjust(left=0.13, right=0.98, bottom=0.18, top=0.97)
    return result[0]


def plot_small(
    epochs: Sequence[int], lines: Sequence[Line], *, label: str, top: float = 1.0
) -> Markup:
    """A small plot of lines between 0 and ``top``, one of many side by side."""
    with _axes(170, 104, label) as (axes, result):
        _draw(axes, epochs, lines, dots=len(epochs) == 1)
        axes.set_ylim(-0.03 * top, 1.03 * top)
        axes.set_yticks([0, top / 2, top], [f"{v:g}" for v in (0, top / 2, top)])
        axes.set_xticks(sorted({epochs[0], epochs[-1]}))
        axes.figure.subplots_adjust(left=0.14, right=0.96, bottom=0.19, top=0.96)
    return result[0]


def _draw(axes: Axes, epochs: Sequence[int], lines: Sequence[Line], dots: bool) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - slow to import

    for line in lines:
        axes.plot(
            epochs,
            line.values,
            color=f"#0000{16 + line.slot % SLOTS:02x}",
            linestyle=(0, (2.5, 2)) if line.dashed else "-",
            marker="o" if dots else None,
            markersize=3.5,
            clip_on=not dots,
        )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    else:
        axes.set_xlim(epochs[0], epochs[-1])
        axes.margins(x=0.02)


@contextmanager
def _axes(width: float, height: float, label: str) -> Iterator[tuple[Axes, list[Markup]]]:
    """Axes of a figure in SVG user units; the list holds the drawing after the block."""
    from matplotlib import rc_context  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    result: list[Markup] = []
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_subplot()
        yield axes, result
        text = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=no_metadata)
    result.append(_inline(text.getvalue(), width, height, label))


def _inline(svg: str, width: float, height: float, label: str) -> Markup:
    """The drawing for use inside a page: its colours, no document head, ids of its own."""
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # names of parts, referred to by nobody
    body = re.sub(r"font-family: [^;\"]*; ?", "", body)
    prefix = f"p{zlib.crc32((label + body).encode()):08x}-"
    body = body.replace(' id="', f' id="{prefix}')
    body = body.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    body = re.sub("|".join(_VARIABLES), lambda m: f"var({_VARIABLES[m.group()]})", body)
    head = Markup(
        '<svg class="plot" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {:g} {:g}">'
    ).format(label, width, height)
    return head + Markup(body)
