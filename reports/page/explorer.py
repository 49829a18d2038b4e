"""The page's interactive figure: a point per trial, which leads to its bits per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reports.figures.marks import COLOURS
from reports.findings.comparison import STATE_WORDS, Cell, Comparison, Outcome
from reports.findings.strips import strip_id
from reports.numbers.display import gbops, percent
from reports.numbers.pareto import Point, front

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
    """A grid line: its position, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Explorer:
    """One network's figure against one cost, WIDTH x HEIGHT. rows: name and colour, for the legend.

    ceilings: none where the cost is not bit-operations. front: corners of the line through the trials that no other
    dominates. failed: trials that have no point, and why.
    """

    model: str
    cost: str
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    rows: tuple[tuple[str, str], ...]
    ceilings: tuple[Tick, ...]
    front: str
    failed: tuple[str, ...]


class Cost(NamedTuple):
    """What an x-axis measures; None of an outcome that has no such cost."""

    name: str
    value: Callable[[Outcome], float | None]


GBOPS = Cost("GBOPs per image", lambda outcome: None if outcome.bops is None else outcome.bops / 1e9)
MBOPS = Cost("MBOPs per image", lambda outcome: None if outcome.bops is None else outcome.bops / 1e6)
WEIGHTS = Cost("weights, KiB", lambda outcome: outcome.cost.get("weight_bytes", 0) / 2**10 or None)
FEW_GBOPS = 0.1
"""A network all of whose trials cost less is drawn in MBOPs."""

_ORDER = {"random": 0, "uniform-lsq": 2}
"""Later marks are drawn over earlier ones: many draws lie below, the baseline above."""


def explorers(comparison: Comparison) -> list[Explorer]:
    """A figure per network against bit-operations, and one against weight bytes where they differ."""
    found = []
    for model in comparison.models:
        most = max((o.bops or 0 for cell in comparison.of(model) for o in cell.ok), default=0)
        costs = (GBOPS if most >= FEW_GBOPS * 1e9 else MBOPS, WEIGHTS)
        found += [drawn for cost in costs if (drawn := _explorer(comparison, model, cost))]
    return found


def _explorer(comparison: Comparison, model: str, cost: Cost) -> Explorer | None:
    cells = [cell for cell in comparison.of(model) if not cell.is_float]
    cells.sort(key=lambda cell: _ORDER.get(cell.method, 1))
    found = [(cell.row, outcome, value) for cell in cells for outcome in cell.ok if (value := cost.value(outcome))]
    if not found or (cost is WEIGHTS and len({value for _, _, value in found}) < 2):
        return None
    across = _span([math.log(value) for _, _, value in found], 0.02)
    up = _span([100 * outcome.accuracy for _, outcome, _ in found], 0.3)
    colours = {
        row: COLOURS[index % len(COLOURS)]
        for index, row in enumerate(comparison.rows)
        if any(row == other for other, _, _ in found)
    }
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
    return Explorer(
        model,
        cost.name,
        tuple(dots),
        _across(across),
        _up(up),
        tuple(colours.items()),
        () if cost is WEIGHTS else _ceilings(cells, across, 1e9 if cost is GBOPS else 1e6),
        _front([Point(value, outcome.accuracy) for _, outcome, value in found], across, up),
        tuple(f"{o.trial.label} ({STATE_WORDS[o.state]})" for cell in cells for o in cell.outcomes if not o.ok),
    )


def _ceilings(cells: Sequence[Cell], span: tuple[float, float], unit: float) -> tuple[Tick, ...]:
    """The ceilings within the figure's range."""
    budgets = {cell.ceiling: (cell.outcomes[0].trial.spec.ceiling_bops or 1) / unit for cell in cells}
    inside = {name: math.log(bops) for name, bops in budgets.items() if span[0] < math.log(bops) < span[1]}
    return tuple(Tick(_place(at, span, LEFT, WIDTH - RIGHT), name) for name, at in inside.items())


def _front(points: Sequence[Point], across: tuple[float, float], up: tuple[float, float]) -> str:
    """A staircase: accuracy rises at the BOPs of each point of the front."""
    corners: list[str] = []
    y = 0.0
    for point in dict.fromkeys(front(points)):
        x = _place(math.log(point.bops), across, LEFT, WIDTH - RIGHT)
        corners += [f"{x},{y}"] if corners else []
        y = _place(100 * point.accuracy, up, HEIGHT - BOTTOM, TOP)
        corners.append(f"{x},{y}")
    return " ".join([*corners, f"{WIDTH - RIGHT},{y}"])


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
