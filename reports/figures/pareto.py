"""The Pareto figure: bit-operations against test accuracy, as a Matplotlib figure without global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from reports.figures.marks import Mark, dodge, enough, marker, marks_of, plain
from reports.figures.style import (
    CHARACTERS,
    COLUMN_WIDTH,
    CONTROL,
    HANDLE,
    START,
    STYLE,
    TEXT_WIDTH,
    legend_columns,
)
from reports.findings.comparison import Comparison
from reports.findings.summary import ENOUGH_SEEDS, Summary
from reports.numbers.display import count, listing
from reports.numbers.pareto import COST_TOLERANCE
from reports.numbers.statistics import Interval, mean_interval

X_LABEL = "GBOPs per image"
MOVED = "(crowded marks moved left; true GBOPs: ticks)"

FLOAT_START, FLOAT_CONTROL = "float start (pretrained)", "float control (fine-tuned)"

LOG_FROM = 4.0
"""Ratio of the largest to the smallest BOPs from which the axis is logarithmic."""

PANEL_POINTS = 190.0
"""Least length of a panel's x-axis, in points."""


def pareto_figure(comparison: Comparison, summaries: Sequence[Summary]) -> Figure:
    """BOPs against test accuracy, a panel per network, with both float lines."""
    models = comparison.models or ("no trials",)
    columns = min(2, len(models))
    lines = math.ceil(len(models) / columns)
    height = 2.7 * lines
    width = TEXT_WIDTH if columns > 1 else COLUMN_WIDTH
    caption = [line for part in caption_parts(summaries) for line in textwrap.wrap(part, round(CHARACTERS * width))]
    below = _legend_height(comparison, columns) + 0.12 * len(caption) + 0.16
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height + below), layout="constrained")
        figure.get_layout_engine().set(rect=(0, below / (height + below), 1, height / (height + below)))  # type: ignore[union-attr,call-arg]
        for index, model in enumerate(models):
            panel = figure.add_subplot(lines, columns, index + 1)
            _panel(panel, comparison, [summary for summary in summaries if summary.cell.model == model], model)
        _legend(figure, comparison, columns, below / (height + below))
        text = figure.text(0.5, 0.04 / (height + below), "\n".join(caption))
        text.set(ha="center", va="bottom", fontsize=6.5, color="#555555", in_layout=False)
    return figure


def caption_parts(summaries: Sequence[Summary]) -> list[str]:
    """What the bars are, what the front is, and what is not drawn."""
    drawn = [summary for summary in summaries if summary.accuracy and not summary.cell.is_float]
    parts = []
    whole = [summary for summary in drawn if not summary.cell.worst]
    if several := sorted({s.accuracy.n for s in whole if s.accuracy and s.accuracy.n > 1}):
        numbers = listing([str(number) for number in several])
        parts.append(f"Solid bars: 95 % t-interval of the mean over seeds (n = {numbers}).")
    if images := sorted({s.test_images or 0 for s in whole if s.accuracy and s.accuracy.n == 1}):
        numbers = listing([str(number) for number in images])
        parts.append(f"Dotted bars: one seed, one standard error of sampling {numbers} test images; no ranking.")
    if sum(enough(summary) for summary in drawn) > 1:
        parts.append(
            f"Ringed: no ringed row has a higher mean at as few BOPs, or as high at fewer, of rows of {ENOUGH_SEEDS} "
            f"seeds or more; BOPs within {100 * COST_TOLERANCE:g} % count as equal."
        )
    if any(not summary.cell.complete for summary in drawn):
        parts.append(
            "Hollow, m of n: only m of n trials are ok, and the mark is their mean alone; never ringed, and no bar "
            "where the others failed or are over the ceiling."
        )
    absent = [summary.cell for summary in summaries if not summary.accuracy]
    if lost := sum(cell.worst == len(cell.outcomes) for cell in absent):
        parts.append(f"Not drawn, and worst: {count(lost, 'cell')} whose every trial failed or is over the ceiling.")
    if without := len(absent) - lost:
        parts.append(f"Not drawn: {count(without, 'cell')} without a result.")
    return parts


