"""Where records come from: what forbids to compare them, and what only deserves a warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.planning import Plan, Trial
from benchmarks.records.record import Record, RecordSource
from benchmarks.suites.spec import PROTOCOL, canonical_json
from benchmarks.untrusted import COMMIT

Found = Sequence[tuple[Trial, Record]]


class ComparisonError(Exception):
    """Records that cannot be compared: of other protocols, or from other data."""


def older_records(plan: Plan, records: RecordSource) -> tuple[dict[str, str], list[str]]:
    """What to say of records of other versions: by id of the trial that one would be of, and as warnings.

    A version is the protocol's or, under this protocol, the method's.
    """
    trials = {_but_versions(trial.spec.model_dump(mode="json")): trial for trial in plan.trials}
    reasons: dict[str, str] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for record in records.others({trial.id for trial in plan.trials}):
        trial = trials.get(_but_versions(record.spec))
        if (protocol := record.spec.get("protocol")) != PROTOCOL:
            there, here = f"protocol {protocol}", str(PROTOCOL)
        elif trial is not None:
            there, here = f"{trial.row}'s version {record.spec['method']['version']}", str(trial.spec.method.version)
        else:
            continue
        counted[there, here] += 1
        if trial is not None:
            reasons[trial.id] = f"there is only a record of {there}; this version is {here}"
    warnings = [
        f"{number} record{'s' if number > 1 else ''} of {there} not used: this version is {here}"
        for (there, here), number in sorted(counted.items())
    ]
    return reasons, warnings


def _but_versions(spec: Mapping[str, Any]) -> str:
    """What a specification asks for, whichever protocol it and its teacher are of, and whichever version its method."""
    parts = {key: value for key, value in spec.items() if key != "protocol"}
    if isinstance(teacher := parts.get("teacher"), Mapping):
        parts["teacher"] = {key: value for key, value in teacher.items() if key != "protocol"}
    if isinstance(method := parts.get("method"), Mapping):
        parts["method"] = {key: value for key, value in method.items() if key != "version"}
    return canonical_json(parts)


def check_comparable(found: Found) -> None:
    """Raises ComparisonError where records were made under several protocols or from several data sets."""
    protocols = _groups(found, lambda trial, record: record.spec.get("protocol"))
    expected = {trial.spec.protocol for trial, _ in found}
    if len(protocols) > 1 or set(protocols) - expected:
        raise ComparisonError(
            f"records of several protocol versions cannot be compared: {_listing(protocols)}; this version is "
            f"{', '.join(map(str, sorted(expected)))}; move the others away and run the suite again"
        )
    digests = _groups(found, lambda trial, record: record.observed.get("data_digest"))
    if len(digests) > 1:
        raise ComparisonError(
            f"records were made from different data and cannot be compared: {_listing(digests)}; check the data "
            "folders, move the records of the wrong one away and run the suite again"
        )


def provenance_warnings(found: Found) -> list[str]:
    """Mixed commits, uncommitted changes, devices and quantizer paths, and float weights that differ and should not."""
    commits = _groups(found, lambda trial, record: _environment(record).get("commit"))
    devices = _groups(found, lambda trial, record: _environment(record).get("device"))
    paths = _groups(found, lambda trial, record: _path(_environment(record)))
    dirty = sum(bool(_environment(record).get("dirty")) for _, record in found)
    warnings = []
    if len(commits) > 1:
        short = {str(commit)[:10]: trials for commit, trials in commits.items()}
        warnings.append(f"records of several commits stand in one table: {_listing(short)}")
    if dirty:
        warnings.append(f"{dirty} of {len(found)} records come from a working tree with uncommitted changes")
    if len(devices) > 1:
        warnings.append(f"records of several devices stand in one table: {_listing(devices)}; seconds do not compare")
    if len(paths) > 1:
        warnings.append(
            f"records of several quantizer paths stand in one table: {_listing(paths)}; they round otherwise, and "
            "training magnifies that as it does another seed"
        )
    return warnings + _weights_warnings(found)


def _path(environment: Mapping[str, Any]) -> str | None:
    """Which quantizer ran; older records, from when there was only one, do not say."""
    path = environment.get("quantizer")
    return f"{path}, compiled" if path and environment.get("compile") else path


def _weights_warnings(found: Found) -> list[str]:
    """Rows are paired by seed only if they started from the same float weights."""
    starts: dict[tuple[str, int], set[str]] = {}
    for trial, record in found:
        if digest := record.observed.get("weights_digest"):
            starts.setdefault((trial.model, trial.spec.seed), set()).add(str(digest))
    return [
        f"{model}, seed {seed}: trials started from {len(digests)} different sets of float weights; "
        "those are not paired"
        for (model, seed), digests in sorted(starts.items())
        if len(digests) > 1
    ]


def environments(records: Iterable[Record]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Every key of the records' environments with its values, commonest first, and how many records have each."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in _environment(record).items():
            values.setdefault(key, Counter())["unknown" if value is None else str(value)] += 1
    return [(key, sorted(counts.items(), key=lambda item: (-item[1], item[0]))) for key, counts in values.items()]


def commits_of(records: Iterable[Record]) -> list[str]:
    """The commits that records name; whatever is not forty hexadecimal digits is no commit."""
    named = {str(_environment(record).get("commit")) for record in records}
    return sorted(name for name in named if COMMIT.fullmatch(name))


def _environment(record: Record) -> Mapping[str, Any]:
    return record.observed.get("environment") or {}


def _groups(found: Found, key: Callable[[Trial, Record], Any]) -> dict[Any, list[Trial]]:
    """Trials by what `key` finds in their records; None, from trials that failed early, is left out."""
    groups: dict[Any, list[Trial]] = {}
    for trial, record in found:
        if (value := key(trial, record)) is not None:
            groups.setdefault(value, []).append(trial)
    return groups


def _listing(groups: Mapping[Any, Sequence[Trial]]) -> str:
    """`1 (3 records, such as resnet18 · hawq · uniform:w4a4 · seed 0), 2 (...)`"""
    counted = [
        f"{value} ({len(trials)} record{'s' if len(trials) > 1 else ''}, such as {trials[0].label})"
        for value, trials in sorted(groups.items(), key=lambda item: str(item[0]))
    ]
    return ", ".join(counted)
