"""What the Pareto figure shows, before it is drawn: marks, their bars, who is on the front, where marks stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reports.findings.summary import ENOUGH_SEEDS, Summary
from reports.numbers.pareto import COST_TOLERANCE, Point, front
from reports.numbers.statistics import Interval, wilson_interval

# Okabe and Ito's colours that hold on white, and nine shapes: coprime, so 63 rows differ without colour vision too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.2)), (0, (1.5, 1)), (0, (5, 1.2, 1.2, 1.2)), (0, (8, 1.5, 2, 1.5, 2, 1.5)))
MARKS_ON_A_LINE = 5
DODGE = 4.5
"""Least distance, in points, between neighbouring marks that would otherwise cover each other."""


@dataclass(frozen=True)
class Mark:
    """One cell on the figure. bar: over seeds, or of sampling the test images where there is one seed.

    bops and accuracy are means over the trials that are ok, accuracy and bar in 0..1. on_front: non-dominated among
    rows with enough seeds. lacking: `1 of 5` where not every trial is ok; bar: None where trials failed or are over
    the ceiling, as those that survived are not a fair sample of the row.
    """

    row: str
    bops: float
    accuracy: float
    bar: Interval | None
    seeds: int
    ceiling_bops: float
    on_front: bool = False
    lacking: str = ""


def marks_of(summaries: Sequence[Summary]) -> list[Mark]:
    """The marks of one network; cells without a result and the float control have none."""
    kept = _front_of(summaries)
    marks = []
    for summary in summaries:
        if summary.accuracy is None or summary.bops is None or summary.test_images is None:
            continue
        value, cell = summary.accuracy.value, summary.cell
        bar = summary.accuracy.interval or wilson_interval(value, summary.test_images)
        marks.append(
            Mark(
                row=cell.row,
                bops=summary.bops,
                accuracy=value,
                bar=None if cell.worst else bar,
                seeds=summary.accuracy.n,
                ceiling_bops=cell.outcomes[0].trial.spec.ceiling_bops or 0,
                on_front=enough(summary) and _point(summary) in kept,
                lacking="" if cell.complete else summary.counted,
            )
        )
    return marks


def _front_of(summaries: Sequence[Summary]) -> set[Point]:
    """The front of the means of rows with enough seeds; one such cell alone is no front."""
    points = [_point(summary) for summary in summaries if summary.bops is not None and enough(summary)]
    return set(front(points, COST_TOLERANCE)) if len(points) > 1 else set()


def _point(summary: Summary) -> Point:
    assert summary.accuracy is not None
    assert summary.bops is not None
    return Point(summary.bops, summary.accuracy.value, summary.cell.row)


def enough(summary: Summary) -> bool:
    """Whether the cell may be compared with others: all trials ok, on enough seeds."""
    return summary.cell.complete and summary.accuracy is not None and summary.accuracy.n >= ENOUGH_SEEDS


def dodge(places: Sequence[float]) -> list[float]:
    """Where marks are drawn so that none covers another: DODGE apart, in points of paper along the axis from its start.

    Marks move only to the left, or a ceiling would seem exceeded, and never past a mark that costs less. Where the axis
    has no room, marks stand closer.

    >>> dodge([100.0, 200.0, 101.0])
    [96.5, 200.0, 101.0]
    """
    order = sorted(range(len(places)), key=lambda index: (places[index], index))
    spacing = min([DODGE, *(places[index] / rank for rank, index in enumerate(order) if rank)])
    drawn = list(places)
    for left, right in reversed(list(pairwise(order))):
        drawn[left] = min(places[left], drawn[right] - spacing)
    return drawn


def marker(row: int) -> dict[str, Any]:
    """Colour and shape of a row, by its place in the suite."""
    face = COLOURS[row % len(COLOURS)]
    shape = MARKERS[row % len(MARKERS)]
    size = 7.5 if shape in "PX" else 6.5
    return {"marker": shape, "color": face, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.6}


def line(row: int, points: int) -> dict[str, Any]:
    """The style of a row's line through `points` points: a marker on a few of them, not those of the next row."""
    every = max(1, points // MARKS_ON_A_LINE)
    look = marker(row)
    look |= {"markersize": 0.75 * look["markersize"], "markeredgewidth": 0.4}
    look["markevery"] = (row * every // 3 % every, every)
    return {**look, "linestyle": DASHES[row % len(DASHES)], "linewidth": 1.2}


def label_of(row: str) -> str:
    """A row's name for a legend; matplotlib leaves out labels that begin with an underscore, so a space goes first."""
    return " " * row.startswith("_") + plain(row)


def plain(name: str, longest: int = 44) -> str:
    """A name on one line, printable, not too long for a figure."""
    flat = "".join(character if character.isprintable() else " " for character in name)
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
