"""Records and float starts kept at a URL as well, for machines that share no file system: any that fsspec opens."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

from benchmarks.engines import Job
from benchmarks.messages import SuiteError
from benchmarks.record import RecordError, parse_record, write_atomic
from benchmarks.workspace import Workspace


class StorageError(Exception):
    """A URL that cannot be opened, read or written; the message says which and what to do."""


@dataclass(frozen=True)
class Storage:
    """A folder at a URL, laid out as an output folder: `<suite>/records/<id>.json` and `float/<key>.pt`."""

    url: str
    files: Any
    root: str

    @classmethod
    def at(cls, url: str) -> Storage:
        """Raises StorageError for a URL that fsspec cannot open."""
        import fsspec

        try:
            files, root = fsspec.core.url_to_fs(url)
            files.makedirs(root, exist_ok=True)
        except Exception as error:
            raise StorageError(
                f"--storage {url}: {error}; is it written as fsspec has it, s3://bucket/folder say?"
            ) from error
        return cls(url, files, root.rstrip("/"))

    def fetch(self, jobs: Iterable[Job], workspace: Workspace) -> int:
        """Bring what is there and not here; returns how many. Raises StorageError, or SuiteError for a bad record.

        A float start that did not get there whole is passed over: it is made here, and `keep` sends it again.
        """
        found = 0
        for job in jobs:
            here = _place(job, workspace)
            there = self._there(here, workspace)
            if here.exists() or not self._run("exists", there):
                continue
            content: bytes = self._run("cat_file", there)
            if job.is_trial:
                _check(content, there, job.key)
            elif not _whole(content):
                continue
            write_atomic(here, partial(_write, content))
            found += 1
        return found

    def keep(self, jobs: Iterable[Job], workspace: Workspace) -> None:
        """Copy what jobs have left here and is not there, or there otherwise, as after a retry. Raises StorageError."""
        for job in jobs:
            here = _place(job, workspace)
            there = self._there(here, workspace)
            if here.exists() and not self._holds(there, content := here.read_bytes()):
                self._run("makedirs", there.rpartition("/")[0], exist_ok=True)
                self._send(content, there)

    def _holds(self, there: str, content: bytes) -> bool:
        """Whether it is there just so: networks of one kind all have one size, so that is looked at only first."""
        if not self._run("exists", there) or self._run("size", there) != len(content):
            return False
        found: bytes = self._run("cat_file", there)
        return found == content

    def _send(self, content: bytes, there: str) -> None:
        """Under another name until all of it is there."""
        part = f"{there}.{token_hex(4)}.part"
        try:
            self._run("pipe_file", part, content)
            self._run("mv", part, there)
        except BaseException:
            with suppress(StorageError):
                self._run("rm_file", part)
            raise

    def _there(self, here: Path, workspace: Workspace) -> str:
        return f"{self.root}/{here.relative_to(workspace.out).as_posix()}"

    def _run(self, what: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self.files, what)(*arguments, **options)
        except Exception as error:
            raise StorageError(
                f"{self.url}: {what} of {arguments[0]} failed: {error}; run the same command again"
            ) from error


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _whole(network: bytes) -> bool:
    """Whether a file that torch wrote, a zip archive, has all its parts as their checksums say. Free of torch."""
    try:
        with ZipFile(BytesIO(network)) as archive:
            return archive.testzip() is None
    except (BadZipFile, EOFError, NotImplementedError):  # the latter where the damage is in how parts are packed
        return False


def _place(job: Job, workspace: Workspace) -> Path:
    return workspace.records.path(job.key) if job.is_trial else workspace.start(job.spec.key)  # type: ignore[union-attr]


def _check(content: bytes, there: str, trial_id: str) -> None:
    try:
        record = parse_record(content, there)
    except RecordError as error:
        raise SuiteError(str(error)) from error
    if record.id != trial_id:
        raise SuiteError(f"{there} holds the record of trial {record.id}; delete it")
