"""The compute account of a trial: what it was granted, what each phase spent, and what is shown but not charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.findings.comparison import Outcome


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
