"""What may be said of each cell: its mean, its differences by seed, and a verdict that claims no more than n allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reports.findings.comparison import STATE_WORDS, WORST, Cell, Comparison
from reports.numbers.display import count, listing, percent, unbroken
from reports.numbers.statistics import Mean, mean_interval, paired_difference, sampling_error

ENOUGH_SEEDS = 3
"""Below this many paired seeds nothing is called a difference."""

UNUSED_WORTH_SAYING = 0.01

Call = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Verdict:
    """text: what the table says; call: the difference to the baseline, where one may be called.

    tested: whether the difference was tested against zero.
    """

    text: str
    call: Call = ""
    tested: bool = False


@dataclass(frozen=True)
class Summary:
    """One cell in numbers. accuracy: over seeds, draws averaged within theirs; None where no trial is ok.

    sampling_error: one standard error of `accuracy` from drawing the `test_images`. to_uniform, to_random, to_float:
    paired by seed, in accuracy. bops, unused: means over seeds.
    """

    cell: Cell
    accuracy: Mean | None
    sampling_error: float | None
    test_images: int | None
    to_uniform: Mean | None
    to_random: Mean | None
    to_float: Mean | None
    bops: float | None
    verdict: Verdict
    notes: tuple[str, ...]

    @property
    def counted(self) -> str:
        """`3 seeds`, `1 seed × 4 draws`; `2 of 3` where not every trial is ok."""
        cell = self.cell
        if not cell.complete:
            return unbroken(f"{len(cell.ok)} of {len(cell.outcomes)}")
        draws = f" × {cell.draws} draws" if cell.draws > 1 else ""
        return unbroken(count(cell.seeds_planned, "seed") + draws)


def summarise(comparison: Comparison) -> tuple[Summary, ...]:
    """One summary per cell, in the comparison's order."""
    return tuple(_summary(comparison, cell) for cell in comparison.cells)


def _summary(comparison: Comparison, cell: Cell) -> Summary:
    baseline = comparison.baseline(cell.model, cell.ceiling)
    control = comparison.float_control(cell.model)
    accuracy = mean_interval(list(cell.accuracies.values())).of_shares() if cell.ok else None
    images = int(cell.ok[0].metrics["test_images"]) if cell.ok else None
    to_uniform = _difference(cell, baseline)
    return Summary(
        cell=cell,
        accuracy=accuracy,
        sampling_error=sampling_error(accuracy.value, images) if accuracy and images else None,
        test_images=images,
        to_uniform=to_uniform,
        to_random=_difference(cell, comparison.chance(cell.model, cell.ceiling)),
        to_float=_difference(cell, control),
        bops=cell.mean(lambda outcome: outcome.bops),
        verdict=_verdict(cell, baseline, to_uniform),
        notes=tuple(_notes(cell)),
    )


def _difference(cell: Cell, reference: Cell | None) -> Mean | None:
    """None also where trials of either failed or are over the ceiling: those that survived are not a fair sample."""
    if reference is None or reference is cell or cell.worst or reference.worst:
        return None
    paired = {seed: cell.accuracies[seed] for seed in cell.paired_with(reference)}
    return paired_difference(paired, reference.accuracies)


def _verdict(cell: Cell, baseline: Cell | None, difference: Mean | None) -> Verdict:
    """What the cell may be called. Failures rank last, whatever the trials that survived them reached."""
    total = len(cell.outcomes)
    counts = cell.counts()
    lost = [state for state in WORST if counts[state]]
    if lost:
        what = listing([f"{counts[state]} of {total} {STATE_WORDS[state]}" for state in lost])
        return Verdict(f"last: {what}" if total > 1 else STATE_WORDS[lost[0]])
    if counts["refused"]:
        return Verdict("refused: not ranked")
    if not cell.ok:
        return Verdict("missing" if counts["missing"] else STATE_WORDS["damaged"])
    if cell.is_float:
        return Verdict("reference")
    if len(cell.accuracies) == 1:
        return Verdict("one seed: no ranking")
    if not cell.complete:
        return Verdict(f"incomplete: {len(cell.ok)} of {total}")
    if cell is baseline:
        return Verdict("baseline")
    return _call(baseline, difference)


def _call(baseline: Cell | None, difference: Mean | None) -> Verdict:
    if baseline is None or not baseline.complete:
        return Verdict("no complete baseline")
    if difference is None:
        return Verdict("no seed from the baseline's float weights")
    if difference.n < ENOUGH_SEEDS or difference.interval is None:
        return Verdict(f"{count(difference.n, 'paired seed')}: no ranking")
    if difference.degenerate:
        return Verdict("all differences equal: not judged")
    if 0 in difference.interval:
        return Verdict("no difference shown", tested=True)
    call: Call = "higher" if difference.value > 0 else "lower"
    return Verdict(f"{call} than {baseline.row}", call, tested=True)


def _notes(cell: Cell) -> Iterator[str]:
    """What the method says of itself, unused ceilings, stopped and unsure searches, draws, trials that are not ok."""
    yield from sorted({note for outcome in cell.ok if (note := outcome.search.get("note"))})
    unused = max((outcome.cost.get("unused_share", 0.0) for outcome in cell.ok), default=0.0)
    if unused > UNUSED_WORTH_SAYING:
        up_to = "up to " if len(cell.ok) > 1 else ""
        yield f"leaves {up_to}{percent(unused, 1)} % of the ceiling unused"
    if stopped := sum(outcome.search_stopped for outcome in cell.outcomes):
        where = f" in {stopped} of {len(cell.outcomes)} trials" if len(cell.outcomes) > 1 else ""
        yield f"search stopped: its share ran out{where}"
    traces = list(_traces(cell))
    if lost := sum(abs(mean) < 2.0 * error for mean, error in traces):
        yield f"{percent(lost / len(traces), 0)} % of its traces are within two standard errors of 0"
    if len(cell.accuracies) > 1 and mean_interval(list(cell.accuracies.values())).degenerate:
        yield "all seeds equal: the interval has no width"
    if cell.draws > 1:
        yield "draws averaged within their seed"
    for state, number in sorted(cell.counts().items()):
        if state != "ok" and len(cell.outcomes) > 1:
            yield f"{number} {STATE_WORDS[state]}"


def _traces(cell: Cell) -> Iterator[tuple[float, float]]:
    """Mean and standard error of each Hessian trace that its trials ranked layers by (methods.hawq)."""
    for outcome in cell.ok:
        for kind in ("weight_traces", "input_traces"):
            for trace in outcome.search.get(kind, {}).values():
                yield trace["mean"], trace["standard_error"]


def comparisons_called(summaries: tuple[Summary, ...]) -> int:
    """How many paired differences are tested against zero: the number of chances to be wrong."""
    return sum(summary.verdict.tested for summary in summaries)
