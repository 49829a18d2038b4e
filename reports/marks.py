"""What the Pareto figure shows, before it is drawn: marks, their bars, who is on the front, where marks stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reports.pareto import Point, front
from reports.statistics import Interval, wilson_interval
from reports.summary import ENOUGH_SEEDS, Summary

# Okabe and Ito's colours that hold on white, and nine shapes: coprime, so 63 rows differ without colour vision too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DODGE = 6.5
"""Points of paper between marks that would else cover each other."""


@dataclass(frozen=True)
class Mark:
    """One cell on the figure. bar: over seeds, or of sampling the test images where there is one seed.

    bops and accuracy are means, accuracy and bar in 0..1. on_front: non-dominated among rows with enough seeds.
    """

    row: str
    bops: float
    accuracy: float
    bar: Interval
    seeds: int
    ceiling_bops: float
    on_front: bool = False


def marks_of(summaries: Sequence[Summary]) -> list[Mark]:
    """The marks of one network; cells without a result and the float control have none."""
    kept = _front_of(summaries)
    marks = []
    for summary in summaries:
        if summary.accuracy is None or summary.bops is None or summary.test_images is None:
            continue
        value, cell = summary.accuracy.value, summary.cell
        bar = summary.accuracy.interval or wilson_interval(value, summary.test_images)
        ceiling = cell.outcomes[0].trial.spec.ceiling_bops or 0
        marks.append(Mark(cell.row, summary.bops, value, bar, summary.accuracy.n, ceiling, _point(summary) in kept))
    return marks


def _front_of(summaries: Sequence[Summary]) -> set[Point]:
    """The front of the means of rows with enough seeds; one such cell alone is no front."""
    points = [_point(summary) for summary in summaries if summary.bops is not None and enough(summary)]
    return set(front(points)) if len(points) > 1 else set()


def _point(summary: Summary) -> Point:
    assert summary.accuracy is not None
    assert summary.bops is not None
    return Point(summary.bops, summary.accuracy.value, summary.cell.row)


def enough(summary: Summary) -> bool:
    """Whether the cell may be held against others: all trials ok, on enough seeds."""
    return summary.cell.complete and summary.accuracy is not None and summary.accuracy.n >= ENOUGH_SEEDS


def dodge(places: Sequence[float]) -> list[float]:
    """Sideways shifts for marks that would cover each other; all in points of paper along the axis.

    Marks closer than DODGE form a group and are spread evenly about their places, less far apart where the groups
    themselves stand close.

    >>> dodge([100.0, 200.0, 101.0])
    [-3.25, 0.0, 3.25]
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(places)), key=lambda index: (places[index], index)):
        if groups and places[index] - places[groups[-1][-1]] < DODGE:
            groups[-1].append(index)
        else:
            groups.append([index])
    spacing = DODGE
    for left, right in pairwise(groups):
        spacing = min(spacing, 2 * (places[right[0]] - places[left[-1]]) / (len(left) + len(right)))
    shifts = [0.0] * len(places)
    for group in groups:
        for place, index in enumerate(sorted(group)):
            shifts[index] = spacing * (place - (len(group) - 1) / 2)
    return shifts


def marker(row: int) -> dict[str, Any]:
    """Colour and shape of a row, by its place in the suite."""
    face = COLOURS[row % len(COLOURS)]
    shape = MARKERS[row % len(MARKERS)]
    size = 7.5 if shape in "PX" else 6.5
    return {"marker": shape, "color": face, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.6}


def label_of(row: str) -> str:
    """A row's name for a legend; matplotlib leaves out labels that begin with an underscore, so a space goes first."""
    return " " * row.startswith("_") + plain(row)


def plain(name: str, longest: int = 44) -> str:
    """A name on one line, printable, not too long for a figure."""
    flat = "".join(character if character.isprintable() else " " for character in name)
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
