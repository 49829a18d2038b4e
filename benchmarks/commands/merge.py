"""Joins records that several people or clusters made of one suite. Nothing is overwritten and nothing is unpacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import say_where, warn_of_part, write_report
from benchmarks.commands.session import Session, check_writable, open_session
from benchmarks.files import read_regular
from benchmarks.messages import SuiteError
from benchmarks.planning import Trial
from benchmarks.records.archive import with_parts
from benchmarks.records.members import ArchiveError, is_archive, members
from benchmarks.records.record import LARGEST_RECORD, Record, Records, differences, parse_record
from benchmarks.suites.spec import PROTOCOL, canonical_json
from benchmarks.terminal import console, errors


def execute(context: typer.Context, options: Options, sources: Sequence[Path]) -> Exit:
    """Join the sources' records into the output folder, and report. Raises SuiteError and RecordError."""
    session = open_session(options, needs_data=False)
    check_writable(options.out)
    session.set_damaged_aside()
    merged = merge(sources, session.suite.suite, session.workspace.records, session.trials)
    _say(merged, session)
    write_report(session, session.workspace.records)
    warn_of_part(context)
    say_where(context, session, options)
    return Exit.WELL


def _say(merged: Merged, session: Session) -> None:
    for conflict in merged.conflicts:
        label = session.trials[conflict.first.id].label
        errors.print(f"two results: {label}: what was there counts, not that of {conflict.source}", markup=False)
        for what, first, second in differences(conflict.first, conflict.second):
            errors.print(f"    {what}: {first} | {second}", markup=False)
    console.print(
        f"{merged.added} records added, {merged.alike} there already, {len(merged.conflicts)} with two results; "
        f"{len(session.missing())} of {len(session.plan.trials)} trials are missing"
    )


@dataclass(frozen=True)
class Conflict:
    """Two records of one trial whose results differ; `first` counts, `second` is disputed."""

    first: Record
    second: Record
    source: str


@dataclass
class Merged:
    """The result of a merge. alike: records that were there already with the same result."""

    added: int = 0
    alike: int = 0
    conflicts: list[Conflict] = field(default_factory=list)


def merge(sources: Sequence[Path], suite: str, records: Records, trials: Mapping[str, Trial]) -> Merged:
    """Copy records of the suite's `trials` (by id) into `records`; of two results the one that is there first counts.

    The other is kept beside it as disputed, and the report shows it.

    sources: output folders, folders of records, or tar or zip archives of either. Each is read twice, a record at a
    time: everything is checked before anything is written. Raises SuiteError, with nothing written, for other kinds of
    sources and for records of other protocols, of no trial of the suite, or of other data; RecordError for damaged
    records.
    """
    looked_at = _Examination(suite, trials)
    for key in trials:
        if record := records.get(key):
            looked_at.check_data(record, str(records.folder))
    for record, source in _records_of(sources, suite):
        looked_at.check(record, source)
    looked_at.finish()
    merged = Merged()
    for record, source in _records_of(sources, suite):
        _take(record, source, records, merged)
    return merged


def _take(record: Record, source: str, records: Records, merged: Merged) -> None:
    kept = records.get(record.id)
    if kept is None:
        records.put(record)
        merged.added += 1
    elif canonical_json(kept.result) == canonical_json(record.result):
        merged.alike += 1
    else:
        records.dispute(record)
        merged.conflicts.append(Conflict(kept, record, source))


def _records_of(sources: Sequence[Path], suite: str) -> Iterator[tuple[Record, str]]:
    """Every record of the suite in the sources, with the source that it comes from, one at a time."""
    for source in sources:
        empty = True
        for name, text in _files_in(source, suite):
            empty = False
            yield parse_record(text, name), str(source)
        if empty:
            raise SuiteError(f"{source}: holds no records of {suite}; merge takes output folders or folders of records")


