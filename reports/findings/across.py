"""What holds over all networks and ceilings at once: scores of rows, and the pairs of rows that a suite compares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reports.findings.comparison import WORST, Cell, Comparison
from reports.findings.summary import ENOUGH_SEEDS
from reports.findings.tables import Row, Table
from reports.numbers.display import NOTHING, count, interval, percent, points, unbroken
from reports.numbers.resampling import (
    FEWEST_BLOCKS,
    Key,
    Scores,
    holm,
    improvement,
    improvement_interval,
    interquartile_mean,
    sign_flip_p,
)
from reports.numbers.statistics import Interval, Mean, mean_interval

LEVEL = 0.05

READING = (
    "A run's score is its test accuracy minus that of the same seed's float control, in points; several draws of "
    "one seed count as one run, their mean, and a trial that failed or is over its ceiling as accuracy 0. IQM: "
    "of each seed's n cells (network and ceiling) the highest and the lowest ⌊n / 4⌋ are left out and the others "
    "averaged, then the seeds, all of them, with their 95 % t-interval; with fewer than four cells nothing is left "
    "out, and it is called the mean. Pairs: a block is one network and seed; its difference is the mean over "
    "ceilings, given with the 95 % t-interval over blocks. p: exact sign flips, one sign per block, two-sided, none "
    f"below {ENOUGH_SEEDS} seeds or {FEWEST_BLOCKS} blocks; adjusted by Holm for all pairs that the suite has, whether "
    "or not they have a p or were chosen for this report. P(better): "
    "the chance that a run of the first row scores above one of the second under the same ceiling, ties half, with "
    "its jackknife interval on the logit scale; no interval for rows that are wholly apart, and neither number of a "
    "single seed."
)


@dataclass(frozen=True)
class RowScores:
    """One row over all networks: network -> (seeds, ceilings) of scores in 0..1 units; or why there are none.

    trials: how many the plan has; a seed's draws are one score. failed: of them, failed or over the ceiling.
    """

    row: str
    scores: Scores
    trials: int
    failed: int
    absent: str = ""

    @property
    def pooled(self) -> NDArray[np.float64]:
        return np.concatenate([values.ravel() for values in self.scores.values()])

    @property
    def seeds(self) -> int:
        """How many seeds the network with the fewest has."""
        return min(len(values) for values in self.scores.values())

    @property
    def cells(self) -> int:
        """Networks times ceilings."""
        return sum(values.shape[1] for values in self.scores.values())

    @property
    def score(self) -> Mean:
        """Over seeds, of each seed's interquartile mean over its cells; no seed is left out.

        Of fewer than four cells nothing is trimmed, and it is the mean.
        """
        by_seed = np.concatenate(list(self.scores.values()), axis=1)
        return mean_interval([interquartile_mean(values) for values in by_seed])


@dataclass(frozen=True)
class Pair:
    """Two rows compared. difference: over blocks; p, adjusted: None where nothing may be said.

    family: how many pairs Holm's correction is for.
    """

    ours: str
    theirs: str
    difference: Mean | None = None
    p: float | None = None
    adjusted: float | None = None
    better: float | None = None
    better_interval: Interval | None = None
    seeds: int = 0
    family: int = 1
    absent: str = ""

    @property
    def showable(self) -> bool:
        """Whether the smallest p there can be, 2 / 2^blocks, times the number of pairs does not exceed the level."""
        return self.difference is not None and self.family * 2.0 ** (1 - self.difference.n) <= LEVEL

    @property
    def verdict(self) -> str:
        if self.absent:
            return self.absent
        if self.seeds < ENOUGH_SEEDS:
            return f"fewer than {ENOUGH_SEEDS} seeds: no p-value"
        if self.adjusted is None or self.difference is None:
            return f"fewer than {FEWEST_BLOCKS} blocks: no p-value"
        if not self.called:
            return "no difference shown" if self.showable else "too few blocks to show one among so many pairs"
        return f"{self.ours} {'higher' if self.difference.value > 0 else 'lower'}"

    @property
    def called(self) -> bool:
        return self.adjusted is not None and self.adjusted <= LEVEL


def row_scores(comparison: Comparison) -> list[RowScores]:
    """Scores of every quantized row, in the suite's order; empty without float controls of every network."""
    controls = {model: control for model in comparison.models if (control := comparison.float_control(model))}
    if set(controls) != set(comparison.models):
        return []
    quantized = [row for row in comparison.rows if any(c.row == row and not c.is_float for c in comparison.cells)]
    return [_of_row(row, comparison, controls) for row in quantized]


