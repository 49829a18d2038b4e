"""Rows as curves over their ceilings: hypervolume, accuracy at equal BOPs, and what each seed attains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.comparison import Comparison
from reports.display import NOTHING, gbops, interval, paired, percent
from reports.pareto import Point, hypervolume
from reports.statistics import Mean, mean_interval, paired_difference
from reports.tables import Row, Table

READING = (
    "Hypervolume: the area that a row's points dominate, over the logarithm of BOPs and test accuracy, as a share "
    "of the rectangle from the cheapest point of any row to one more step of the ceilings' mean ratio beyond the "
    "dearest, and from chance to 100 %; mean over seeds with 95 % t-interval. At equal BOPs: accuracy "
    "interpolated, per seed, linearly in the logarithm of BOPs between a row's neighbouring points, and nowhere "
    "more than 1 % beyond its cheapest or dearest one. Rows with a run that is missing or failed are left out."
)


_BESIDE = 1.01
"""A search leaves some BOPs of its ceiling unused; so close, its accuracy stands for the ceiling's."""


@dataclass(frozen=True)
class Curve:
    """One row on one network: seed -> its points over ceilings, cheapest first; draws are averaged within a seed."""

    model: str
    row: str
    points: Mapping[int, tuple[Point, ...]]


def curves(comparison: Comparison, model: str) -> list[Curve]:
    """Rows with several ceilings whose every run is ok, in the suite's order."""
    found = []
    for row in comparison.rows:
        cells = [cell for cell in comparison.of(model) if cell.row == row and not cell.is_float]
        if len(cells) < 2 or not all(cell.complete for cell in cells):
            continue
        bops = [cell.by_seed(lambda outcome: outcome.bops) for cell in cells]
        seeds = sorted(set.intersection(*(set(each) for each in bops)))
        points = {
            seed: tuple(sorted(Point(b[seed], cell.accuracies[seed], row) for b, cell in zip(bops, cells, strict=True)))
            for seed in seeds
        }
        found.append(Curve(model, row, points))
    return found


def at_bops(points: Sequence[Point], bops: float) -> float | None:
    """Accuracy at `bops`, linear in its logarithm between neighbouring points; None more than 1 % outside them.

    >>> at_bops([Point(1.0, 0.5), Point(4.0, 0.7)], 2.0)
    0.6
    """
    ordered = sorted(points)
    if not ordered[0].bops / _BESIDE <= bops <= ordered[-1].bops * _BESIDE:
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
    for model in comparison.models:
        found = curves(comparison, model)
        if found:
            rows += _rows(comparison, model, found)
    header = ("Network", "Method", "Seeds", "Hypervolume, %", "Δ uniform LSQ, points", "At equal BOPs, %")
    return Table(header, tuple(rows), frozenset(header[2:5]))


def _rows(comparison: Comparison, model: str, found: Sequence[Curve]) -> Iterable[Row]:
    ceilings = sorted({o.trial.spec.ceiling_bops or 0 for c in comparison.of(model) for o in c.outcomes} - {0})
    cheapest = min(point.bops for curve in found for points in curve.points.values() for point in points)
    chance = 1 / comparison.plan.suite.data.classes
    dearest = ceilings[-1] * (ceilings[-1] / ceilings[0]) ** (1 / (len(ceilings) - 1))
    volumes = {
        curve.row: {seed: hypervolume(points, (cheapest, dearest), chance) for seed, points in curve.points.items()}
        for curve in found
    }
    uniform = next((c.row for c in comparison.of(model) if c.method == "uniform-lsq"), None)
    for curve in found:
        difference = None
        if uniform in volumes and curve.row != uniform:
            difference = paired_difference(volumes[curve.row], volumes[uniform])
        mean = mean_interval(list(volumes[curve.row].values()))
        equal = "; ".join(f"{gbops(bops)} GBOPs: {_at(curve, bops)}" for bops in ceilings)
        cells = (model, curve.row, str(len(curve.points)), _spread(mean), paired(difference), equal)
        yield Row(cells)


def _spread(mean: Mean) -> str:
    return percent(mean.value) + interval(mean.interval)


def _at(curve: Curve, bops: float) -> str:
    values = [value for points in curve.points.values() if (value := at_bops(points, bops)) is not None]
    if len(values) < len(curve.points):
        return NOTHING
    return _spread(mean_interval(values))
