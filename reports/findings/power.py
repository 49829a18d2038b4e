"""How many seeds a gap needs before a paired t-interval is likely to show it, at the spread that was seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.special import nctdtr, stdtrit

from reports.findings.comparison import Comparison
from reports.numbers.display import count
from reports.numbers.statistics import CONFIDENCE

POWER = 0.8
"""Chance, by default, with which a gap that is there shall be shown."""
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds of one cell's paired difference from uniform LSQ, in accuracy."""

    label: str
    deviation: float
    seeds: int


def power_of(gap: float, deviation: float, seeds: int, confidence: float = CONFIDENCE) -> float:
    """Chance that the t-interval of `seeds` differences with this mean and deviation leaves out 0.

    P(|T| > t(n - 1, (1 + confidence) / 2)) for T noncentral t with n - 1 degrees of freedom, noncentrality √n gap / s.
    """
    critical = float(stdtrit(seeds - 1, (1 + confidence) / 2))
    shift = math.sqrt(seeds) * gap / deviation
    return 1 - _below(critical, seeds - 1, shift) + _below(-critical, seeds - 1, shift)


def _below(value: float, freedom: int, shift: float) -> float:
    """P(T < value) for T noncentral t; scipy gives NaN far out in the tail, where it is 0."""
    share = float(nctdtr(freedom, shift, value))
    return 0.0 if math.isnan(share) else share


def seeds_needed(gap: float, deviation: float, power: float = POWER) -> int | None:
    """The fewest seeds, at least 3, with this power; None if 10,000 are not enough.

    >>> seeds_needed(0.01, 0.01)
    10
    """
    if deviation == 0:
        return 3
    low, high = 2, 3
    while power_of(gap, deviation, high) < power:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(gap, deviation, middle) >= power else (middle, high)
    return high


def spreads(comparison: Comparison) -> list[Spread]:
    """Of every cell with at least three seeds beside its baseline."""
    found = []
    for cell in comparison.cells:
        baseline = comparison.baseline(cell.model, cell.ceiling)
        if baseline is None or baseline is cell or cell.is_float or cell.worst or baseline.worst:
            continue
        pairs = [cell.accuracies[seed] - baseline.accuracies[seed] for seed in cell.paired_with(baseline)]
        if len(pairs) >= 3:
            mean = math.fsum(pairs) / len(pairs)
            deviation = math.sqrt(math.fsum((pair - mean) ** 2 for pair in pairs) / (len(pairs) - 1))
            found.append(Spread(f"{cell.model} · {cell.row} · {cell.ceiling}", deviation, len(pairs)))
    return found


def advice(comparison: Comparison, gap: float, source: str) -> Iterator[str]:
    """Lines for a plan: seeds for a gap of `gap` (accuracy), at the pooled and at the largest spread of `source`."""
    found = spreads(comparison)
    points = f"a gap of {100 * gap:g} points from uniform LSQ"
    if not found:
        yield f"{points}: no cell has three seeds yet, so nothing is known of the spread"
        return
    freedom = sum(spread.seeds - 1 for spread in found)
    pooled = math.sqrt(math.fsum((spread.seeds - 1) * spread.deviation**2 for spread in found) / freedom)
    worst = max(found, key=lambda spread: spread.deviation)
    yield (
        f"{points} leaves 0 out of its 95 % interval four times in five with {_seeds(gap, pooled)} at the pooled "
        f"deviation, {100 * pooled:.2f} points ({source}: {count(len(found), 'cell')}, {freedom} degrees of freedom)"
    )
    yield f"and with {_seeds(gap, worst.deviation)} at the largest, {100 * worst.deviation:.2f} points ({worst.label})"


def _seeds(gap: float, deviation: float) -> str:
    needed = seeds_needed(gap, deviation)
    return f"more than {MOST_SEEDS} seeds" if needed is None else count(needed, "seed")
