"""How a suite's trials ended, where they ran, and what the report as a whole may claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.records.record import Record
from reports.findings.comparison import STATE_WORDS, Comparison
from reports.findings.provenance import environments
from reports.findings.summary import ENOUGH_SEEDS, Summary, comparisons_called
from reports.findings.tables import Row, Table
from reports.numbers import display

FREE_SEARCH = (
    "Searches are free here, as in most papers: what they spend is counted, and fine-tuning gets the whole grant all "
    "the same, so that searching rows have more compute than the others."
)


def ended(comparison: Comparison) -> list[tuple[str, int]]:
    """How many trials ended in each state, in the order of STATE_WORDS; states of no trial are left out."""
    states = [outcome.state for outcome in comparison.outcomes]
    return [(words, states.count(state)) for state, words in STATE_WORDS.items() if state in states]


def standing(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    """One sentence: what may be concluded from these results, given their seeds."""
    most = max((len(summary.cell.accuracies) for summary in summaries), default=0)
    if most == 0:
        return "There are no results yet."
    if most == 1:
        return "One seed per cell: no ranking. Differences between rows may be nothing but chance."
    if most < ENOUGH_SEEDS:
        return f"Fewer than {ENOUGH_SEEDS} seeds per cell: nothing here is called a difference."
    tests = comparisons_called(tuple(summaries))
    if tests == 0:
        return "No row has enough seeds in common with uniform LSQ: nothing here is called a difference."
    return (
        f"{display.count(tests, 'paired difference')} to uniform LSQ tested against zero at 95 %, one by one and not "
        f"corrected for their number: about {tests * 0.05:.1f} of them would be called a difference if there were none."
    )


def absent_table(comparison: Comparison) -> Table:
    """Every trial that is not ok, with its state and the reason."""
    absent = [outcome for outcome in comparison.outcomes if not outcome.ok]
    rows = (Row((outcome.trial.label, STATE_WORDS[outcome.state], outcome.reason)) for outcome in absent)
    return Table(("Trial", "State", "Reason"), tuple(rows))


def tracebacks(comparison: Comparison) -> list[tuple[str, str]]:
    """Trial and traceback of every failure whose record keeps one."""
    found = ((outcome.trial.label, outcome.observed.get("traceback")) for outcome in comparison.outcomes)
    return [(label, str(text)) for label, text in found if text]


def environments_table(records: Iterable[Record]) -> Table:
    """Every key of the records' environments with its values, and of several values how many records have each."""
    rows = []
    for key, values in environments(records):
        counted = [f"{value} ({number} records)" if len(values) > 1 else value for value, number in values]
        rows.append(Row((key, "; ".join(counted))))
    return Table(("What", "Value"), tuple(rows))


def audit_line(comparison: Comparison) -> str:
    """What the audits found: whether every tensor's codes fit into the bits of its layer."""
    audits = [row for outcome in comparison.outcomes if outcome.ok for row in outcome.result.get("audit") or ()]
    if not audits:
        return "No audit of codes is recorded."
    wide = sum(row["levels"] > 2 ** row["bits"] for row in audits)
    found = f"{wide} hold more codes than their bits allow" if wide else "none holds more codes than its bits allow"
    return f"Codes of {len(audits):,} tensors were counted in the final networks; {found}."
