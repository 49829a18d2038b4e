"""Measured records against the shipped reference records of the same trials."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.planning import Plan, Trial
from benchmarks.records.archive import SUFFIX, Archive, archives_in, open_records, with_parts
from benchmarks.records.record import Record, RecordError, RecordSource
from benchmarks.suites.spec import canonical_json
from reports.numbers.display import percent
from reports.numbers.statistics import Interval, prediction_interval
from reports.verification.claims import FAILED, Status, Verdict, wider

REFERENCE = Path(__file__).parents[1] / "reference"
"""Archives of records that are shipped with this repository."""

SAME = (
    "processor",
    "torch",
    "torchvision",
    "numba",
    "llvmlite",
    "numpy",
    "scikit-learn",
    "scipy",
    "device",
    "threads",
    "quantizer",
    "compile",
)
"""Parts of the environment that must be alike for results to be alike to the bit; older records lack some of them."""

TO_THE_BIT = "to the bit"


@dataclass(frozen=True)
class Check:
    """One trial of ours beside its reference. expected: where our accuracy should lie; None if bits were compared."""

    trial: Trial
    status: Status
    why: str
    ours: float | None = None
    theirs: float | None = None
    expected: Interval | None = None


def shipped(suite: str) -> RecordSource:
    """The records of a suite that are shipped here; none for other suites. Raises RecordError for a damaged archive."""
    place = REFERENCE / f"{suite}{SUFFIX}"
    return open_records(place) if with_parts(place) else Archive(place)


def checked(plan: Plan, records: RecordSource, reference: RecordSource, beside: Path = REFERENCE) -> list[Check]:
    """A check of every trial that has a reference record. Raises RecordError for a damaged reference.

    Where another run of a trial should lie is told by the reference's runs of it from all seeds, whether or not the
    plan has them, and by those of the archives in `beside`, where the same trials are part of a larger suite.
    """
    references = {trial.id: record for trial in plan.trials if (record := reference.get(trial.id))}
    if not references:
        return []
    larger = (open_records(place).others(()) for place in archives_in(beside))
    runs = _runs(chain(reference, *larger))
    return [
        _check(trial, _readable(trial, records), references[trial.id], runs[_but_seed(references[trial.id])])
        for trial in plan.trials
        if trial.id in references
    ]


def _readable(trial: Trial, records: RecordSource) -> Record | str | None:
    try:
        return records.get(trial.id)
    except RecordError as error:
        return str(error)


def _runs(records: Iterable[Record]) -> dict[str, list[float]]:
    """Specification but for the seed -> accuracies of the ok runs of it; of each trial the first record counts."""
    first = {record.id: record for record in reversed(list(records))}
    found: dict[str, list[float]] = defaultdict(list)
    for record in first.values():
        if record.status == "ok":
            found[_but_seed(record)].append(_accuracy(record))
    return found


def _but_seed(record: Record) -> str:
    """What runs of one cell share; other draws of a seed are no other runs."""
    return canonical_json({key: value for key, value in record.spec.items() if key != "seed"})


def _check(trial: Trial, ours: Record | str | None, theirs: Record, cell: Sequence[float]) -> Check:
    if ours is None:
        return Check(trial, "not run", "no record yet")
    if isinstance(ours, str):
        return Check(trial, "not reproduced", ours)
    if ours.status != "ok" or theirs.status != "ok":
        alike = ours.status == theirs.status
        why = f"{ours.status}, the reference {theirs.status}"
        return Check(trial, "reproduced" if alike else "not reproduced", why)
    values = _accuracy(ours), _accuracy(theirs)
    if canonical_json(ours.result) == canonical_json(theirs.result):
        return Check(trial, "reproduced", TO_THE_BIT, *values)  # whatever the environments
    differing = _differing(ours, theirs)
    if not differing and on_cpu(ours):
        why = f"not to the bit, in the same environment: {', '.join(_parts(ours, theirs))}"
        return Check(trial, "not reproduced", why, *values)
    other = f"other {', '.join(differing)}" if differing else "only CPUs repeat themselves to the bit"
    predicted = prediction_interval(cell)
    if predicted is None:
        return Check(trial, "not run", f"{other}, and one reference run gives no prediction interval", *values)
    expected = wider(predicted, values[1], int(theirs.result["metrics"]["test_images"]))
    why = f"prediction interval of {len(cell)} reference runs; {other}"
    if values[0] in expected:
        return Check(trial, "reproduced", why, *values, expected)
    status: Status = "suspiciously better" if values[0] > expected.high else "not reproduced"
    return Check(trial, status, why, *values, expected)


def _differing(ours: Record, theirs: Record) -> list[str]:
    first, second = (record.observed.get("environment") or {} for record in (ours, theirs))
    return [key for key in SAME if key in first and key in second and first[key] != second[key]]


def on_cpu(record: Record) -> bool:
    return (record.observed.get("environment") or {}).get("device") == "cpu"


def _parts(ours: Record, theirs: Record) -> list[str]:
    """Parts of the result that differ."""
    keys = sorted({*ours.result, *theirs.result})
    return [key for key in keys if _json(ours.result.get(key)) != _json(theirs.result.get(key))]


def _json(value: Any) -> str:
    return canonical_json(value)


def _accuracy(record: Record) -> float:
    return float(record.result["metrics"]["test_accuracy"])


def lines(checks: Sequence[Check], verdicts: Sequence[Verdict]) -> Iterable[str]:
    """What `verify` prints: everything that is not well, then the counts."""
    for check in checks:
        if check.status in FAILED:
            figures = ""
            if check.ours is not None and check.theirs is not None:
                figures = f" {percent(check.ours)} %, the reference {percent(check.theirs)} %"
                if check.expected:
                    figures += f", expected {percent(check.expected.low)} to {percent(check.expected.high)}"
            yield f"{check.status}: {check.trial.label}:{figures} ({check.why})"
    for verdict in verdicts:
        measured = "" if verdict.measured is None else f", measured {percent(verdict.measured)} %"
        claim = verdict.claim
        yield f"{verdict.status}: claim {claim.id}: {claim.top1:.2f} %{measured} {verdict.why}".rstrip()
    bits = sum(check.why == TO_THE_BIT for check in checks)
    yield f"reference records: {_counted([check.status for check in checks])}" + (
        f" ({bits} to the bit)" if bits else ""
    )
    if unheld := [check for check in checks if check.status == "not run" and check.ours is not None]:
        yield f"of them there, but held against nothing: {len(unheld)} ({unheld[0].why})"
    yield f"published claims: {_counted([verdict.status for verdict in verdicts])}"


def _counted(statuses: Sequence[Status]) -> str:
    counts = Counter(statuses)
    return ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "none for this suite"