def _files_in(source: Path, suite: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every record file; files in an archive are read in memory, never unpacked."""
    try:
        if source.is_dir():
            yield from _files_in_folder(source, suite)
        elif archives := with_parts(source):
            for archive in archives:
                yield from _files_in_archive(archive, suite)
        else:
            raise SuiteError(_NO_SOURCE.format(source))
    except ArchiveError as error:
        raise SuiteError(str(error)) from None
    except OSError as error:
        raise SuiteError(f"{error.filename or source}: cannot be read: {error.strerror}") from None


_NO_SOURCE = "{}: neither a folder nor a tar or zip archive; merge takes output folders or archives"


def _files_in_folder(source: Path, suite: str) -> Iterator[tuple[str, bytes]]:
    place = next(place for place in (source / suite / "records", source / "records", source) if place.is_dir())
    for folder in (place, *place.parents):
        if folder == source:
            break
        if folder.is_symlink():
            raise SuiteError(f"{folder}: is a link, which merge does not follow; name the folder that it leads to")
    for path in sorted(place.iterdir()):  # glob would take a folder that cannot be read for an empty one
        if _is_record(path.name, suite):
            yield str(path), read_regular(path, LARGEST_RECORD, follow=False)


def _files_in_archive(source: Path, suite: str) -> Iterator[tuple[str, bytes]]:
    if not is_archive(source):
        raise SuiteError(_NO_SOURCE.format(source))
    for member in members(source):
        if member.folder or not _is_record(member.name, suite):
            continue
        if not member.regular:
            raise SuiteError(f"{member.label}: is a link or a device; merge takes regular files alone")
        yield member.label, member.read()


def _is_record(name: str, suite: str) -> bool:
    """A JSON file in a folder `records` of this suite, or in one folder of any name, or in none."""
    *folders, file = PurePosixPath(name).parts or ("",)
    if not file.endswith(".json") or file.startswith("."):
        return False
    if len(folders) < 2:
        return True
    return folders[-1] == "records" and folders[-2] == suite


@dataclass
class _Examination:
    """Checks records one by one; keeps only their number and the data that they were measured on."""

    suite: str
    trials: Mapping[str, Trial]
    seen: int = 0
    strange: int = 0
    first_strange: tuple[Record, str] | None = None
    digests: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Description of the data -> the digest of the first record's data, and where that record is."""

    def check(self, record: Record, source: str) -> None:
        """Raises SuiteError for another protocol, other data, or layers that the trial's network does not have."""
        if (protocol := record.spec.get("protocol")) != PROTOCOL:
            raise SuiteError(f"{source}: record {record.id} is of protocol {protocol}, this version is {PROTOCOL}")
        self.seen += 1
        if trial := self.trials.get(record.id):
            _check_ledger(record, trial, source)
        else:
            self.strange += 1
            self.first_strange = self.first_strange or (record, source)
        self.check_data(record, source)

    def check_data(self, record: Record, source: str) -> None:
        """Raises SuiteError for different data under one description of it."""
        data, seen = canonical_json(record.spec.get("data")), record.observed.get("data_digest")
        first, where = self.digests.setdefault(data, (seen, source))
        if seen != first and None not in (seen, first):
            raise SuiteError(
                f"{source}: record {record.id} was made from other data ({seen}) than those in {where} ({first}); "
                "results on different images cannot stand in one table"
            )

    def finish(self) -> None:
        """Raises SuiteError if there were records of trials that the suite does not have."""
        if self.first_strange is None:
            return
        record, source = self.first_strange
        nearest = min((_differing(record, trial) for trial in self.trials.values()), key=len, default=[])
        raise SuiteError(
            f"{source}: {self.strange} of {self.seen} records are of no trial of {self.suite}, such as {record.id}: "
            f"the nearest trial differs in {', '.join(nearest)}; name the suite that they are of, give merge the "
            "--set, --seeds, --methods and --models that they were run with, or move them away"
        )


def _check_ledger(record: Record, trial: Trial, source: str) -> None:
    """Raises SuiteError if a record's layers, from which its costs were counted, are not the network's."""
    ours = [(layer.name, layer.macs, layer.weights, layer.pinned) for layer in trial.ledger]
    theirs = [(row["name"], row["macs"], row["weights"], row["pinned"]) for row in record.result.get("layers") or ()]
    if theirs and theirs != ours:
        raise SuiteError(
            f"{source}: record {record.id} counts other layers, MACs or weights than {trial.model} has: altered, "
            "or of another version of this program"
        )


def _differing(record: Record, trial: Trial) -> list[str]:
    """Parts of the specification that differ."""
    ours, theirs = trial.spec.model_dump(mode="json"), record.spec
    return [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
