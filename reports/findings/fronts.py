"""Rows as curves over their ceilings: hypervolume, accuracy at equal BOPs, and what each seed attains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from methods.quantization.cost import bops as counted_bops
from methods.quantization.cost import uniform_bits
from reports.findings.comparison import Cell, Comparison
from reports.findings.tables import Row, Table
from reports.numbers.display import NOTHING, gbops, interval, paired, percent
from reports.numbers.pareto import COST_TOLERANCE, Point, hypervolume
from reports.numbers.statistics import Mean, mean_interval, paired_difference

READING = (
    "Hypervolume: the area that a row's points dominate, over the logarithm of BOPs and test accuracy, as a share "
    "of a rectangle that depends on the suite and the network alone: from the cheapest policy of the space to one "
    "more step of the ceilings' mean ratio beyond the dearest ceiling, and from chance to 100 %; mean over seeds "
    "with 95 % t-interval. At a ceiling's name: accuracy at exactly its BOPs, interpolated, per seed, linearly in "
    f"the logarithm of BOPs between a row's neighbouring points, and nowhere more than {100 * COST_TOLERANCE:g} % "
    "beyond its cheapest or dearest one. A run that failed or is over its ceiling counts as accuracy 0 at the "
    "ceiling's BOPs, below the edge of the figure; rows with a run that is missing are left out."
)


@dataclass(frozen=True)
class Curve:
    """One row on one network: seed -> its points over ceilings, cheapest first; draws are averaged within a seed.

    trials: how many the plan has. failed: of them, failed or over the ceiling, each a draw of accuracy 0.
    """

    model: str
    row: str
    points: Mapping[int, tuple[Point, ...]]
    trials: int
    failed: int


def curves(comparison: Comparison, model: str) -> list[Curve]:
    """Rows with several ceilings and no run missing or refused, in the suite's order."""
    found = []
    for row in comparison.rows:
        cells = [cell for cell in comparison.of(model) if cell.row == row and not cell.is_float]
        if len(cells) < 2 or not all(cell.judged for cell in cells):
            continue
        by_cell = [_points(cell) for cell in cells]
        seeds = sorted(set.intersection(*map(set, by_cell)))
        points = {seed: tuple(sorted(own[seed] for own in by_cell)) for seed in seeds}
        trials = sum(len(cell.outcomes) for cell in cells)
        found.append(Curve(model, row, points, trials, sum(cell.worst for cell in cells)))
    return found


def any_curves(comparison: Comparison) -> bool:
    return any(curves(comparison, model) for model in comparison.models)


def _points(cell: Cell) -> dict[int, Point]:
    """Seed -> its point, the mean of its draws; a run that failed stands at its ceiling with accuracy 0."""
    drawn: dict[int, list[Point]] = {}
    for outcome in cell.outcomes:
        spec = outcome.trial.spec
        bops, accuracy = (outcome.bops, outcome.accuracy) if outcome.ok else (spec.ceiling_bops, 0.0)
        drawn.setdefault(spec.seed, []).append(Point(bops or 0, accuracy, cell.row))
    return {seed: _mean(each) for seed, each in drawn.items()}


def _mean(drawn: Sequence[Point]) -> Point:
    bops, accuracy = math.fsum(p.bops for p in drawn), math.fsum(p.accuracy for p in drawn)
    return Point(bops / len(drawn), accuracy / len(drawn), drawn[0].name)


def at_bops(points: Sequence[Point], bops: float) -> float | None:
    """Accuracy at `bops`, linear in its logarithm between neighbouring points; None beyond COST_TOLERANCE outside them.

    Points of equal BOPs stand for their mean: the better of two test accuracies would be a choice by test images.

    >>> at_bops([Point(1.0, 0.5), Point(4.0, 0.7)], 2.0)
    0.6
    """
    alike: dict[float, list[Point]] = {}
    for point in sorted(points):
        alike.setdefault(point.bops, []).append(point)
    ordered = [_mean(each) for each in alike.values()]
    if not ordered[0].bops / (1 + COST_TOLERANCE) <= bops <= ordered[-1].bops * (1 + COST_TOLERANCE):
        return None
    logs = [math.log(point.bops) for point in ordered]
    return float(np.interp(math.log(bops), logs, [point.accuracy for point in ordered]))


