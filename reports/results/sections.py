"""What a page of one kind shows: its answer, its tables and its figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.records.record import Record
from reports.findings.across import pairs, pairs_table, row_scores
from reports.findings.comparison import Comparison
from reports.findings.summary import Summary, summarise
from reports.findings.tables import Row, Table, summary_tables
from reports.numbers.display import NOTHING, interval, percent, points
from reports.numbers.statistics import Mean, mean_interval
from reports.results import answer
from reports.results.answer import Answer
from reports.results.measured import Measured
from reports.results.shipped import SHARES, Kind
from reports.studies import ablation, ranges, retraining, stability, widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure. made_from: the numbers in it, as JSON; caption: what its marks are."""

    draw: Callable[[], Figure]
    made_from: Any
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Sections:
    """tables: by heading."""

    answer: Answer
    tables: dict[str, list[Table]]
    picture: Picture | None = None


def sections_of(kind: Kind, measured: Sequence[Measured], records: Sequence[Record]) -> Sections:
    """records: those that the page is about. Raises ValueError where they do not hold what the study needs."""
    comparison = measured[0].comparison
    if kind == "widths":
        return _widths(comparison, records)
    if kind == "ablation":
        return _ablation(comparison, records)
    if kind == "ranges":
        return _ranges(records)
    if kind == "retraining":
        return _retraining(comparison, records)
    if kind == "sweep":
        return _sweep({share: one.comparison for share, one in zip(SHARES, measured, strict=True)})
    return _comparison(comparison)


def _comparison(comparison: Comparison) -> Sections:
    summaries = summarise(comparison)
    tables = {}
    found = pairs(comparison, row_scores(comparison))
    if found:
        tables["Pairs, over all networks and ceilings"] = [pairs_table(found)]
        several = len({cell.ceiling for cell in comparison.cells if not cell.is_float}) > 1
        if several and found[0].seeds > 1:
            tables["Pairs at each ceiling, not corrected for their number"] = [by_ceiling_table(comparison)]
    if any(summary.verdict.tested for summary in summaries):
        tables["Single cells against uniform LSQ, not corrected for their number"] = [calls_table(summaries)]
    tables["Cells"] = _named(summary_tables(comparison, summaries))
    return Sections(answer.of_pairs(comparison), tables, _pareto(comparison, summaries))


def _named(tables: dict[str, Table]) -> list[Table]:
    """The network's name in the first column's head."""
    return [Table((f"{model}: ceiling", *t.header[1:]), t.rows, t.numeric) for model, t in tables.items()]


def _pareto(comparison: Comparison, summaries: Sequence[Summary]) -> Picture:
    from reports.figures.pareto import caption_parts, pareto_figure

    numbers = [
        [s.cell.model, s.cell.ceiling, s.cell.row, s.counted, s.bops, s.sampling_error, _numbers(s.accuracy)]
        for s in summaries
    ]
    starts = {model: comparison.start_accuracies(model) for model in comparison.models}
    alt = "Test accuracy against bit-operations, a panel per network"
    made_from = [numbers, {model: list(own.items()) for model, own in starts.items()}]
    return Picture(lambda: pareto_figure(comparison, summaries), made_from, alt, " ".join(caption_parts(summaries)))


def _numbers(mean: Mean | None) -> list[float] | None:
    return None if mean is None else [mean.value, *([mean.interval.low, mean.interval.high] if mean.interval else [])]


def by_ceiling_table(comparison: Comparison) -> Table:
    """Pair x ceiling -> mean difference over networks and seeds, with its t-interval over these."""
    rows = {row.row: row for row in row_scores(comparison)}
    ceilings = list(dict.fromkeys(cell.ceiling for cell in comparison.cells if not cell.is_float))
    header = ("Pair", *ceilings)
    lines = []
    for pair in pairs(comparison, list(rows.values())):
        cells = [NOTHING] * len(ceilings)
        if pair.difference:
            ours, theirs = rows[pair.ours].scores, rows[pair.theirs].scores
            columns = range(len(ceilings))
            blocks = [[x for model in ours for x in (ours[model] - theirs[model])[:, i].tolist()] for i in columns]
            cells = [_difference(mean_interval(values)) for values in blocks]
        lines.append(Row((f"{pair.ours} − {pair.theirs}", *cells)))
    return Table(header, tuple(lines), frozenset(ceilings))


def _difference(mean: Mean) -> str:
    return points(mean.value) + interval(mean.interval, signed=True)


def calls_table(summaries: Sequence[Summary]) -> Table:
    """Row -> how many of its cells are called higher than uniform LSQ, lower, or neither."""
    counts: dict[str, Counter[str]] = {}
    for summary in summaries:
        verdict = summary.verdict
        if verdict.text not in ("reference", "baseline"):
            kind = verdict.call or ("no difference shown" if verdict.tested else "not judged")
            counts.setdefault(summary.cell.row, Counter())[kind] += 1
    header = ("Method", "higher", "no difference shown", "lower", "not judged")
    lines = [Row((row, *(str(own[kind]) for kind in header[1:]))) for row, own in counts.items()]
    return Table(header, tuple(lines), frozenset(header[1:]))


def _widths(comparison: Comparison, records: Sequence[Record]) -> Sections:
    by_model = widths.accuracies_of(records)
    tables = {"Widths": list(widths.tables(by_model))}
    return Sections(answer.of_widths(by_model), tables, _pareto(comparison, summarise(comparison)))


def _ablation(comparison: Comparison, records: Sequence[Record]) -> Sections:
    by_model = ablation.trials_of(records)
    tables = {"Options": list(ablation.tables(by_model))}
    return Sections(answer.of_ablation(by_model), tables, _pareto(comparison, summarise(comparison)))


def _ranges(records: Sequence[Record]) -> Sections:
    cells = ranges.cells_of(records)
    numbers = [[*key, sorted(cell.accuracies.items()), cell.failed] for key, cell in sorted(cells.items())]
    picture = Picture(
        lambda: ranges.figure(cells),
        numbers,
        "Test accuracy against learning rate, a panel per width, a line per parameterisation",
        "Means over seeds; bars are 95 % t-intervals.",
    )
    return Sections(answer.of_ranges(cells), {"Widths and learning rates": list(ranges.tables(cells))}, picture)


def _retraining(comparison: Comparison, records: Sequence[Record]) -> Sections:
    found = retraining.split(records)
    header = ("Part", "standard deviation, points", "share of the variance, %")
    lines = [Row((name, percent(deviation), percent(share, 0))) for name, deviation, share in retraining.parts(found)]
    summaries = summarise(comparison)
    tables = {
        "What the variance is made of": [Table(header, tuple(lines), frozenset(header[1:]))],
        "Cells": _named(summary_tables(comparison, summaries)),
    }
    return Sections(answer.of_retraining(found), tables, _pareto(comparison, summaries))


def _sweep(sweep: stability.Sweep) -> Sections:
    scored = {share: row_scores(comparison) for share, comparison in sorted(sweep.items())}
    numbers = [
        [share, row.row, row.absent, None if row.absent else _numbers(row.score)]
        for share, rows in scored.items()
        for row in rows
    ]
    picture = Picture(
        lambda: stability.stability_figure(sweep, scored),
        numbers,
        "Score against compute, a line per row",
        "Means over seeds; bars are 95 % t-intervals.",
    )
    tables = {
        "Scores: test accuracy minus the float control at the same compute, points": [stability.scores_table(scored)],
        "How alike the orders are": [stability.taus_table(scored)],
    }
    return Sections(answer.of_sweep(sweep), tables, picture)
