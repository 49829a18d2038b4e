"""A suite's records in one archive, beside it a table of them: `<name>.tar.xz` and `<name>.csv`. Free of torch.

`python -m benchmarks.records.archive pack FOLDER --to reports/reference` packs a folder of records. Where an archive
of that name is there, what it lacks goes into a part, `<name>.part-N.tar.xz`, so that a history of commits does not
grow by the whole archive each time; parts are read together with it. `join ARCHIVE` makes one archive of them.
"""

from __future__ import annotations

import argparse
import csv
import io
import lzma
import re
import tarfile
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.files import write_atomic, write_text_atomic
from benchmarks.records.members import ArchiveError, Member, members
from benchmarks.records.record import DISPUTED, Record, RecordError, Records, RecordSource, parse_record
from benchmarks.suites.spec import canonical_json
from benchmarks.untrusted import COMMIT, csv_cell

SUFFIX = ".tar.xz"
_FORMAT = tarfile.USTAR_FORMAT
_PART = re.compile(r"(?P<name>.+)\.part-(?P<number>[1-9][0-9]*)\.tar\.xz")

COLUMNS = (
    "id",
    "network",
    "method",
    "version",
    "options",
    "ceiling",
    "seed",
    "draw",
    "status",
    "accuracy",
    "bops",
    "checksum",
    "commit",
)
"""ceiling and bops: in BOPs, as ceilings count them (edges8). accuracy: on the test images, in 0..1. checksum: of spec
and result, the parts that are the same in every run of a trial."""


@dataclass(frozen=True)
class Archive:
    """Records in an archive: file names and contents, as in a folder of records."""

    path: Path
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By `<id>.json` and `disputed/<id>-<digest>.json`."""

    def get(self, trial_id: str) -> Record | None:
        """The record of a trial, or None if there is none. Raises RecordError for a damaged one."""
        name = f"{trial_id}.json"
        if name not in self.files:
            return None
        record = self._parsed(name)
        if record.id != trial_id:
            raise RecordError(f"{self.path}:{name}: holds the record of trial {record.id}; pack its folder again")
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self._parsed(name) for name in sorted(self.files) if "/" not in name)

    def others(self, trial_ids: Container[str]) -> Iterator[Record]:
        """Intact records of trials other than these."""
        return self._whole(
            name for name in self.files if "/" not in name and name.removesuffix(".json") not in trial_ids
        )

    def disputed(self) -> Iterator[Record]:
        """Intact second records of trials, with other results."""
        return self._whole(name for name in self.files if "/" in name)

    def _whole(self, names: Iterable[str]) -> Iterator[Record]:
        for name in sorted(names):
            with suppress(RecordError):
                yield self._parsed(name)

    def _parsed(self, name: str) -> Record:
        return parse_record(self.files[name], f"{self.path}:{name}")


def open_records(place: Path) -> RecordSource:
    """Records in a folder, or in an archive and its parts; the path of one part means that part alone.

    Raises RecordError where there are none, and for an archive that is damaged or holds anything else.
    """
    if place.is_dir():
        if not any(place.glob("*.json")):
            raise RecordError(f"{place}: holds no records; give OUT/SUITE/records, or an archive (*{SUFFIX})")
        return Records(place)
    if not (paths := with_parts(place)):
        beside = place.with_name(f"{place.name}{SUFFIX}")
        hint = f"did you mean {beside}?" if with_parts(beside) else f"give a folder of records, or a *{SUFFIX} of them"
        raise RecordError(f"{place}: no such folder or archive; {hint}")
    return Archive(place, _read(paths))


def archives_in(folder: Path) -> list[Path]:
    """Every archive in a folder, by name; an archive of which only parts are there is named too."""
    return sorted({path.with_name(f"{_name_of(path)}{SUFFIX}") for path in folder.glob(f"*{SUFFIX}")})


def with_parts(place: Path) -> list[Path]:
    """The existing files of an archive: itself and its parts, in their order; for the path of a part, that part."""
    found = [place] if place.is_file() else []
    if _PART.fullmatch(place.name) or not place.name.endswith(SUFFIX):
        return found
    numbers = {int(match["number"]): path for path, match in _parts_of(place)}
    return found + [numbers[number] for number in sorted(numbers)]


def _parts_of(place: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    if place.parent.is_dir():
        for path in place.parent.iterdir():
            match = _PART.fullmatch(path.name)
            if match and match["name"] == place.name.removesuffix(SUFFIX):
                yield path, match


def _read(paths: Iterable[Path]) -> dict[str, bytes]:
    """Content of all files of some archives, by their names in a folder of records."""
    files: dict[str, bytes] = {}
    for path in paths:
        for member in members(path):
            if member.folder:
                continue
            name = _place_of(member)
            content = member.read()
            if files.setdefault(name, content) != content:
                raise ArchiveError(f"{member.label}: there is another such record; keep one of them")
    return files


def _place_of(member: Member) -> str:
    """The file's name in a folder of records. Raises ArchiveError for a file that does not belong in one."""
    folders = PurePosixPath(member.name).parts
    inner = folders[1:] if len(folders) > 1 and folders[0] not in ("/", "..", DISPUTED) else folders
    plain = len(inner) == 1 or (len(inner) == 2 and inner[0] == DISPUTED)
    if not member.regular or not plain or not re.fullmatch(r"[\w-]+\.json", inner[-1], re.ASCII):
        raise ArchiveError(
            f"{member.label}: an archive of records holds files NAME/ID.json and NAME/{DISPUTED}/*.json alone; "
            "make it with `python -m benchmarks.records.archive pack`"
        )
    return "/".join(inner)


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Write an archive. The same files give the same bytes: ordered by name, with fixed times, owners and modes."""
    folder = _name_of(path)

    def fill(file: Any) -> None:
        with lzma.open(file, "wb") as packed, tarfile.open(fileobj=packed, mode="w", format=_FORMAT) as tar:
            for name in sorted(files):
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(files[name])
                tar.addfile(info, io.BytesIO(files[name]))

    write_atomic(path, fill)


def _name_of(path: Path) -> str:
    """The name of a set of records, from its archive's or a part's path."""
    match = _PART.fullmatch(path.name)
    return match["name"] if match else path.name.removesuffix(SUFFIX)


def table(records: Iterable[Record]) -> str:
    """A line per record, as CSV: what people review, ordered so that new trials stand beside similar ones."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(csv_cell, _row(record)) for record in sorted(records, key=_order))
    return text.getvalue()


