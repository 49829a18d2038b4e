"""What a trial leaves behind: one JSON file, complete or absent.

A record has `spec` (what was asked), `result` (what came out; bit-identical on the same kind of machine) and
`observed` (seconds, memory, versions: differs from run to run). Its result digest is of the first two, which is what
is compared; its checksum is of everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from benchmarks.files import read_regular, write_text_atomic
from benchmarks.records.schema import Status, problem
from benchmarks.suites.spec import TrialSpec, canonical_json, digest, full_digest

SCHEMA = 2
READABLE = (1, SCHEMA)
"""Schema 1 had a checksum of spec and result alone; its records are kept as they are."""

DISPUTED = "disputed"

_ADVICE = "move it away and run the suite again"

LARGEST_RECORD = 8 * 2**20
"""Bytes; the largest records of today's suites have 100 kB."""

_QUOTED = 300
"""Characters of a damaged record that a message repeats at most."""

_HUGE = re.compile(rb"[\[:,\s]-?[0-9]{40}")
"""The beginning of a whole number of 40 digits or more: larger than any count, and a much longer one fits no float."""
_SURROGATE = re.compile(rb"\\u[dD][89abAB]..|\\u[dD][c-fC-F]..")
_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else ord(" ") for byte in range(256))


class RecordError(Exception):
    """A record that is truncated, altered, unsound or of another schema; the message names the file and what to do."""


@dataclass(frozen=True)
class Record:
    """One finished trial. `spec` is its TrialSpec as JSON; `benchmarks/trials/trial.py` says what `result` holds."""

    id: str
    spec: dict[str, Any]
    result: dict[str, Any]
    observed: dict[str, Any]
    schema: int = SCHEMA

    @property
    def status(self) -> Status:
        status: Status = self.result["status"]
        return status

    @property
    def trial_spec(self) -> TrialSpec:
        return TrialSpec.model_validate(self.spec)

    @property
    def result_digest(self) -> str:
        """SHA-256 of what was asked and what came out: alike for runs that are alike to the bit."""
        return full_digest({"spec": self.spec, "result": self.result})

    @property
    def checksum(self) -> str:
        """SHA-256 of everything in the file, as its schema has it."""
        return self.result_digest if self.schema == 1 else full_digest(self._parts())

    def to_json(self) -> str:
        digests = {"result_digest": self.result_digest} if self.schema > 1 else {}
        return json.dumps({"schema": self.schema, "checksum": self.checksum, **digests, **self._parts()}) + "\n"

    def _parts(self) -> dict[str, Any]:
        return {"id": self.id, "spec": self.spec, "result": self.result, "observed": self.observed}


def read_record(path: Path) -> Record:
    """Raises RecordError unless the file is a whole, unaltered and sound record of a schema that is read here."""
    try:
        text = read_regular(path, LARGEST_RECORD)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error
    return parse_record(text, str(path))


def parse_record(text: bytes, path: str) -> Record:
    """The record in a file's content; `path` is for messages. Raises RecordError as `read_record`."""
    if len(text) > LARGEST_RECORD:
        raise RecordError(f"{path}: it has more than {LARGEST_RECORD:,} bytes; {_ADVICE}")
    try:
        data = json.loads(text.decode(), parse_constant=_no_number)  # as text, for what is looked for below is in UTF-8
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: truncated or not JSON ({error}); {_ADVICE}") from error
    if not isinstance(data, dict) or data.get("schema") not in READABLE or isinstance(data["schema"], bool):
        found = data.get("schema") if isinstance(data, dict) else None
        raise RecordError(f"{path}: record of schema {_short(repr(found))}, this version reads {SCHEMA}; {_ADVICE}")
    try:
        record = Record(data["id"], data["spec"], data["result"], data["observed"], data["schema"])
        if not all(isinstance(part, dict) for part in (record.spec, record.result, record.observed)):
            raise TypeError("spec, result and observed must be objects")
        digests = [record.checksum, record.result_digest if record.schema > 1 else None]
        intact = digests == [data["checksum"], data.get("result_digest")]
        canonical_json(record.observed)
        wrong = "a number of forty digits or more" if _has_huge(text) else problem(_plain(data, text))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a whole record ({_short(repr(error))}); {_ADVICE}") from error
    if not intact:
        raise RecordError(f"{path}: altered after it was written (its checksum does not match); {_ADVICE}")
    wrong = wrong or (None if record.id == digest(record.spec) else "id: it is not that of the record's specification")
    if wrong:
        raise RecordError(f"{path}: not a sound record ({_short(wrong)}); {_ADVICE}")
    return record


def _short(text: str) -> str:
    """What is quoted of a record in a message: a damaged one may hold a megabyte where a word belongs."""
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def _plain(data: dict[str, Any], text: bytes) -> dict[str, Any]:
    """The record for the schema, without lone surrogates, which it refuses and file names in messages may have."""
    return json.loads(_SURROGATE.sub(b"?", text)) if _SURROGATE.search(text) else data


def _has_huge(text: bytes) -> bool:
    return b"0" * 40 in text.translate(_DIGITS) and _HUGE.search(text) is not None  # the first alone is quick


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")


def require_sound(spec: TrialSpec, result: dict[str, Any]) -> None:
    """Raises ValueError for a result that no record can hold: with a NaN, not JSON, or refused by the schema."""
    asked = spec.model_dump(mode="json")
    if wrong := problem({"id": spec.id, "spec": asked, "result": json.loads(canonical_json(result))}, observed=False):
        raise ValueError(f"a result that no record can hold: {wrong}")


def differences(first: Record, second: Record) -> Iterator[tuple[str, str, str]]:
    """What differs between two records of one trial: test accuracy, then every part of their environments."""
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
        """Intact records of trials other than these."""

    def disputed(self) -> Iterable[Record]:
        """Intact second records of trials, with other results."""


@dataclass(frozen=True)
class Records:
    """A folder of records, `<id>.json` each; differing results of others are in its folder `disputed`."""

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
        """Write a record. Raises RecordError, with nothing written, for one that could not be read again."""
        text = record.to_json()
        parse_record(text.encode(), f"the record of trial {record.id}")
        write_text_atomic(self.path(record.id), text)

    def set_aside(self, trial_ids: Iterable[str]) -> list[str]:
        """Move records that cannot be used to `<id>.damaged`, so that their trials run again; returns messages."""
        said = []
        for trial_id in trial_ids:
            try:
                self.get(trial_id)
            except RecordError as error:
                path = self.path(trial_id)
                with suppress(FileNotFoundError):  # another run may have done so
                    path.replace(path.with_suffix(".damaged"))
                said.append(f"{str(error).rpartition('; ')[0]}; it is now {path.stem}.damaged, its trial runs again")
        return said

    def dispute(self, record: Record) -> None:
        """Keep a second, different record of a trial beside its first."""
        write_text_atomic(self.folder / DISPUTED / f"{record.id}-{record.result_digest[:8]}.json", record.to_json())

    def disputed(self) -> Iterator[Record]:
        """Intact records that `dispute` has kept."""
        for path in sorted((self.folder / DISPUTED).glob("*.json")):
            with suppress(RecordError):
                yield read_record(path)

    def __iter__(self) -> Iterator[Record]:
        return (read_record(path) for path in sorted(self.folder.glob("*.json")))

    def others(self, trial_ids: Container[str]) -> Iterator[Record]:
        """Intact records of trials other than these."""
        for path in sorted(self.folder.glob("*.json")):
            if path.stem not in trial_ids:
                with suppress(RecordError):
                    yield read_record(path)
