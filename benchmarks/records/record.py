"""What a trial leaves behind: one JSON file, complete or absent. Free of torch.

A record has `spec` (what was asked), `result` (what came out; bit-identical on the same kind of machine) and
`observed` (seconds, memory, versions: differs from run to run), with a checksum over the first two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from benchmarks.files import read_regular, write_text_atomic
from benchmarks.suites.spec import TrialSpec, canonical_json

SCHEMA = 1

DISPUTED = "disputed"

LARGEST_RECORD = 8 * 2**20
"""Bytes; records of today's suites have 100 kB at most."""

Status = Literal["ok", "refused", "over_ceiling", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)


class RecordError(Exception):
    """A record that is truncated, altered, or of another schema; the message names the file and what to do."""


@dataclass(frozen=True)
class Record:
    """One finished trial. `spec` is its TrialSpec as JSON; `benchmarks/trials/trial.py` says what `result` holds."""

    id: str
    spec: dict[str, Any]
    result: dict[str, Any]
    observed: dict[str, Any]

    @property
    def status(self) -> Status:
        status: Status = self.result["status"]
        return status

    @property
    def trial_spec(self) -> TrialSpec:
        return TrialSpec.model_validate(self.spec)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(canonical_json({"spec": self.spec, "result": self.result}).encode()).hexdigest()

    def to_json(self) -> str:
        body = {"schema": SCHEMA, "id": self.id, "checksum": self.checksum}
        return json.dumps({**body, "spec": self.spec, "result": self.result, "observed": self.observed}) + "\n"


def read_record(path: Path) -> Record:
    """Raises RecordError unless the file is a whole, unaltered record of this schema."""
    try:
        text = read_regular(path, LARGEST_RECORD)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_record(text, str(path))


def parse_record(text: bytes, path: str) -> Record:
    """The record in a file's content; `path` is for messages. Raises RecordError as `read_record`."""
    advice = "move it away and run the suite again"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: truncated or not JSON ({error}); {advice}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise RecordError(f"{path}: record of schema {found}, this version reads {SCHEMA}; {advice}")
    try:
        record = Record(data["id"], data["spec"], data["result"], data["observed"])
        if not all(isinstance(part, dict) for part in (record.spec, record.result, record.observed)):
            raise TypeError("spec, result and observed must be objects")
        intact = record.checksum == data["checksum"] and record.status in STATUSES
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not a whole record ({error!r}); {advice}") from error
    if not intact:
        raise RecordError(f"{path}: altered after it was written (its checksum does not match); {advice}")
    return record


def differences(first: Record, second: Record) -> Iterator[tuple[str, str, str]]:
    """What two records of one trial say differently: test accuracy, then every part of their environments."""
    yield "test accuracy", _accuracy(first), _accuracy(second)
    ours, theirs = (record.observed.get("environment") or {} for record in (first, second))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            yield key, str(ours.get(key)), str(theirs.get(key))


def _accuracy(record: Record) -> str:
    accuracy = (record.result.get("metrics") or {}).get("test_accuracy")
    return f"{100 * accuracy:.2f} %" if isinstance(accuracy, int | float) else record.status


class RecordSource(Protocol):
    """Where records are read from: a folder (`Records`) or an archive (`benchmarks/records/archive.py`)."""

    def get(self, trial_id: str) -> Record | None:
        """The record of a trial, or None if there is none. Raises RecordError for a damaged one."""

    def __iter__(self) -> Iterator[Record]:
        """All records, by id. Raises RecordError for a damaged one."""

    def others(self, trial_ids: Container[str]) -> Iterable[Record]:
        """Whole records of trials that are none of these."""

    def disputed(self) -> Iterable[Record]:
        """Other results of trials that have one."""


@dataclass(frozen=True)
class Records:
    """A folder of records, `<id>.json` each; what others measured differently lies in its folder `disputed`."""

    folder: Path

    def path(self, trial_id: str) -> Path:
        return self.folder / f"{trial_id}.json"

    def get(self, trial_id: str) -> Record | None:
        """The record of a trial, or None if there is none yet. Raises RecordError for a damaged one."""
        path = self.path(trial_id)
        if not path.exists():
            return None
        record = read_record(path)
        if record.id != trial_id:
            raise RecordError(f"{path}: holds the record of trial {record.id}; restore the file's name")
        return record

    def put(self, record: Record) -> None:
        write_text_atomic(self.path(record.id), record.to_json())

    def dispute(self, record: Record) -> None:
        """Keep another result of a trial that has one, beside it."""
        write_text_atomic(self.folder / DISPUTED / f"{record.id}-{record.checksum[:8]}.json", record.to_json())

    def disputed(self) -> Iterator[Record]:
        """Whole records that `dispute` has kept."""
        for path in sorted((self.folder / DISPUTED).glob("*.json")):
            with suppress(RecordError):
                yield read_record(path)

    def __iter__(self) -> Iterator[Record]:
        return (read_record(path) for path in sorted(self.folder.glob("*.json")))

    def others(self, trial_ids: Container[str]) -> Iterator[Record]:
        """Whole records of trials that are none of these."""
        for path in sorted(self.folder.glob("*.json")):
            if path.stem not in trial_ids:
                with suppress(RecordError):
                    yield read_record(path)