def _row(record: Record) -> list[Any]:
    spec, cost = record.spec, record.result.get("cost") or {}
    commit = str((record.observed.get("environment") or {}).get("commit"))
    accuracy = (record.result.get("metrics") or {}).get("test_accuracy")
    return [
        record.id,
        f"{spec['model']['name']} x{spec['model']['width']:g}",
        spec["method"]["name"],
        spec["method"]["version"],
        canonical_json(spec["method"]["options"]),
        "" if spec["ceiling_bops"] is None else spec["ceiling_bops"],
        spec["seed"],
        spec["draw"],
        record.status,
        "" if accuracy is None else f"{accuracy:.6f}",
        cost.get("bops", {}).get("edges8", ""),
        record.result_digest,
        commit if COMMIT.fullmatch(commit) else "",
    ]


def _order(record: Record) -> tuple[Any, ...]:
    spec = record.spec
    model, method = spec["model"], spec["method"]
    row = (method["name"], method["version"], canonical_json(method["options"]))
    return model["name"], model["width"], spec["ceiling_bops"] or 0, *row, spec["seed"], spec["draw"], record.id


def pack(folder: Path, to: Path, name: str | None = None, *, replace: bool = False) -> Path | None:
    """Pack a folder's records; returns the archive or the part that was written, None if nothing was new.

    If the archive exists, only new records are added, in a part; with `replace`, only the folder's records are kept.
    Raises RecordError, with nothing written, for damaged records and for another result of a trial that is there.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; pack takes a folder of records, such as OUT/SUITE/records")
    files = _files_in(folder)
    archive = to / f"{name or (folder.resolve().parent.name if folder.name == 'records' else folder.name)}{SUFFIX}"
    old = with_parts(archive)
    there = {} if replace else _read(old)
    _check_same(files, there, archive)
    new = {file: content for file, content in files.items() if file not in there}
    written = None
    if new:
        written = archive if replace or not old else _next_part(archive)
        write_archive(written, new)
    if replace:
        _remove(old, archive)
    write_table(archive)
    return written


def _files_in(folder: Path) -> dict[str, bytes]:
    """Content of a folder's records by file name; each is checked."""
    open_records(folder)
    paths = sorted([*folder.glob("*.json"), *(folder / DISPUTED).glob("*.json")])
    found = Archive(folder, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})
    for name in found.files:
        if "/" not in name:
            found.get(name.removesuffix(".json"))
    return dict(found.files)


def _check_same(files: Mapping[str, bytes], there: Mapping[str, bytes], archive: Path) -> None:
    for name in sorted(files.keys() & there.keys()):
        if files[name] != there[name]:
            raise RecordError(
                f"{archive}: has another {name}; leave it out, or give --replace to keep none of the archive's"
            )


def _next_part(archive: Path) -> Path:
    number = max((int(match["number"]) for _, match in _parts_of(archive)), default=0) + 1
    return archive.with_name(f"{_name_of(archive)}.part-{number}{SUFFIX}")


def join(archive: Path) -> int:
    """Make one archive of an archive and its parts, and the table anew; returns how many files were joined."""
    paths = with_parts(archive)
    if not paths or _PART.fullmatch(archive.name):
        raise RecordError(f"{archive}: no such archive; join takes NAME{SUFFIX}, of which parts may be there alone")
    if paths != [archive]:
        write_archive(archive, _read(paths))
        _remove(paths, archive)
    write_table(archive)
    return len(paths)


def _remove(paths: Iterable[Path], kept: Path) -> None:
    for path in paths:
        if path != kept:
            path.unlink()


def write_table(archive: Path) -> Path:
    """Write `<name>.csv` beside an archive; returns its path. Raises RecordError for a damaged record."""
    path = archive.with_name(f"{_name_of(archive)}.csv")
    write_text_atomic(path, table(open_records(archive)))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packs = commands.add_parser("pack", help="pack a folder of records")
    packs.add_argument("folder", type=Path, help="such as runs/quick/records")
    packs.add_argument("--to", type=Path, default=Path("reports/reference"), help="folder of archives")
    packs.add_argument("--name", help="of the archive; else the suite's, as the folder has it")
    packs.add_argument("--replace", action="store_true", help="keep nothing of the archive that is there")
    joins = commands.add_parser("join", help="make one archive of an archive and its parts")
    joins.add_argument("archive", type=Path, help="such as reports/reference/quick.tar.xz")
    arguments = parser.parse_args()
    try:
        if arguments.command == "join":
            print(f"{arguments.archive}: {join(arguments.archive)} archives in one")
        else:
            written = pack(arguments.folder, arguments.to, arguments.name, replace=arguments.replace)
            print(f"written: {written}" if written else f"nothing new in {arguments.folder}")
    except (RecordError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