def attained(points: Sequence[Point], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Best accuracy of the points that cost at most so many BOPs; NaN below the cheapest."""
    costs = np.array([point.bops for point in points])
    values = np.array([point.accuracy for point in points])
    affordable = np.where(costs[None, :] <= grid[:, None], values[None, :], -np.inf).max(1)
    return np.where(np.isfinite(affordable), affordable, np.nan)


def fronts_table(comparison: Comparison) -> Table:
    """Per network and row: hypervolume, its paired difference from uniform LSQ, and accuracy at each ceiling's BOPs."""
    rows: list[Row] = []
    names = tuple(dict.fromkeys(cell.ceiling for cell in comparison.cells if not cell.is_float))
    for model in comparison.models:
        found = curves(comparison, model)
        if found and len(set(_ceilings(comparison, model).values())) > 1:
            rows += _rows(comparison, model, found, names)
    equal = (f"At {name}, %" for name in names)
    header = ("Network", "Method", "Seeds", "Hypervolume, %", "Δ uniform LSQ, points", *equal, "Notes")
    return Table(header, tuple(rows), frozenset(header[2:-1]))


def _rows(comparison: Comparison, model: str, found: Sequence[Curve], names: Sequence[str]) -> Iterable[Row]:
    ceilings = _ceilings(comparison, model)
    edges, chance = rectangle(comparison, model), 1 / comparison.plan.suite.data.classes
    volumes = {
        curve.row: {seed: hypervolume(points, edges, chance) for seed, points in curve.points.items()}
        for curve in found
    }
    bounds = f"rectangle from {gbops(edges[0])} to {gbops(edges[1])} GBOPs and from {percent(chance)} to 100 %"
    uniform = next((c.row for c in comparison.of(model) if c.method == "uniform-lsq"), None)
    for curve in found:
        difference = None
        if uniform in volumes and curve.row != uniform:
            ours = {seed: volumes[curve.row][seed] for seed in _paired_seeds(comparison, curve) & curve.points.keys()}
            difference = paired_difference(ours, volumes[uniform])
        mean = mean_interval(list(volumes[curve.row].values()))
        equal = (_at(curve, ceilings.get(name)) for name in names)
        failed = f"; {curve.failed} of {curve.trials} trials failed or over the ceiling" if curve.failed else ""
        cells = (model, curve.row, str(len(curve.points)), _spread(mean), paired(difference), *equal, bounds + failed)
        yield Row(cells)


def _paired_seeds(comparison: Comparison, curve: Curve) -> set[int]:
    """Seeds at which a row and uniform LSQ start from the same float weights, whatever the ceiling.

    Seeds without a finished run start from nothing: they count as accuracy 0 whatever they began with.
    """
    cells = [cell for cell in comparison.of(curve.model) if cell.row == curve.row]
    found = set(curve.points)
    for cell in cells:
        baseline = comparison.baseline(cell.model, cell.ceiling)
        if baseline is not None:
            found -= (cell.starts.keys() & baseline.starts.keys()) - set(cell.paired_with(baseline))
    return found


def rectangle(comparison: Comparison, model: str) -> tuple[float, float]:
    """BOPs between which a network's hypervolumes are taken, whichever rows there are.

    From every layer at the space's lowest widths to one more step of the ceilings' mean ratio beyond the dearest: what
    is reached at the dearest ceiling counts too.
    """
    space, ceilings = comparison.plan.suite.space, sorted(set(_ceilings(comparison, model).values()))
    layers = comparison.of(model)[0].outcomes[0].trial.ledger
    cheapest = counted_bops(layers, uniform_bits(layers, space.weights[0], space.activations[0]))
    return cheapest, ceilings[-1] * (ceilings[-1] / ceilings[0]) ** (1 / (len(ceilings) - 1))


def _ceilings(comparison: Comparison, model: str) -> dict[str, int]:
    """Name of a ceiling -> its BOPs on this network."""
    found = {cell.ceiling: cell.outcomes[0].trial.spec.ceiling_bops for cell in comparison.of(model)}
    return {name: bops for name, bops in found.items() if bops}


def _spread(mean: Mean) -> str:
    """A share with its interval, which failed seeds may stretch, within 0..1."""
    return percent(mean.value) + interval(mean.of_shares().interval)


def _at(curve: Curve, bops: float | None) -> str:
    if bops is None:
        return NOTHING
    values = [value for points in curve.points.values() if (value := at_bops(points, bops)) is not None]
    if len(values) < len(curve.points):
        return NOTHING
    return _spread(mean_interval(values))