def _panel(axes: Axes, comparison: Comparison, summaries: Sequence[Summary], model: str) -> None:
    axes.set_title(plain(model), pad=19, parse_math=False)
    axes.set_xlabel(X_LABEL)
    axes.set_ylabel("Test accuracy, %")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    marks = marks_of(summaries)
    heights = _float_lines(axes, comparison, model)
    if not marks:
        axes.text(0.5, 0.5, "no result yet", transform=axes.transAxes, ha="center", va="center", color="#8a8a8a")
        axes.set_xticks([])
        if heights:
            _limit(axes, heights)
        else:
            axes.set_yticks([])
        return
    _scale(axes, [mark.bops / 1e9 for mark in marks])
    _ceilings(axes, summaries)
    true = [PANEL_POINTS * share for share in _along(axes, [mark.bops / 1e9 for mark in marks])]
    drawn = dodge(true)
    if any(place != other for place, other in zip(true, drawn, strict=True)):
        axes.set_xlabel(f"{X_LABEL}\n{MOVED}")
    xs = _at(axes, [place / PANEL_POINTS for place in drawn])
    _draw_front(axes, xs, marks)
    for x, mark in zip(xs, marks, strict=True):
        _draw(axes, x, mark, comparison.rows.index(mark.row))
    bars = [mark.bar or Interval(mark.accuracy, mark.accuracy) for mark in marks]
    _limit(axes, [*heights, *(100 * end for bar in bars for end in (bar.low, bar.high))])


