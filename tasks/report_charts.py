"""Charts of the report as inline SVG whose colours are CSS variables, so that one picture suits light and dark pages.

Matplotlib knows no CSS: charts are drawn in marker colours which are then replaced by `var(--...)`. Text stays text
(selectable, in the page's font) and every id gets the chart's name, because ids of inlined pictures share one page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#010203", "#010204"
SERIES = ("#0102a0", "#0102a1", "#0102a2", "#0102a3", "#0102a4", "#0102a5")
VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}
POLICY_COLOURS = {"sft": SERIES[0], "ppo": SERIES[1], "dpo": SERIES[2]}
BEST_OF = "best-of-"

SIZE = (4.3, 2.9)
"""Inches at 100 px: the width of one column, so that the letters keep their size on a narrow screen."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: a name and its points; a point without a value was left out by whoever made the line."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Bar:
    """One win rate with its 95% interval, all in [0, 1]."""

    policy: str
    measure: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """One policy, or one n of best-of-n, on the frontier."""

    policy: str
    kl: float
    value: float


def line_chart(name: str, title: str, lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Draw curves over the steps of a stage.

    Args:
        name: letters, digits and dashes; makes the ids of this picture unique in the page.
        title: what is shown; also read aloud by screen readers.
        lines: at least one curve, at most one per series colour.
        x_label: unit of the horizontal axis.
        y_label: unit of the vertical axis.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: there is no curve, or there are more curves than colours.
    """
    if not 1 <= len(lines) <= len(SERIES):
        raise ValueError(f"chart {name} got {len(lines)} lines, wanted 1 to {len(SERIES)}")
    figure, axes = _canvas(x_label, y_label)
    for line, colour in zip(lines, SERIES, strict=False):
        marker = "o" if len(line.xs) < 3 else None
        axes.plot(line.xs, line.ys, color=colour, linewidth=1.6, label=line.name, marker=marker, markersize=4)
    if len(lines) > 1:
        _legend(axes)
    return _svg(figure, name, title)


def frontier_chart(name: str, title: str, points: Sequence[Point], *, y_label: str) -> str:
    """Draw what each policy gained against the divergence it spent, with best-of-n as the curve to compare with.

    Args:
        name: as in `line_chart`.
        title: as in `line_chart`.
        points: policies, and rows whose policy begins with `best-of-`.
        y_label: unit of the vertical axis.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError(f"chart {name} got no points")
    figure, axes = _canvas("KL from SFT, nats per response", y_label)
    curve = sorted((p for p in points if p.policy.startswith(BEST_OF)), key=lambda p: p.kl)
    if curve:
        xs, ys = [p.kl for p in curve], [p.value for p in curve]
        axes.plot(xs, ys, color=SERIES[3], linewidth=1.4, marker="o", markersize=3.5, label="best of n", linestyle="--")
        for point in dict.fromkeys((curve[0], curve[-1])):
            _note(axes, point, f"n={point.policy.removeprefix(BEST_OF)}", below=True)
    others = [p for p in points if not p.policy.startswith(BEST_OF)]
    for index, point in enumerate(others):
        colour = POLICY_COLOURS.get(point.policy, SERIES[index % len(SERIES)])
        axes.plot([point.kl], [point.value], color=colour, marker="D", markersize=7, linestyle="none")
        _note(axes, point, point.policy.replace("_", " "), below=False)
    axes.margins(0.14, 0.16)
    if curve:
        _legend(axes)
    return _svg(figure, name, title)


def win_rate_chart(name: str, title: str, bars: Sequence[Bar]) -> str:
    """Draw win rates against SFT as horizontal bars with their intervals; the line at one half means no difference.

    Args:
        name: as in `line_chart`.
        title: as in `line_chart`.
        bars: drawn from top to bottom in the order given.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: there is no bar.
    """
    if not bars:
        raise ValueError(f"chart {name} got no bars")
    figure, axes = _canvas("share of prompts won, ties half", "", height=0.9 + 0.42 * len(bars))
    for row, bar in enumerate(bars):
        colour = POLICY_COLOURS.get(bar.policy, SERIES[4])
        axes.barh(row, bar.value, height=0.62, color=colour, alpha=0.85)
        axes.plot([bar.low, bar.high], [row, row], color=INK, linewidth=1.5)
        axes.plot([bar.low, bar.high], [row, row], color=INK, marker="|", markersize=8, linestyle="none")
        axes.text(1.02, row, f"{bar.value:.2f}", va="center", ha="left", color=INK, fontsize=10)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(bars)), [f"{b.policy.replace('_', ' ')}, {b.measure}" for b in bars])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _svg(figure, name, title)


def share_chart(name: str, title: str, shares: Mapping[str, float], *, x_label: str, chance: float | None) -> str:
    """Draw one bar per named share between 0 and 1, such as the accuracy on each kind of minimal pair.

    Args:
        name: as in `line_chart`.
        title: as in `line_chart`.
        shares: values by name, drawn from top to bottom.
        x_label: meaning of the shares.
        chance: where to draw the line that guessing would reach, if anywhere.

    Returns:
        An `<svg>` element.

    Raises:
        ValueError: there is no share.
    """
    if not shares:
        raise ValueError(f"chart {name} got no shares")
    figure, axes = _canvas(x_label, "", height=0.9 + 0.3 * len(shares))
    for row, value in enumerate(shares.values()):
        axes.barh(row, value, height=0.62, color=SERIES[0], alpha=0.85)
        axes.text(1.02, row, f"{value:.2f}", va="center", ha="left", color=INK, fontsize=10)
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(shares)), [key.replace("_", " ") for key in shares])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _svg(figure, name, title)


def _canvas(x_label: str, y_label: str, *, height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """Make a figure of our own: pyplot's global state would leak between pages and threads."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(SIZE[0], height), dpi=100, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(x_label, color=INK, fontsize=10)
    axes.set_ylabel(y_label, color=INK, fontsize=10)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    axes.grid(visible=True, color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, handlelength=1.4, borderaxespad=0.2)


def _note(axes: Axes, point: Point, text: str, *, below: bool) -> None:
    offset = (3, -11) if below else (7, 5)
    axes.annotate(text, (point.kl, point.value), xytext=offset, textcoords="offset points", color=INK, fontsize=9)


def _svg(figure: Figure, name: str, title: str) -> str:
    """Write a figure as an element that can stand in a page."""
    import matplotlib

    buffer = io.StringIO()
    # The salt and the missing date make equal data give equal text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    opening, inner = body.split(">", 1)
    match = re.search(r'viewBox="([^"]+)"', opening)
    if match is None:
        raise ValueError(f"chart {name}: matplotlib wrote an SVG without a viewBox")
    # Matplotlib's style sheet would apply to the whole page; the page has its own rule for charts.
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', inner)
    inner = re.sub(r'xlink:href="#', rf'href="#{name}-', inner)
    inner = re.sub(r"url\(#", f"url(#{name}-", inner)
    inner = re.sub(r"font-family: [^;\"]+;? ?", "", inner)
    for marker, variable in VARIABLES.items():
        inner = inner.replace(marker, variable)
    label = html.escape(title, quote=True)
    return f'<svg class="chart" role="img" aria-label="{label}" viewBox="{match.group(1)}">{inner.strip()}'
