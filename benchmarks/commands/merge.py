"""Joins records that several people or clusters made of one suite. Nothing is overwritten and nothing is unpacked."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import say_where, warn_of_part, write_report
from benchmarks.commands.session import Session, check_writable, open_session
from benchmarks.messages import SuiteError
from benchmarks.planning import Trial
from benchmarks.records.record import Record, Records, differences, parse_record
from benchmarks.suites.spec import PROTOCOL, canonical_json, digest
from benchmarks.terminal import console, errors

LARGEST_RECORD = 50 * 2**20
"""Bytes; a file in an archive that claims more is no record."""


def execute(context: typer.Context, options: Options, sources: Sequence[Path]) -> Exit:
    """Join the sources' records into the output folder, and report. Raises SuiteError and RecordError."""
    session = open_session(options, needs_data=False)
    check_writable(options.out)
    merged = merge(sources, session.suite.suite, session.workspace.records, session.trials)
    _say(merged, session)
    write_report(session, session.workspace.records)
    warn_of_part(context)
    say_where(context, session)
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
    """What came of a merge. alike: records that were there already with the same result."""

    added: int = 0
    alike: int = 0
    conflicts: list[Conflict] = field(default_factory=list)


def merge(sources: Sequence[Path], suite: str, records: Records, trials: Mapping[str, Trial]) -> Merged:
    """Copy records of the suite's `trials` (by id) into `records`; of two results the one that is there first counts.

    The other is kept beside it, for the report to show.

    sources: output folders, folders of records, or tar or zip archives of either. Raises SuiteError, with nothing
    written, for sources that are no such thing and for records of other protocols, of no trial of the suite, or of
    other data; RecordError for damaged records.
    """
    found = [(record, str(source)) for source in sources for record in _records_in(source, suite)]
    _check_protocol(found)
    _check_trials(found, suite, trials)
    there = [(record, str(records.folder)) for key in trials if (record := records.get(key))]
    _check_data(there + found)
    merged = Merged()
    for record, source in found:
        kept = records.get(record.id)
        if kept is None:
            records.put(record)
            merged.added += 1
        elif canonical_json(kept.result) == canonical_json(record.result):
            merged.alike += 1
        else:
            records.dispute(record)
            merged.conflicts.append(Conflict(kept, record, source))
    return merged


def _records_in(source: Path, suite: str) -> Iterator[Record]:
    try:
        files = list(_files_in(source, suite))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise SuiteError(f"{source}: a damaged archive ({error}); fetch it again") from None
    except RuntimeError as error:  # zipfile's, of passwords and of compression that it does not know
        raise SuiteError(f"{source}: {error}; make the archive without a password, as tar.gz or plain zip") from None
    if not files:
        raise SuiteError(f"{source}: holds no records of {suite}; merge takes output folders or folders of records")
    for name, text in files:
        record = parse_record(text, name)
        if record.id != digest(record.spec):
            raise SuiteError(f"{name}: its id is not that of its specification; it is no record of this program")
        yield record


def _files_in(source: Path, suite: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every record file; of an archive only regular files are read, under no name of theirs."""
    if source.is_dir():
        places = (source / suite / "records", source / "records", source)
        for path in sorted(next(place for place in places if place.is_dir()).glob("[!.]*.json")):
            yield str(path), path.read_bytes()
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and _is_record(member.name, suite) and member.size <= LARGEST_RECORD:
                    file = archive.extractfile(member)
                    assert file is not None
                    yield f"{source}:{member.name}", file.read()
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if not info.is_dir() and _is_record(info.filename, suite) and info.file_size <= LARGEST_RECORD:
                    yield f"{source}:{info.filename}", archive.read(info)
    else:
        raise SuiteError(f"{source}: neither a folder nor a tar or zip archive; merge takes output folders or archives")


def _is_record(name: str, suite: str) -> bool:
    """A JSON file in a folder `records` of this suite, or in one folder of any name, or in none."""
    *folders, file = Path(name).parts
    if not file.endswith(".json") or file.startswith("."):
        return False
    if len(folders) < 2:
        return True
    return folders[-1] == "records" and folders[-2] == suite


Found = Sequence[tuple[Record, str]]


def _check_protocol(found: Found) -> None:
    for record, source in found:
        if (protocol := record.spec.get("protocol")) != PROTOCOL:
            raise SuiteError(f"{source}: record {record.id} is of protocol {protocol}, this version is {PROTOCOL}")


def _check_trials(found: Found, suite: str, trials: Mapping[str, Trial]) -> None:
    """Refuse records of trials that the suite does not have."""
    strange = [(record, source) for record, source in found if record.id not in trials]
    if not strange:
        return
    record, source = strange[0]
    nearest = min((_differing(record, trial) for trial in trials.values()), key=len, default=[])
    raise SuiteError(
        f"{source}: {len(strange)} of {len(found)} records are of no trial of {suite}, such as {record.id}: the "
        f"nearest trial differs in {', '.join(nearest)}; name the suite that they are of, give merge the --set, "
        "--seeds, --methods and --models that they were run with, or move them away"
    )


def _differing(record: Record, trial: Trial) -> list[str]:
    """Parts of the specification that differ."""
    ours, theirs = trial.spec.model_dump(mode="json"), record.spec
    return [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]


def _check_data(found: Found) -> None:
    """Refuse different data under one description of it."""
    digests: dict[str, tuple[Any, str]] = {}
    for record, source in found:
        data, seen = canonical_json(record.spec.get("data")), record.observed.get("data_digest")
        first, where = digests.setdefault(data, (seen, source))
        if seen != first and None not in (seen, first):
            raise SuiteError(
                f"{source}: record {record.id} was made from other data ({seen}) than those in {where} ({first}); "
                "results on different images cannot stand in one table"
            )
