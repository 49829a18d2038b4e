"""The compute account of a trial: what it was granted, what each phase spent, and what is shown but not charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.findings.comparison import Comparison, Outcome
from reports.findings.tables import Row, Table
from reports.numbers import display


@dataclass(frozen=True)
class Entry:
    """One phase, or one thing shown. epochs: its MACs over those of one recipe epoch; teacher_macs: part of them."""

    name: str
    images: int
    macs: int
    epochs: float
    steps: int | None = None
    macs_per_image: int | None = None
    teacher_macs: int = 0


@dataclass(frozen=True)
class Account:
    """epoch_macs: MACs of one recipe epoch, the unit of `epochs`."""

    granted_macs: int
    epoch_macs: int
    phases: tuple[Entry, ...]
    shown: tuple[Entry, ...]

    @property
    def granted_epochs(self) -> float:
        return self.granted_macs / self.epoch_macs

    @property
    def spent_macs(self) -> int:
        return sum(entry.macs for entry in self.phases)

    @property
    def spent_epochs(self) -> float:
        return self.spent_macs / self.epoch_macs

    def teacher_epochs_of(self, prefix: str) -> float:
        """Of `epochs_of`, what the teacher took."""
        return sum(entry.teacher_macs for entry in self.phases if entry.name.startswith(prefix)) / self.epoch_macs

    def epochs_of(self, prefix: str) -> float:
        """Recipe epochs of the phases whose name starts so: `search` or `finetune`."""
        return sum(entry.epochs for entry in self.phases if entry.name.startswith(prefix))


def account_of(outcome: Outcome) -> Account | None:
    """The trial's account; None where its record has none, as for trials that failed before the first step."""
    data: Mapping[str, Any] = outcome.result.get("account") or {}
    if not data.get("epoch_macs"):
        return None
    epoch = int(data["epoch_macs"])
    return Account(
        int(data.get("granted_macs", 0)),
        epoch,
        tuple(_entry(row, epoch) for row in data.get("phases", ())),
        tuple(_entry(row, epoch) for row in data.get("shown", ())),
    )


def _entry(row: Mapping[str, Any], epoch_macs: int) -> Entry:
    macs = int(row.get("macs", 0))
    steps, price = row.get("steps"), row.get("macs_per_image")
    teacher = int(row.get("teacher_macs", 0))
    return Entry(str(row["name"]), int(row.get("images", 0)), macs, macs / epoch_macs, steps, price, teacher)


ACCOUNT_WORDS = ("Trial", "Spent by phase, MACs", "Shown, not charged, MACs")
ACCOUNT_NUMBERS = (
    "Granted, epochs",
    "Search, epochs",
    "Fine-tuning, epochs",
    "Spent, epochs",
    "Search, time",
    "Fine-tuning, time",
    "In all, time",
    "Peak memory",
)


def account_table(comparison: Comparison) -> Table:
    """Per trial: compute granted and spent in recipe epochs, time and memory beside, then MACs by phase."""
    rows = [row for outcome in comparison.outcomes if (row := _account_row(outcome))]
    return Table((ACCOUNT_WORDS[0], *ACCOUNT_NUMBERS, *ACCOUNT_WORDS[1:]), tuple(rows), frozenset(ACCOUNT_NUMBERS))


def _account_row(outcome: Outcome) -> Row | None:
    account = account_of(outcome)
    if account is None:
        return None
    seconds = outcome.observed.get("seconds") or {}
    by_phase = outcome.observed.get("phase_seconds") or {}
    phases = [_phase_text(entry, by_phase.get(entry.name)) for entry in account.phases]
    spent = (account.granted_epochs, account.epochs_of("search"), account.epochs_of("finetune"), account.spent_epochs)
    cells = (
        outcome.trial.label + (" · search stopped" if outcome.search_stopped else ""),
        *map(display.epochs, spent),
        *(display.unbroken(display.duration(seconds.get(part))) for part in ("search", "finetune", "total")),
        _memory_text(outcome),
        "; ".join(phases),
        ", ".join(f"{entry.name} {display.scaled(entry.macs)} for {entry.images:,} images" for entry in account.shown),
    )
    return Row(cells)


def _memory_text(outcome: Outcome) -> str:
    """`2.10 GiB`, with `, GPU 5.30 GiB` behind it where the trial had one."""
    text = display.unbroken(display.size(outcome.observed.get("peak_memory_bytes")))
    gpu = outcome.observed.get("peak_gpu_memory_bytes")
    return text if gpu is None else f"{text}, {display.unbroken(f'GPU {display.size(gpu)}')}"


def _phase_text(entry: Entry, seconds: float | None) -> str:
    """`search/hessian 1.50 G in 10 steps, 640 images, 0.75 epochs, 3.1 s, the teacher 0.20 G of it`"""
    parts = [f"{entry.name} {display.scaled(entry.macs)} in {entry.steps} steps", f"{entry.images:,} images"]
    parts.append(f"{display.epochs(entry.epochs)} epochs")
    if seconds is not None:
        parts.append(display.duration(seconds))
    if entry.teacher_macs:
        parts.append(f"the teacher {display.scaled(entry.teacher_macs)} of it")
    return ", ".join(parts)
