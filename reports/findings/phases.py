"""The compute account phase by phase, student and teacher apart, and what float starts took, which is not charged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.suites.spec import StartSpec
from reports.findings.account import Account, Entry, account_of
from reports.findings.comparison import Comparison, Outcome
from reports.findings.tables import Row, Table
from reports.numbers.display import NOTHING, duration, epochs, scaled, unbroken

FINETUNE, EVALUATION = "finetune", "evaluation"


def is_search(phase: str) -> bool:
    return phase.startswith("search")


def phase_words(phase: str) -> str:
    """
    >>> phase_words("search/bit-meta"), phase_words("finetune")
    ('bit-meta', 'fine-tuning')
    """
    return "fine-tuning" if phase == FINETUNE else phase.removeprefix("search/")


@dataclass(frozen=True)
class Phase:
    """Means over a row's ok trials on one network; one that lacks the phase counts as 0. epochs: recipe epochs."""

    name: str
    macs: float
    teacher_macs: float
    epochs: float
    teacher_epochs: float
    images: float
    steps: float
    seconds: float | None


@dataclass(frozen=True)
class Spending:
    """What one row spent on one network. shown: recalibration and evaluation, timed together and not charged."""

    model: str
    row: str
    trials: int
    granted_epochs: float
    phases: tuple[Phase, ...]
    shown: Phase | None


def spendings(comparison: Comparison) -> list[Spending]:
    """Per network and row, over all ceilings; rows without an account are left out."""
    found: dict[tuple[str, str], list[tuple[Outcome, Account]]] = {}
    for cell in comparison.cells:
        for outcome in cell.ok:
            if account := account_of(outcome):
                found.setdefault((cell.model, cell.row), []).append((outcome, account))
    return [Spending(*key, len(own), own[0][1].granted_epochs, _phases(own), _shown(own)) for key, own in found.items()]


def _phases(found: Sequence[tuple[Outcome, Account]]) -> tuple[Phase, ...]:
    names = dict.fromkeys(entry.name for _, account in found for entry in account.phases)
    return tuple(_phase(name, found) for name in sorted(names, key=lambda name: not is_search(name)))


def _shown(found: Sequence[tuple[Outcome, Account]]) -> Phase | None:
    entries = [(account.epoch_macs, entry) for _, account in found for entry in account.shown]
    if not entries:
        return None
    macs, images = math.fsum(entry.macs for _, entry in entries), math.fsum(entry.images for _, entry in entries)
    epochs = math.fsum(entry.macs / epoch for epoch, entry in entries)
    seconds = [_part_seconds(outcome, EVALUATION) for outcome, _ in found]
    known = [second for second in seconds if second is not None]
    time = math.fsum(known) / len(known) if len(known) == len(seconds) else None
    n = len(found)
    return Phase(EVALUATION, macs / n, 0.0, epochs / n, 0.0, images / n, 0.0, time)


def _phase(name: str, found: Sequence[tuple[Outcome, Account]]) -> Phase:
    own = [(o, a.epoch_macs, entry) for o, a in found for entry in a.phases if entry.name == name]
    seconds = [_seconds(outcome, entry) for outcome, _, entry in own]

    def mean(values: Iterator[float]) -> float:
        return math.fsum(values) / len(found)

    return Phase(
        name,
        mean(entry.macs for _, _, entry in own),
        mean(entry.teacher_macs for _, _, entry in own),
        mean(entry.epochs for _, _, entry in own),
        mean(entry.teacher_macs / epoch for _, epoch, entry in own),
        mean(entry.images for _, _, entry in own),
        mean(entry.steps or 0 for _, _, entry in own),
        None if None in seconds else mean(second for second in seconds if second is not None),
    )


def _seconds(outcome: Outcome, entry: Entry) -> float | None:
    """Seconds of a phase; those of evaluation include the recalibration before it."""
    if entry.name == EVALUATION:
        return _part_seconds(outcome, EVALUATION)
    by_phase: Mapping[str, float] = outcome.observed.get("phase_seconds") or {}
    return by_phase.get(entry.name)


def _part_seconds(outcome: Outcome, part: str) -> float | None:
    parts: Mapping[str, float] = outcome.observed.get("seconds") or {}
    return parts.get(part)


_TEACHER = ("Student, MACs", "Teacher, MACs", "Without the teacher, epochs")


def phases_table(comparison: Comparison) -> Table:
    """Means over each row's trials by phase, and of several search phases their sum; the teacher where there is one."""
    counts = ("Trials", "MACs", *_TEACHER[:2], "Epochs", _TEACHER[2], "Images", "Steps", "Time")
    header = ("Network", "Method", "Phase", *counts)
    found = spendings(comparison)
    rows = [row for spending in found for row in _phase_rows(spending)]
    table = Table(header, tuple(rows), frozenset(counts))
    taught = any(phase.teacher_macs for spending in found for phase in spending.phases)
    return table if taught else table.without(_TEACHER)


