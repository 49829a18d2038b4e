"""The page's Pareto figure that answers: every trial a point that leads to its bits per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.comparison import Comparison, Outcome
from reports.display import gbops, percent
from reports.marks import COLOURS
from reports.strips import strip_id

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34


@dataclass(frozen=True)
class Dot:
    """One trial. target: the id of its strip."""

    x: float
    y: float
    row: str
    colour: str
    text: str
    target: str


@dataclass(frozen=True)
class Tick:
    """A grid line: where, and what stands at it."""

    at: float
    text: str


@dataclass(frozen=True)
class Explorer:
    """One network's figure, WIDTH x HEIGHT. rows: name and colour, for the legend."""

    model: str
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    rows: tuple[tuple[str, str], ...]


def explorers(comparison: Comparison) -> list[Explorer]:
    """A figure per network with a result that costs bit-operations."""
    return [found for model in comparison.models if (found := _explorer(comparison, model))]


def _explorer(comparison: Comparison, model: str) -> Explorer | None:
    cells = [cell for cell in comparison.of(model) if not cell.is_float]
    outcomes = [(cell.row, outcome) for cell in cells for outcome in cell.ok if outcome.bops]
    if not outcomes:
        return None
    costs = [math.log(outcome.bops or 1) for _, outcome in outcomes]
    heights = [100 * outcome.accuracy for _, outcome in outcomes]
    across, up = _span(costs, 0.02), _span(heights, 0.3)
    colours = {row: COLOURS[comparison.rows.index(row) % len(COLOURS)] for row, _ in outcomes}
    dots = [
        Dot(
            _place(cost, across, LEFT, WIDTH - RIGHT),
            _place(height, up, HEIGHT - BOTTOM, TOP),
            row,
            colours[row],
            _text(outcome),
            strip_id(outcome.trial),
        )
        for cost, height, (row, outcome) in zip(costs, heights, outcomes, strict=True)
    ]
    return Explorer(model, tuple(dots), _across(across), _up(up), tuple(colours.items()))


def _text(outcome: Outcome) -> str:
    return f"{outcome.trial.label} · {percent(outcome.accuracy)} % · {gbops(outcome.bops)} GBOPs"


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    room = max(0.06 * (max(values) - min(values)), least)
    return min(values) - room, max(values) + room


def _place(value: float, span: tuple[float, float], start: float, end: float) -> float:
    return round(start + (value - span[0]) / (span[1] - span[0]) * (end - start), 1)


def _across(span: tuple[float, float]) -> tuple[Tick, ...]:
    low, high = (math.exp(end) / 1e9 for end in span)
    places = _round_values(low, high, 6)
    return tuple(Tick(_place(math.log(value * 1e9), span, LEFT, WIDTH - RIGHT), f"{value:.4g}") for value in places)


def _up(span: tuple[float, float]) -> tuple[Tick, ...]:
    places = _round_values(*span, 5)
    return tuple(Tick(_place(value, span, HEIGHT - BOTTOM, TOP), f"{value:g}") for value in places)


def _round_values(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers strictly between; matplotlib's choice, imported when something is drawn."""
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(most).tick_values(low, high) if low < value < high]
