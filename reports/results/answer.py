"""The answer of a page, in one sentence made from its numbers: who is ahead of what, by how much and how sure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from reports.findings.across import LEVEL, Pair, pairs, row_scores
from reports.findings.comparison import Comparison
from reports.findings.summary import ENOUGH_SEEDS
from reports.numbers.display import count, listing, percent
from reports.numbers.statistics import Mean, paired_difference
from reports.studies import ablation, ranges, retraining, widths
from reports.studies.stability import Sweep, taus


@dataclass(frozen=True)
class Answer:
    """full: with the numbers, for the suite's page. short: names alone, for where pages are listed."""

    full: str
    short: str


def of_pairs(comparison: Comparison) -> Answer:
    """Over all networks and ceilings, the pairs that the suite sets against each other."""
    found = pairs(comparison, row_scores(comparison))
    seeds = max((cell.seeds_planned for cell in comparison.cells), default=0)
    if seeds < ENOUGH_SEEDS or not found:
        said = "One seed: nothing is ranked." if seeds == 1 else "Too few seeds or rows: nothing is ranked."
        return Answer(said, said)
    family = max(pair.family for pair in found)
    called = [pair.adjusted for pair in found if pair.called and pair.adjusted is not None]
    sure = f"each at p ≤ {_rounded_up(max(called))}, " if called else ""
    said = "; ".join(_with_numbers(found))
    return Answer(
        f"Over {_blocks(comparison, found, seeds)}: {said} ({sure}by sign flips with Holm's correction for "
        f"{count(family, 'pair')}).",
        f"{count(seeds, 'seed')}, {count(len(comparison.models), 'network')}: {'; '.join(_in_short(found))}.",
    )


def _blocks(comparison: Comparison, found: Sequence[Pair], seeds: int) -> str:
    ceilings = len({cell.ceiling for cell in comparison.cells if not cell.is_float})
    blocks = max((pair.difference.n for pair in found if pair.difference), default=0)
    networks = f"{count(len(comparison.models), 'network')} with {count(seeds, 'seed')} each"
    return f"{count(blocks, 'block')} ({networks}, means of {count(ceilings, 'ceiling')})"


def _rounded_up(p: float) -> str:
    """Four digits that are never less than p.

    >>> _rounded_up(0.00201), _rounded_up(0.05)
    ('0.0021', '0.0500')
    """
    return f"{min(LEVEL, math.ceil(round(p * 1e4, 6)) / 1e4):.4f}"


def _with_numbers(found: Sequence[Pair]) -> Iterable[str]:
    """`a by 2.00 points [1.00, 3.00] and b by ... are ahead of c`; what is behind, level, or not judged."""
    for words, called in ((AHEAD, _called(found, 1)), (BEHIND, _called(found, -1))):
        for theirs, rows in _by_reference(called).items():
            named = listing([f"{pair.ours} by {_points(pair.difference)}" for pair in rows])
            yield f"{named} {words[len(rows) > 1]} {theirs}"
    yield from _not_called(found)


def _in_short(found: Sequence[Pair]) -> Iterable[str]:
    """`a and b are ahead of c and d`, without numbers."""
    for words, called in ((AHEAD, _called(found, 1)), (BEHIND, _called(found, -1))):
        for ours, theirs in _alike(called).items():
            yield f"{listing(ours)} {words[len(ours) > 1]} {listing(theirs)}"
    yield from _not_called(found)


AHEAD, BEHIND = ("is ahead of", "are ahead of"), ("is behind", "are behind")


def _called(found: Sequence[Pair], sign: int) -> list[Pair]:
    return [pair for pair in found if pair.called and pair.difference and sign * pair.difference.value > 0]


def _not_called(found: Sequence[Pair]) -> Iterable[str]:
    if level := _alike(pair for pair in found if not pair.called and pair.adjusted is not None):
        named = ", or of ".join(f"{listing(ours)} from {listing(theirs)}" for ours, theirs in level.items())
        yield f"no difference is shown of {named}"
    for pair in found:
        if pair.adjusted is None:
            yield f"{pair.ours} and {pair.theirs} are not judged ({pair.verdict})"


def _by_reference(found: Iterable[Pair]) -> dict[str, list[Pair]]:
    grouped: dict[str, list[Pair]] = {}
    for pair in found:
        grouped.setdefault(pair.theirs, []).append(pair)
    return grouped