def _phase_rows(spending: Spending) -> Iterator[Row]:
    searching = [phase for phase in spending.phases if is_search(phase.name)]
    for phase in spending.phases:
        yield _phase_row(spending, phase_words(phase.name), [phase])
        if len(searching) > 1 and phase is searching[-1]:
            yield _phase_row(spending, "search in all", searching)
    if spending.shown:
        yield _phase_row(spending, f"{EVALUATION}, not charged", [spending.shown])


def _phase_row(spending: Spending, words: str, phases: Sequence[Phase]) -> Row:
    macs, teacher = (math.fsum(values) for values in zip(*((p.macs, p.teacher_macs) for p in phases), strict=True))
    seconds = [phase.seconds for phase in phases]
    return Row(
        (
            spending.model,
            spending.row,
            words,
            str(spending.trials),
            scaled(macs),
            scaled(macs - teacher),
            scaled(teacher),
            epochs(math.fsum(phase.epochs for phase in phases)),
            epochs(math.fsum(phase.epochs - phase.teacher_epochs for phase in phases)),
            f"{math.fsum(phase.images for phase in phases):,.0f}",
            f"{math.fsum(phase.steps for phase in phases):,.0f}",
            unbroken(duration(None if None in seconds else math.fsum(second for second in seconds if second))),
        )
    )


def starts_table(comparison: Comparison) -> Table:
    """Float starts by network, each counted once however many trials share it, and the teacher."""
    header = ("Float start", "How many", "Epochs each", "Images each", "MACs each", "Time each")
    own: dict[tuple[str, bool], dict[str, tuple[StartSpec, Mapping[str, Any] | None]]] = {}
    for outcome in comparison.outcomes:
        for start in outcome.trial.spec.starts:
            taught = start == outcome.trial.spec.teacher
            kept = own.setdefault((start.model.name, taught), {})
            if kept.get(start.key, (start, None))[1] is None:
                kept[start.key] = (start, outcome.observed if outcome.record else None)
    table = Table(header, tuple(_start_row(*key, list(starts.values())) for key, starts in own.items()))
    return table.without(table.empty_columns() & {"Images each", "MACs each"})


def _start_row(model: str, taught: bool, starts: Sequence[tuple[StartSpec, Mapping[str, Any] | None]]) -> Row:
    """`2 of 5` where no trial of some starts has a record; what a teacher took stands in no record."""
    name = f"{model}, the teacher" if taught else model
    if (pretraining := starts[0][0].pretraining) is None:
        return Row((name, f"published weights {starts[0][0].model.weights}", *[NOTHING] * 4))
    there = [observed for _, observed in starts if observed is not None]
    many = str(len(starts)) if len(there) == len(starts) else f"{len(there)} of {len(starts)}"

    def mean(what: str) -> float | None:
        known = [observed[what] for observed in there if observed.get(what) is not None]
        return math.fsum(known) / len(known) if known and not taught else None

    images, macs, seconds = mean("start_images"), mean("start_macs"), mean("start_seconds")
    counted = (NOTHING if images is None else f"{images:,.0f}", NOTHING if macs is None else scaled(macs))
    return Row((name, many, f"{pretraining.epochs:g}", *counted, duration(seconds)))


def phase_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per trial and phase, then what is shown and not charged, float pretraining last; None where not known."""
    return [row for outcome in comparison.outcomes for row in _of_trial(outcome)]


def _of_trial(outcome: Outcome) -> Iterator[dict[str, Any]]:
    account = account_of(outcome)
    if account is None:
        return
    trial, spec = outcome.trial, outcome.trial.spec
    identity: dict[str, Any] = {"id": trial.id, "model": trial.model, "row": trial.row, "ceiling": trial.ceiling}
    identity |= {"seed": spec.seed, "draw": spec.draw}
    free = spec.compute.free_search
    for entry in (*account.phases, *account.shown):
        phase = entry in account.phases
        yield {
            **identity,
            "phase": entry.name,
            "charged": phase and not (free and is_search(entry.name)),
            "steps": entry.steps,
            "images": entry.images,
            "macs": entry.macs,
            "macs_per_image": entry.macs_per_image,
            "student_macs": entry.macs - entry.teacher_macs,
            "teacher_macs": entry.teacher_macs,
            "recipe_epochs": entry.epochs,
            "seconds": _seconds(outcome, entry),
            "pretraining_epochs": None,
            "start": None,
        }
    if spec.pretraining is not None:
        images, macs, seconds = (outcome.observed.get(f"start_{what}") for what in ("images", "macs", "seconds"))
        yield {
            **identity,
            "phase": "pretraining",
            "charged": False,
            "steps": None,
            "images": images,
            "macs": macs,
            "macs_per_image": macs // images if images and macs else None,
            "student_macs": macs,
            "teacher_macs": None,
            "recipe_epochs": macs / account.epoch_macs if macs else None,
            "seconds": seconds,
            "pretraining_epochs": spec.pretraining.epochs,
            "start": spec.start.key,
        }
