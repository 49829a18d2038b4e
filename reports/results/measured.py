"""Shipped records as they are, beside the rows of the suite that asked for them.

A method's version is part of a trial's id, so that a plan of today does not name records of an earlier version. Here a
record finds its trial by what it was asked, whatever versions it carries, and the page says which ones these are.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from benchmarks.planning import Plan, Trial
from benchmarks.records.record import Record
from benchmarks.suites.rows import options_of
from benchmarks.suites.spec import MethodSpec, canonical_json
from methods import load_method
from reports.findings.comparison import Comparison, gather

GRIDS = "grids"


class ResultsError(Exception):
    """Records or a page from which no page can be made; the message says what to do."""


@dataclass(frozen=True)
class Held:
    """Records in memory, by the id of their trial."""

    records: Mapping[str, Record]

    def get(self, trial_id: str) -> Record | None:
        return self.records.get(trial_id)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def others(self, trial_ids: Container[str]) -> Iterable[Record]:
        return (record for record in self.records.values() if record.id not in trial_ids)

    def disputed(self) -> Iterable[Record]:
        return ()


@dataclass(frozen=True)
class Change:
    """What records have otherwise than today's trials. row: the row, or for GRIDS the network.

    what: `version` or `protocol`, an option of the method, or GRIDS, the kinds and ties of the network's layers.
    """

    row: str
    what: str
    then: Any
    today: Any


@dataclass(frozen=True)
class Measured:
    """A comparison of records as they are. changes: each once, by row. left_out: records that fit no trial."""

    comparison: Comparison
    changes: tuple[Change, ...]
    left_out: tuple[Record, ...]


def as_measured(planned: Plan, records: Sequence[Record]) -> Measured:
    """The plan's trials, each with the versions and options of the record that answers it.

    A record answers a trial that asks the same of the same network, ceiling, seed and draw, of the same method with the
    options that the suite names for the row. Protocol, version, options that the suite leaves to the method and the
    grids of the network's layers may differ. Of several records of one trial the newest version counts. Raises
    ResultsError where a record fits two rows equally well, ComparisonError where records cannot stand in one table.
    """
    answers, left_out = _answers(planned, records)
    pairs = [(trial, answers.get(trial.id)) for trial in planned.trials]
    trials = tuple(replace(trial, spec=record.trial_spec) if record else trial for trial, record in pairs)
    changes = dict.fromkeys(change for trial, record in pairs if record for change in _changes(trial, record))
    held = Held({record.id: record for record in answers.values()})
    return Measured(gather(replace(planned, trials=trials), held), tuple(changes), left_out)


def _answers(planned: Plan, records: Sequence[Record]) -> tuple[dict[str, Record], tuple[Record, ...]]:
    """The record of every trial that has one, by the trial's id, and the records that no trial asked for."""
    asked: dict[str, list[Trial]] = {}
    for trial in planned.trials:
        asked.setdefault(_question(trial.spec.model_dump(mode="json")), []).append(trial)
    stated = {
        entry.row: {key: value for key, value in options_of(entry).items() if key in entry.options}
        for entry in planned.suite.methods
    }
    answers: dict[str, Record] = {}
    left_out = []
    today = {trial.spec.kinds for trial in planned.trials}
    newest = [(-(spec := record.trial_spec).method.version, spec.kinds not in today) for record in records]
    for _, record in sorted(zip(newest, records, strict=True), key=lambda pair: pair[0]):
        nearest = _nearest(record, asked.get(_question(record.trial_spec.model_dump(mode="json")), []), stated)
        if nearest is None or nearest.id in answers:
            left_out.append(record)
        else:
            answers[nearest.id] = record
    return answers, tuple(left_out)


def _question(spec: Mapping[str, Any]) -> str:
    """What a specification asks, but for protocols, its method's options and the grids of its network's layers."""
    parts = {key: value for key, value in spec.items() if key not in ("protocol", "kinds")}
    if teacher := parts.get("teacher"):
        parts["teacher"] = {key: value for key, value in teacher.items() if key != "protocol"}
    return canonical_json({**parts, "method": spec["method"]["name"]})


def _nearest(record: Record, trials: Sequence[Trial], stated: Mapping[str, Mapping[str, Any]]) -> Trial | None:
    """The trial with the options of the record; what a record lacks it has by default."""
    options = _filled(record.trial_spec.method)
    fitting = {
        trial.id: len(_differing(trial.spec.method.options, options))
        for trial in trials
        if all(options.get(key) == value for key, value in stated[trial.row].items())
    }
    best = [trial for trial in trials if fitting.get(trial.id) == min(fitting.values(), default=None)]
    if len(best) > 1:
        rows = " and ".join(trial.row for trial in best)
        raise ResultsError(f"record {record.id} fits {rows} equally well; name the options of both rows in the suite")
    return best[0] if best else None


def _filled(method: MethodSpec) -> dict[str, Any]:
    """The options with today's defaults for those that came later; as they are where one of them is gone today."""
    try:
        return load_method(method.name).Options.model_validate(method.options).model_dump(mode="json")
    except ValidationError:
        return method.options


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]


def _changes(trial: Trial, record: Record) -> Iterable[Change]:
    then, today = record.trial_spec.method, trial.spec.method
    if then.version != today.version:
        yield Change(trial.row, "version", then.version, today.version)
    for key in _differing(then.options, today.options):
        yield Change(trial.row, key, _told(then.options.get(key)), _told(today.options.get(key)))
    if record.trial_spec.kinds != trial.spec.kinds:
        yield Change(trial.model, GRIDS, record.trial_spec.kinds, trial.spec.kinds)
    if record.trial_spec.protocol != trial.spec.protocol:
        yield Change(trial.row, "protocol", record.trial_spec.protocol, trial.spec.protocol)


def _told(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else canonical_json(value)
