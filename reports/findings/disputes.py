"""Trials that were measured twice with different results: both, side by side, with what differs of the machines."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.records.record import differences
from reports.findings.comparison import Comparison
from reports.findings.tables import Row, Table

READING = (
    "The result that was recorded first is used, here and in every table; the other lies in the folder disputed of "
    "the records. To use the other, move it over the first."
)


def disputes_table(comparison: Comparison) -> Table:
    """Per trial with two results: test accuracy, then every part of the environments that differs."""
    return Table(("Trial", "What", "Counts", "Other"), tuple(_rows(comparison)))


def _rows(comparison: Comparison) -> Iterable[Row]:
    counted = {outcome.trial.id: outcome for outcome in comparison.outcomes}
    for other in comparison.disputed:
        outcome = counted[other.id]
        assert outcome.record is not None
        for number, (what, first, second) in enumerate(differences(outcome.record, other)):
            yield Row(("" if number else outcome.trial.label, what, first, second))