def _of_row(row: str, comparison: Comparison, controls: Mapping[str, Cell]) -> RowScores:
    cells = [cell for cell in comparison.cells if cell.row == row and not cell.is_float]
    outcomes = [outcome for cell in cells for outcome in cell.outcomes]
    states = [outcome.state for outcome in outcomes]
    if "refused" in states:
        return RowScores(row, {}, len(states), 0, "refused somewhere: not ranked")
    if absent := sum(state in ("missing", "damaged") for state in states):
        return RowScores(row, {}, len(states), 0, f"{absent} of {count(len(states), 'run')} not there: not judged")
    scores: dict[Key, NDArray[np.float64]] = {}
    for model, control in controls.items():
        seeds = sorted({outcome.trial.spec.seed for cell in cells if cell.model == model for outcome in cell.outcomes})
        if lacking := [seed for seed in seeds if seed not in control.accuracies]:
            return RowScores(row, {}, len(states), 0, f"float controls of {count(len(lacking), 'seed')} not there")
        own = [cell for cell in cells if cell.model == model]
        if any(set(cell.accuracies) != set(cell.paired_with(control)) for cell in own):
            return RowScores(row, {}, len(states), 0, "other float weights than the float control's: not judged")
        columns = [[_accuracy(cell, seed) for seed in seeds] for cell in own]
        scores[model] = np.array(columns).T - np.array([[control.accuracies[seed]] for seed in seeds])
    return RowScores(row, scores, len(states), sum(state in WORST for state in states))


def _accuracy(cell: Cell, seed: int) -> float:
    """Mean over the seed's draws; a run that failed counts as 0."""
    drawn = [outcome for outcome in cell.outcomes if outcome.trial.spec.seed == seed]
    return math.fsum(outcome.accuracy if outcome.ok else 0.0 for outcome in drawn) / len(drawn)


def pairs(comparison: Comparison, rows: list[RowScores]) -> list[Pair]:
    """The pairs that the suite compares. Holm counts those without a p, and those cut away, as p = 1."""
    by_name, suite = {row.row: row for row in rows}, comparison.plan.suite
    found = [_pair(by_name[ours], by_name[theirs]) for ours, theirs in suite.contrasts]
    ps = [1.0 if pair.p is None else pair.p for pair in found] + [1.0] * suite.cut_pairs
    return [
        pair if pair.p is None else replace(pair, adjusted=adjusted, family=len(ps))
        for pair, adjusted in zip(found, holm(ps)[: len(found)], strict=True)
    ]


def _pair(ours: RowScores, theirs: RowScores) -> Pair:
    if absent := [row for row in (ours, theirs) if row.absent]:
        return Pair(ours.row, theirs.row, absent=f"{absent[0].row}: {absent[0].absent}")
    blocks: list[float] = []
    for model, values in ours.scores.items():
        if values.shape != theirs.scores[model].shape:
            return Pair(ours.row, theirs.row, absent="not the same seeds and ceilings")
        blocks += (values - theirs.scores[model]).mean(1).tolist()
    difference, seeds = mean_interval(blocks), ours.seeds
    if seeds == 1:  # blocks of one seed tell how networks differ, not what another seed would give
        return Pair(ours.row, theirs.row, difference=replace(difference, interval=None), seeds=seeds)
    return Pair(
        ours.row,
        theirs.row,
        difference=difference,
        p=sign_flip_p(blocks) if seeds >= ENOUGH_SEEDS else None,
        better=improvement(ours.scores, theirs.scores),
        better_interval=improvement_interval(ours.scores, theirs.scores),
        seeds=seeds,
    )


def scores_table(rows: list[RowScores]) -> Table:
    """Row -> interquartile mean of its scores; where it trims nothing, it is called the mean."""
    trimmed = any(row.cells >= 4 for row in rows)
    name = f"{'IQM' if trimmed else 'Mean'} minus float control, points"
    header = ("Method", "Runs", name, "Worst run, points", "Notes")
    lines = []
    for row in rows:
        if row.absent:
            lines.append(Row((row.row, NOTHING, NOTHING, NOTHING, row.absent)))
            continue
        notes = f"{row.failed} of {row.trials} trials failed or over the ceiling" if row.failed else ""
        worst = points(float(row.pooled.min()))
        lines.append(Row((row.row, str(row.pooled.size), _difference(row.score), worst, notes)))
    return Table(header, tuple(lines), frozenset(header[1:4]))


def pairs_table(found: list[Pair]) -> Table:
    """First row minus second, over blocks."""
    header = ("Pair", "Blocks", "Difference, points", "p", "p, Holm", "P(better), %", "Verdict")
    lines = []
    for pair in found:
        lines.append(
            Row(
                (
                    f"{pair.ours} − {pair.theirs}",
                    str(pair.difference.n) if pair.difference else NOTHING,
                    _difference(pair.difference),
                    _p(pair.p),
                    _p(pair.adjusted),
                    NOTHING if pair.better is None else percent(pair.better, 1) + interval(pair.better_interval),
                    pair.verdict,
                ),
                2 if pair.called else None,
            )
        )
    return Table(header, tuple(lines), frozenset(header[1:6]))


def _difference(difference: Mean | None) -> str:
    if difference is None:
        return NOTHING
    return points(difference.value) + interval(difference.interval, signed=True)


def _p(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}" if value >= 1e-4 else unbroken("< 0.0001")


def across_tables(comparison: Comparison) -> dict[str, Table]:
    """Title -> table, rows first; empty where there is no float control to measure from."""
    rows = row_scores(comparison)
    if not rows:
        return {}
    tables = {"Scores": scores_table(rows), "Pairs": pairs_table(pairs(comparison, rows))}
    return {title: table for title, table in tables.items() if table.rows}