def _scale(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if high / low >= LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.5, high * 1.35)  # more room on the left, where crowded marks go
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        room = max(0.14 * (high - low), 0.06 * high)
        axes.set_xlim(low - 1.4 * room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ceilings(axes: Axes, summaries: Sequence[Summary]) -> None:
    """A thin vertical line at each ceiling, with its name above it."""
    names: dict[float, list[str]] = {}
    for summary in summaries:
        if bops := summary.cell.outcomes[0].trial.spec.ceiling_bops:
            named = names.setdefault(bops / 1e9, [])
            if summary.cell.ceiling not in named:
                named.append(summary.cell.ceiling)
    ends = [-1.0, -1.0]  # where the labels of the lower and of the upper line end, in shares of the axis
    for gbops, share in sorted(zip(names, _along(axes, list(names)), strict=True)):
        if not 0 <= share <= 1:  # far above what any row costs: outside the panel
            continue
        axes.axvline(gbops, color="#c9c9c9", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
        own = [
            name.removeprefix("uniform:") if name.startswith("uniform:") else f"{gbops:.4g}" for name in names[gbops]
        ]
        label = " = ".join(own)
        half = 0.009 * len(label)
        line = 0 if share - half > ends[0] else 1
        ends[line] = share + half
        size: dict[str, Any] = {"fontsize": 7, "color": "#6f6f6f", "ha": "center", "va": "bottom"}
        place = axes.get_xaxis_transform()
        axes.text(gbops, 1.005 + 0.04 * line, label, transform=place, parse_math=False, **size)


def _float_lines(axes: Axes, comparison: Comparison, model: str) -> list[float]:
    """Draws the float network before and after fine-tuning; returns their heights."""
    control = comparison.float_control(model)
    starts = list(comparison.start_accuracies(model).values())
    ends = list(control.accuracies.values()) if control else []
    heights = []
    for accuracies, look in ((starts, START), (ends, CONTROL)):
        if accuracies:
            heights.append(100 * mean_interval(accuracies).value)
            axes.axhline(heights[-1], zorder=1, **look)
    return heights


def _draw_front(axes: Axes, xs: Sequence[float], marks: Sequence[Mark]) -> None:
    """A staircase through the front's marks where they are drawn, as far as the most expensive mark."""
    kept = sorted((x, 100 * mark.accuracy) for x, mark in zip(xs, marks, strict=True) if mark.on_front)
    if kept:
        kept.append((max(xs), kept[-1][1]))
        axes.step(*zip(*kept, strict=True), where="post", color="#c4c4c4", linewidth=1.0, zorder=1.5)


def _along(axes: Axes, values: Sequence[float]) -> list[float]:
    """Where values lie on the x-axis, as shares of its length."""
    scale = math.log if axes.get_xscale() == "log" else float
    low, high = (scale(limit) for limit in axes.get_xlim())
    return [(scale(value) - low) / (high - low) for value in values]


def _at(axes: Axes, shares: Sequence[float]) -> list[float]:
    """The reverse of `_along`."""
    logarithmic = axes.get_xscale() == "log"
    low, high = (math.log(limit) if logarithmic else limit for limit in axes.get_xlim())
    values = [low + share * (high - low) for share in shares]
    return [math.exp(value) for value in values] if logarithmic else values


def _draw(axes: Axes, x: float, mark: Mark, row: int) -> None:
    """The mark at x, its bar, a dotted line to its ceiling if that is not used up, and a tick at its true BOPs."""
    look, solid, order = marker(row), mark.seeds > 1, 1.8 if mark.lacking else 2
    y, ceiling = 100 * mark.accuracy, mark.ceiling_bops / 1e9
    if mark.bar:
        ends = [100 * mark.bar.low, 100 * mark.bar.high]
        bar: dict[str, Any] = {"color": look["color"], "linewidth": 1.1, "linestyle": "-" if solid else (0, (1, 1.2))}
        axes.plot([x, x], ends, marker="_" if solid else "", markersize=4, zorder=order, **bar)
    if mark.bops / 1e9 < 0.97 * ceiling:
        axes.plot([x, ceiling], [y, y], color=look["color"], linewidth=0.6, linestyle=":", zorder=1)
    if mark.lacking:
        look |= {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 1.0}
        above: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 6}
        halo = [withStroke(linewidth=1.5, foreground="white")]
        axes.annotate(mark.lacking, (x, y), color=look["color"], path_effects=halo, zorder=3, **above)
    if mark.on_front:
        look |= {"markeredgecolor": "black", "markeredgewidth": 1.3}
    axes.plot([x], [y], linestyle="", zorder=order, **look)
    tick: dict[str, Any] = {"marker": "|", "markersize": 5, "markeredgewidth": 0.8, "color": look["color"]}
    axes.plot([mark.bops / 1e9], [0.015], linestyle="", transform=axes.get_xaxis_transform(), **tick)


def _limit(axes: Axes, heights: Sequence[float]) -> None:
    low, high = min(heights), max(heights)
    room = max(0.06 * (high - low), 0.2)
    axes.set_ylim(max(low - room, -2), min(high + room, 102))


def _quantized_rows(comparison: Comparison) -> list[str]:
    return [row for row in comparison.rows if any(c.row == row and not c.is_float for c in comparison.cells)]


def _legend_columns(comparison: Comparison, columns: int) -> int:
    """The legend's columns: two for each column of panels, or as many as fit."""
    labels = [*map(plain, _quantized_rows(comparison)), FLOAT_START, FLOAT_CONTROL]
    return min(2 * columns, legend_columns(labels, TEXT_WIDTH if columns > 1 else COLUMN_WIDTH))


def _legend_height(comparison: Comparison, columns: int) -> float:
    """Height of the legend in inches, 0.155 per line."""
    return 0.155 * math.ceil((len(_quantized_rows(comparison)) + 2) / _legend_columns(comparison, columns))


def _legend(figure: Figure, comparison: Comparison, columns: int, top: float) -> None:
    quantized = _quantized_rows(comparison)
    handles = [Line2D([], [], linestyle="", **marker(comparison.rows.index(row))) for row in quantized]
    handles += [Line2D([], [], **START), Line2D([], [], **CONTROL)]
    texts = [*quantized, FLOAT_START, FLOAT_CONTROL]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, top), "handlelength": HANDLE}
    place["ncols"] = _legend_columns(comparison, columns)
    legend: Legend = figure.legend(handles, [str(i) for i in range(len(handles))], frameon=False, fontsize=7.5, **place)
    legend.set_in_layout(False)
    for drawn, text in zip(legend.get_texts(), texts, strict=True):  # labels that begin with "_" would be left out
        drawn.set_text(plain(text))
        drawn.set_parse_math(False)
