"""The Pareto figure and the picture of bits per layer, as Matplotlib figures without global state."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from reports.comparison import Comparison
from reports.display import count, listing
from reports.marks import Mark, dodge, enough, marker, marks_of, plain
from reports.statistics import mean_interval
from reports.summary import ENOUGH_SEEDS, Summary

START: dict[str, Any] = {"color": "#8a8a8a", "linewidth": 1.2, "linestyle": (0, (5, 2))}
CONTROL: dict[str, Any] = {"color": "#333333", "linewidth": 1.2, "linestyle": (0, (6, 1.5, 1, 1.5))}

LOG_FROM = 4.0
"""Dearest over cheapest point from which the BOPs axis is logarithmic."""

PANEL_POINTS = 190.0
"""Length of a panel's x-axis in points, at the least."""

COLUMN_WIDTH, TEXT_WIDTH = 3.4, 7.0
"""Inches: one column and the whole width of a two-column paper."""

CHARACTERS = 20
"""Of a caption, that fit on an inch."""

STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "pdf.fonttype": 42,
}


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
    if several := sorted({s.accuracy.n for s in drawn if s.accuracy and s.accuracy.n > 1}):
        numbers = listing([str(number) for number in several])
        parts.append(f"Solid bars: 95 % t-interval of the mean over seeds (n = {numbers}).")
    if images := sorted({s.test_images or 0 for s in drawn if s.accuracy and s.accuracy.n == 1}):
        numbers = listing([str(number) for number in images])
        parts.append(f"Dotted bars: one seed, one standard error of sampling {numbers} test images; no ranking.")
    if sum(enough(summary) for summary in drawn) > 1:
        parts.append(
            f"Ringed: no row of {ENOUGH_SEEDS} seeds or more has a higher mean at as few BOPs, or as high at fewer."
        )
    if absent := sum(not summary.accuracy for summary in summaries):
        parts.append(f"Not drawn: {count(absent, 'cell')} without a result.")
    return parts


def _panel(axes: Axes, comparison: Comparison, summaries: Sequence[Summary], model: str) -> None:
    axes.set_title(plain(model), pad=19, parse_math=False)
    axes.set_xlabel("GBOPs per image")
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
    _draw_front(axes, marks)
    places = [PANEL_POINTS * share for share in _along(axes, [mark.bops / 1e9 for mark in marks])]
    for mark, shift in zip(marks, dodge(places), strict=True):
        _draw(axes, mark, shift, comparison.rows.index(mark.row))
    _limit(axes, [*heights, *(100 * end for mark in marks for end in (mark.bar.low, mark.bar.high))])


def _scale(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if high / low >= LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.35, high * 1.35)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        room = max(0.14 * (high - low), 0.06 * high)
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ceilings(axes: Axes, summaries: Sequence[Summary]) -> None:
    """A hairline where each ceiling lies, named at its head."""
    names: dict[float, list[str]] = {}
    for summary in summaries:
        if bops := summary.cell.outcomes[0].trial.spec.ceiling_bops:
            named = names.setdefault(bops / 1e9, [])
            if summary.cell.ceiling not in named:
                named.append(summary.cell.ceiling)
    ends = [-1.0, -1.0]  # where the labels of the lower and of the upper line end, in shares of the axis
    for gbops, share in sorted(zip(names, _along(axes, list(names)), strict=True)):
        if not 0 <= share <= 1:  # far above what any row costs: its name would take the panel's room
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


def _draw_front(axes: Axes, marks: Sequence[Mark]) -> None:
    kept = sorted((mark.bops / 1e9, 100 * mark.accuracy) for mark in marks if mark.on_front)
    if kept:
        xs, ys = zip(*kept, strict=True)
        axes.step(xs, ys, where="post", color="#c4c4c4", linewidth=1.0, zorder=1.5)


def _along(axes: Axes, values: Sequence[float]) -> list[float]:
    """Where values lie on the x-axis, as shares of its length."""
    scale = math.log if axes.get_xscale() == "log" else float
    low, high = (scale(limit) for limit in axes.get_xlim())
    return [(scale(value) - low) / (high - low) for value in values]


def _draw(axes: Axes, mark: Mark, shift: float, row: int) -> None:
    moved = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    look, solid = marker(row), mark.seeds > 1
    x, y, ceiling = mark.bops / 1e9, 100 * mark.accuracy, mark.ceiling_bops / 1e9
    bar: dict[str, Any] = {"color": look["color"], "linewidth": 1.1, "linestyle": "-" if solid else (0, (1, 1.2))}
    ends = [100 * mark.bar.low, 100 * mark.bar.high]
    axes.plot([x, x], ends, marker="_" if solid else "", markersize=4, transform=moved, **bar)
    if x < 0.97 * ceiling:  # a thread to the ceiling that the row leaves unused
        axes.plot([x, ceiling], [y, y], color=look["color"], linewidth=0.6, linestyle=":", zorder=1)
    edge = {"markeredgecolor": "black", "markeredgewidth": 1.3} if mark.on_front else {}
    axes.plot([x], [y], transform=moved, linestyle="", **{**look, **edge})


def _limit(axes: Axes, heights: Sequence[float]) -> None:
    low, high = min(heights), max(heights)
    room = max(0.06 * (high - low), 0.2)
    axes.set_ylim(max(low - room, -2), min(high + room, 102))


def _quantized_rows(comparison: Comparison) -> list[str]:
    return [row for row in comparison.rows if any(c.row == row and not c.is_float for c in comparison.cells)]


def _legend_height(comparison: Comparison, columns: int) -> float:
    """Inches that the legend needs: two entries per column of panels, 0.155 inch a line."""
    return 0.155 * math.ceil((len(_quantized_rows(comparison)) + 2) / (2 * columns))


def _legend(figure: Figure, comparison: Comparison, columns: int, top: float) -> None:
    quantized = _quantized_rows(comparison)
    handles = [Line2D([], [], linestyle="", **marker(comparison.rows.index(row))) for row in quantized]
    handles += [Line2D([], [], **START), Line2D([], [], **CONTROL)]
    texts = [*quantized, "float start (pretrained)", "float control (fine-tuned)"]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, top), "ncols": 2 * columns}
    legend: Legend = figure.legend(handles, [str(i) for i in range(len(handles))], frameon=False, fontsize=7.5, **place)
    legend.set_in_layout(False)
    for drawn, text in zip(legend.get_texts(), texts, strict=True):  # labels that begin with "_" would be left out
        drawn.set_text(plain(text))
        drawn.set_parse_math(False)


def save(figure: Figure, file: BinaryIO, form: str, dpi: int = 180) -> None:
    """Write as `png` or `pdf`, without dates or versions: the same report gives the same bytes."""
    metadata: dict[str, Any] = (
        {"CreationDate": None, "Creator": None, "Producer": None} if form == "pdf" else {"Software": None}
    )
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # names in scripts the font lacks
        if figure.get_layout_engine() is not None:  # the layout costs most of the time: once for every file
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(file, format=form, dpi=dpi, metadata=metadata)
