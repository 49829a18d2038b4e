"""The compute account phase by phase, student and teacher apart, and what float starts took, which is not charged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.spec import StartSpec
from reports.account import Account, Entry, account_of
from reports.comparison import Comparison, Outcome
from reports.display import NOTHING, duration, epochs, scaled, unbroken
from reports.tables import Row, Table

FINETUNE = "finetune"


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
    """What one row spent on one network."""

    model: str
    row: str
    trials: int
    granted_epochs: float
    phases: tuple[Phase, ...]


def spendings(comparison: Comparison) -> list[Spending]:
    """Per network and row, over all ceilings; rows without an account are left out."""
    found: dict[tuple[str, str], list[tuple[Outcome, Account]]] = {}
    for cell in comparison.cells:
        for outcome in cell.ok:
            if account := account_of(outcome):
                found.setdefault((cell.model, cell.row), []).append((outcome, account))
    return [Spending(*key, len(own), own[0][1].granted_epochs, _phases(own)) for key, own in found.items()]


def _phases(found: Sequence[tuple[Outcome, Account]]) -> tuple[Phase, ...]:
    names = dict.fromkeys(entry.name for _, account in found for entry in account.phases)
    return tuple(_phase(name, found) for name in sorted(names, key=lambda name: not is_search(name)))


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
    by_phase: Mapping[str, float] = outcome.observed.get("phase_seconds") or {}
    return by_phase.get(entry.name)


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
    header = ("Float start", "How many", "Epochs each", "Time each")
    own: dict[tuple[str, bool], dict[str, tuple[StartSpec, float | None]]] = {}
    for outcome in comparison.outcomes:
        seconds = outcome.observed.get("start_seconds")
        for start in outcome.trial.spec.starts:
            taught = start == outcome.trial.spec.teacher
            kept = own.setdefault((start.model.name, taught), {})
            if kept.get(start.key, (start, None))[1] is None:
                kept[start.key] = (start, None if taught else seconds)
    return Table(header, tuple(_start_row(*key, list(starts.values())) for key, starts in own.items()))


def _start_row(model: str, taught: bool, starts: Sequence[tuple[StartSpec, float | None]]) -> Row:
    name = f"{model}, the teacher" if taught else model
    if (pretraining := starts[0][0].pretraining) is None:
        return Row((name, f"published weights {starts[0][0].model.weights}", NOTHING, NOTHING))
    known = [seconds for _, seconds in starts if seconds is not None]
    time = duration(math.fsum(known) / len(known)) if known else NOTHING
    return Row((name, str(len(starts)), f"{pretraining.epochs:g}", time))


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
        unknown = dict.fromkeys(
            ("steps", "images", "macs", "macs_per_image", "student_macs", "teacher_macs", "recipe_epochs")
        )
        seconds = outcome.observed.get("start_seconds")
        more = {"seconds": seconds, "pretraining_epochs": spec.pretraining.epochs, "start": spec.start.key}
        yield {**identity, "phase": "pretraining", "charged": False, **unknown, **more}
