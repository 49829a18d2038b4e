"""The page's Pareto figure that answers: every trial a point that leads to its bits per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    """One network's figure against one cost, WIDTH x HEIGHT. rows: name and colour, for the legend."""

    model: str
    cost: str
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    rows: tuple[tuple[str, str], ...]


class Cost(NamedTuple):
    """What an x-axis measures; None of an outcome that has no such cost."""

    name: str
    value: Callable[[Outcome], float | None]


COSTS = (
    Cost("GBOPs per image", lambda outcome: None if outcome.bops is None else outcome.bops / 1e9),
    Cost("weights, KiB", lambda outcome: outcome.cost.get("weight_bytes", 0) / 2**10 or None),
)


def explorers(comparison: Comparison) -> list[Explorer]:
    """A figure per network against bit-operations, and one against weight bytes where they differ."""
    return [found for model in comparison.models for cost in COSTS if (found := _explorer(comparison, model, cost))]


def _explorer(comparison: Comparison, model: str, cost: Cost) -> Explorer | None:
    cells = [cell for cell in comparison.of(model) if not cell.is_float]
    found = [(cell.row, outcome, value) for cell in cells for outcome in cell.ok if (value := cost.value(outcome))]
    if not found or (cost is not COSTS[0] and len({value for _, _, value in found}) < 2):
        return None
    across = _span([math.log(value) for _, _, value in found], 0.02)
    up = _span([100 * outcome.accuracy for _, outcome, _ in found], 0.3)
    colours = {row: COLOURS[comparison.rows.index(row) % len(COLOURS)] for row, _, _ in found}
    dots = [
        Dot(
            _place(math.log(value), across, LEFT, WIDTH - RIGHT),
            _place(100 * outcome.accuracy, up, HEIGHT - BOTTOM, TOP),
            row,
            colours[row],
            _text(outcome),
            strip_id(outcome.trial),
        )
        for row, outcome, value in found
    ]
    return Explorer(model, cost.name, tuple(dots), _across(across), _up(up), tuple(colours.items()))


def _text(outcome: Outcome) -> str:
    return f"{outcome.trial.label} · {percent(outcome.accuracy)} % · {gbops(outcome.bops)} GBOPs"


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    room = max(0.06 * (max(values) - min(values)), least)
    return min(values) - room, max(values) + room


def _place(value: float, span: tuple[float, float], start: float, end: float) -> float:
    return round(start + (value - span[0]) / (span[1] - span[0]) * (end - start), 1)


def _across(span: tuple[float, float]) -> tuple[Tick, ...]:
    low, high = map(math.exp, span)
    places = _round_values(low, high, 6)
    return tuple(Tick(_place(math.log(value), span, LEFT, WIDTH - RIGHT), f"{value:.4g}") for value in places)


def _up(span: tuple[float, float]) -> tuple[Tick, ...]:
    places = _round_values(*span, 5)
    return tuple(Tick(_place(value, span, HEIGHT - BOTTOM, TOP), f"{value:g}") for value in places)


def _round_values(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers strictly between; matplotlib's choice, imported when something is drawn."""
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(most).tick_values(low, high) if low < value < high]