def _alike(found: Iterable[Pair]) -> dict[tuple[str, ...], list[str]]:
    """First rows -> second rows of which the same is said."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for theirs, rows in _by_reference(found).items():
        grouped.setdefault(tuple(pair.ours for pair in rows), []).append(theirs)
    return grouped


def _points(difference: Mean | None) -> str:
    """How large a difference is, whichever its sign.

    >>> from reports.numbers.statistics import Interval
    >>> _points(Mean(-0.02, 5, Interval(-0.03, -0.01)))
    '2.00 points [1.00, 3.00]'
    """
    if difference is None:
        return "?"
    bounds = difference.interval
    ends = sorted((abs(bounds.low), abs(bounds.high))) if bounds else []
    return f"{percent(abs(difference.value))} points" + (f" [{percent(ends[0])}, {percent(ends[1])}]" if ends else "")


def _side(difference: Mean) -> int:
    """1 ahead, -1 behind, 0 where the interval does not tell."""
    if difference.interval is None or difference.degenerate or 0 in difference.interval:
        return 0
    return 1 if difference.value > 0 else -1


def of_widths(by_model: Mapping[str, widths.Accuracies]) -> Answer:
    """Every width against the row above it, over networks."""
    steps: dict[tuple[str, str], list[Mean]] = {}
    for accuracies in by_model.values():
        for row, above, difference in widths.steps(accuracies):
            if row != widths.FLOAT:
                steps.setdefault((row, above), []).append(difference)
    full, short = [], []
    for (row, above), found in steps.items():
        lost = sorted(-difference.value for difference in found if _side(difference) < 0)
        above = "the float control" if above == widths.FLOAT else above.upper()
        said = f"{row.upper()} is behind {above} on {len(lost)} of {count(len(found), 'network')}"
        full.append(said + (f", by {percent(lost[0])} to {percent(lost[-1])} points" if lost else ""))
        short.append(said)
    return Answer(f"{'; '.join(full)} ({_one_by_one(d for f in steps.values() for d in f)}).", f"{'; '.join(short)}.")


def _one_by_one(differences: Iterable[Mean]) -> str:
    counts = sorted({difference.n for difference in differences})
    return f"{' or '.join(map(str, counts))} pairs each, 95 % t-intervals, not corrected for their number"


def of_ablation(by_model: Mapping[str, ablation.Trials]) -> Answer:
    """Every row against MetaMix with its default options, network by network."""
    full, short, all_found = [], [], list[Mean]()
    for model, rows in sorted(by_model.items()):
        ours = ablation.accuracy_of(rows.get(ablation.METHOD, {}))
        found: dict[str, Mean] = {}
        for row in ablation.rows_in_order(rows):
            less = paired_difference(ablation.accuracy_of(rows[row]), ours)
            if row != ablation.METHOD and less:
                found[row] = less
        full.append(f"{model}: {'; '.join(_against(found, lambda d: f' by {_points(d)}'))}")
        short.append(f"{model}: {'; '.join(_against(found, lambda d: ''))}")
        all_found += found.values()
    against = f"Against {ablation.METHOD} with its default options, "
    return Answer(f"{against}{'; '.join(full)} ({_one_by_one(all_found)}).", f"{against}{'; '.join(short)}.")


def _against(found: Mapping[str, Mean], how_much: Callable[[Mean], str]) -> Iterable[str]:
    for side, word in ((1, "ahead"), (-1, "behind")):
        if rows := [f"{_named(row)}{how_much(d)}" for row, d in found.items() if _side(d) == side]:
            yield f"{word}: {', '.join(rows)}"
    if rows := [_named(row) for row, difference in found.items() if _side(difference) == 0]:
        yield f"no difference shown: {', '.join(rows)}"


def _named(row: str) -> str:
    """`metamix, branches highest` among other names, which commas part."""
    return row.replace(", ", " with ", 1).replace(", ", " and ")


def of_ranges(cells: ranges.Cells) -> Answer:
    """All cells against LSQ at the same width and rate; and what failed."""
    others = [key for key in cells if key.ranges != ranges.BASELINE]
    found = [difference for key in others if (difference := ranges.difference(cells, key))]
    sides = [_side(difference) for difference in found]
    failed: dict[str, int] = {}
    for key, cell in cells.items():
        failed[key.ranges] = failed.get(key.ranges, 0) + cell.failed
    runs = sum(cell.failed + len(cell.accuracies) for cell in cells.values())
    lost = listing([f"{number} of {name}" for name, number in sorted(failed.items()) if number]) or "none"
    said = (
        f"Against {ranges.BASELINE} at the same width and learning rate, {sides.count(1)} of {len(found)} cells of "
        f"the other parameterisations are ahead and {sides.count(-1)} behind"
    )
    return Answer(f"{said} ({_one_by_one(found)}); of {runs} runs, failed: {lost}.", f"{said}.")


def of_retraining(found: retraining.Components) -> Answer:
    """Shares of the variance over given policies and seeds."""
    shares = [f"{percent(share, 0)} % {name}" for name, _, share in retraining.parts(found)]
    said = f"Of the variance over {found.rows} policies and {found.columns} seeds: {listing(shares)}"
    return Answer(f"{said}; one network at one ceiling, so that the shares are rough.", f"{said}.")


def of_sweep(sweep: Sweep) -> Answer:
    """How alike the orders of rows are at two amounts of compute."""
    known = [tau for (one, other), tau in taus(sweep).items() if one < other and tau is not None]
    seeds = max((cell.seeds_planned for own in sweep.values() for cell in own.cells), default=0)
    if not known:
        return Answer("No two amounts of compute can be compared.", "No two amounts of compute can be compared.")
    said = f"Between the orders at two amounts of compute Kendall's tau is {min(known):.2f} to {max(known):.2f}"
    few = ": too few to say how much seeds alone reorder the rows" if seeds < 4 else ""
    return Answer(f"{said} ({count(len(known), 'pair')} of amounts, {count(seeds, 'seed')}{few}).", f"{said}.")
