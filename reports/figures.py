"""The Pareto figure and the picture of bits per layer, as Matplotlib figures without global state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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
from reports.pareto import Point, front
from reports.statistics import Interval, mean_interval, wilson_interval
from reports.summary import ENOUGH_SEEDS, Summary

# Okabe and Ito's colours that hold on white, and nine shapes: coprime, so 63 rows differ without colour vision too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
START: dict[str, Any] = {"color": "#8a8a8a", "linewidth": 1.2, "linestyle": (0, (5, 2))}
CONTROL: dict[str, Any] = {"color": "#333333", "linewidth": 1.2, "linestyle": (0, (6, 1.5, 1, 1.5))}

LOG_FROM = 4.0
"""Dearest over cheapest point from which the BOPs axis is logarithmic."""

DODGE = 6.5
"""Points of paper between marks that would else cover each other."""

STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Mark:
    """One cell on the figure, in GBOPs and per cent; `seeds` counts what its bar rests on."""

    row: str
    gbops: float
    accuracy: float
    bar: Interval
    seeds: int
    ceiling: float


def pareto_figure(comparison: Comparison, summaries: Sequence[Summary]) -> Figure:
    """BOPs against test accuracy, a panel per network, with both float lines."""
    models = comparison.models or ("no trials",)
    columns = min(2, len(models))
    lines = math.ceil(len(models) / columns)
    height = 3.3 * lines
    below = _legend_height(comparison, columns) + 0.14 * len(caption_parts(summaries)) + 0.16
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns if columns > 1 else 6.4, height + below), layout="constrained")
        figure.get_layout_engine().set(rect=(0, below / (height + below), 1, height / (height + below)))  # type: ignore[union-attr,call-arg]
        for index, model in enumerate(models):
            panel = figure.add_subplot(lines, columns, index + 1)
            _panel(panel, comparison, [summary for summary in summaries if summary.cell.model == model], model)
        _legend(figure, comparison, columns, below / (height + below))
        text = figure.text(0.5, 0.04 / (height + below), "\n".join(caption_parts(summaries)))
        text.set(ha="center", va="bottom", fontsize=7, color="#555555", in_layout=False)
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
    if any(_enough(summary) for summary in drawn):
        parts.append(f"Ringed: no row of {ENOUGH_SEEDS} or more seeds has a higher mean for as few BOPs or fewer.")
    if absent := sum(not summary.accuracy for summary in summaries):
        parts.append(f"Not drawn: {count(absent, 'cell')} without a result.")
    return parts


def _enough(summary: Summary) -> bool:
    return summary.cell.complete and summary.accuracy is not None and summary.accuracy.n >= ENOUGH_SEEDS


def marks_of(summaries: Sequence[Summary]) -> list[Mark]:
    marks = []
    for summary in summaries:
        if summary.accuracy is None or summary.bops is None or summary.test_images is None:
            continue
        value = summary.accuracy.value
        bar = summary.accuracy.interval or wilson_interval(value, summary.test_images)
        scaled = Interval(100 * bar.low, 100 * bar.high)
        ceiling = (summary.cell.outcomes[0].trial.spec.ceiling_bops or 0) / 1e9
        marks.append(Mark(summary.cell.row, summary.bops / 1e9, 100 * value, scaled, summary.accuracy.n, ceiling))
    return marks


def _panel(axes: Axes, comparison: Comparison, summaries: Sequence[Summary], model: str) -> None:
    axes.set_title(plain(model), pad=15, parse_math=False)
    axes.set_xlabel("GBOPs per image")
    axes.set_ylabel("Test accuracy, %")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    marks = marks_of(summaries)
    heights = _float_lines(axes, comparison, model)
    if not marks:
        axes.text(0.5, 0.5, "no result yet", transform=axes.transAxes, ha="center", va="center", color="#8a8a8a")
        axes.set_xticks([])
        return
    _scale(axes, [mark.gbops for mark in marks])
    _ceilings(axes, summaries)
    on_front = _draw_front(axes, [summary for summary in summaries if _enough(summary)])
    for mark, shift in zip(marks, dodge([mark.gbops for mark in marks]), strict=True):
        _draw(axes, mark, shift, comparison.rows.index(mark.row), (mark.row, mark.gbops) in on_front)
    _limit(axes, [*heights, *(height for mark in marks for height in (mark.bar.low, mark.bar.high))])


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
    for gbops, ceilings in names.items():
        axes.axvline(gbops, color="#c9c9c9", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
        label = " = ".join(name.removeprefix("uniform:") for name in ceilings)
        place = axes.get_xaxis_transform()
        size: dict[str, Any] = {"fontsize": 7, "color": "#6f6f6f", "ha": "center", "va": "bottom"}
        axes.text(gbops, 1.005, plain(label, 18), transform=place, parse_math=False, **size)


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


def _draw_front(axes: Axes, summaries: Sequence[Summary]) -> set[tuple[str, float]]:
    """Draws the front of the means as thin steps; returns whose marks lie on it."""
    points = [Point(s.bops, s.accuracy.value, s.cell.row) for s in summaries if s.bops and s.accuracy]
    kept = front(points)
    if len(points) < 2:
        return set()
    xs, ys = [point.bops / 1e9 for point in kept], [100 * point.accuracy for point in kept]
    axes.step(xs, ys, where="post", color="#c4c4c4", linewidth=1.0, zorder=1.5)
    return {(point.name, point.bops / 1e9) for point in kept}


def dodge(values: Sequence[float]) -> list[float]:
    """Sideways shifts, in points of paper, for marks whose BOPs are within 3 % of their neighbour's.

    >>> dodge([1.0, 5.0, 1.01])
    [-3.25, 0.0, 3.25]
    """
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    clusters: list[list[int]] = []
    for index in order:
        if clusters and values[index] <= 1.03 * values[clusters[-1][-1]]:
            clusters[-1].append(index)
        else:
            clusters.append([index])
    shifts = [0.0] * len(values)
    for cluster in clusters:
        for place, index in enumerate(sorted(cluster)):
            shifts[index] = DODGE * (place - (len(cluster) - 1) / 2)
    return shifts


def _draw(axes: Axes, mark: Mark, shift: float, row: int, ringed: bool) -> None:
    figure = axes.figure
    moved = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    colour = COLOURS[row % len(COLOURS)]
    solid = mark.seeds > 1
    bar: dict[str, Any] = {
        "color": colour,
        "linewidth": 1.1,
        "linestyle": "-" if solid else (0, (1, 1.2)),
        "transform": moved,
    }
    axes.plot([mark.gbops] * 2, [mark.bar.low, mark.bar.high], marker="_" if solid else "", markersize=4, **bar)
    if mark.gbops < 0.97 * mark.ceiling:  # a thread to the ceiling that the row leaves unused
        axes.plot([mark.gbops, mark.ceiling], [mark.accuracy] * 2, color=colour, linewidth=0.6, linestyle=":", zorder=1)
    edge = {"markeredgecolor": "black", "markeredgewidth": 1.3} if ringed else {}
    axes.plot([mark.gbops], [mark.accuracy], transform=moved, linestyle="", **{**marker(row), **edge})


def marker(row: int) -> dict[str, Any]:
    """Colour and shape of a row, by its place in the suite."""
    face = COLOURS[row % len(COLOURS)]
    shape = MARKERS[row % len(MARKERS)]
    size = 7.5 if shape in "PX" else 6.5
    return {"marker": shape, "color": face, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.6}


def _limit(axes: Axes, heights: Sequence[float]) -> None:
    low, high = min(heights), max(heights)
    room = max(0.06 * (high - low), 0.2)
    axes.set_ylim(max(low - room, -2), min(high + room, 102))


def _quantized_rows(comparison: Comparison) -> list[str]:
    return [row for row in comparison.rows if any(c.row == row and not c.is_float for c in comparison.cells)]


def _legend_height(comparison: Comparison, columns: int) -> float:
    """Inches that the legend needs: its entries in columns, 0.165 inch a line."""
    return 0.165 * math.ceil((len(_quantized_rows(comparison)) + 2) / (columns + 2))


def _legend(figure: Figure, comparison: Comparison, columns: int, top: float) -> None:
    quantized = _quantized_rows(comparison)
    handles = [Line2D([], [], linestyle="", **marker(comparison.rows.index(row))) for row in quantized]
    handles += [Line2D([], [], **START), Line2D([], [], **CONTROL)]
    texts = [*quantized, "float start (pretrained)", "float control (fine-tuned)"]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, top), "ncols": columns + 2}
    legend: Legend = figure.legend(handles, [str(i) for i in range(len(handles))], frameon=False, fontsize=8, **place)
    legend.set_in_layout(False)
    for drawn, text in zip(legend.get_texts(), texts, strict=True):  # labels that begin with "_" would be left out
        drawn.set_text(plain(text))
        drawn.set_parse_math(False)


def plain(name: str, longest: int = 44) -> str:
    """A name on one line, printable, not too long for a figure."""
    flat = "".join(character if character.isprintable() else " " for character in name)
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


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
