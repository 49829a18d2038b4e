"""Results and checkpoints kept at a URL as well, for machines that share no file system: any that fsspec opens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any, BinaryIO

from benchmarks.addresses import without_secrets
from benchmarks.engines.jobs import Job
from benchmarks.files import write_atomic
from benchmarks.records.record import RecordError, parse_record
from benchmarks.records.workspace import Workspace
from benchmarks.seals import is_sealed
from benchmarks.terminal import warn


class StorageError(OSError):
    """A URL that cannot be opened, read or written; the message says which and what to do. Never a method's fault."""


@dataclass(frozen=True)
class Storage:
    """A folder at a URL, laid out as an output folder: `<suite>/records/<id>.json`, `float/<key>.pt` and so on.

    Files are looked up by the names that a plan gives; folders are never listed.
    """

    url: str
    files: Any
    root: str

    @classmethod
    def at(cls, url: str) -> Storage:
        """Raises StorageError for a URL that fsspec cannot open."""
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        try:
            files, root = fsspec.core.url_to_fs(url)
            files.makedirs(root, exist_ok=True)
        except Exception as error:
            raise StorageError(
                without_secrets(
                    f"--storage {url}: {error}; is it written as fsspec has it, s3://bucket/folder say?", url
                )
            ) from error
        if isinstance(files, LocalFileSystem):
            url = f"file://{root}"  # workers have a working folder of their own
        return cls(url, files, root.rstrip("/"))

    def fetch(self, jobs: Iterable[Job], workspace: Workspace) -> int:
        """Fetch results that are there and not here; returns how many. Raises StorageError.

        A record comes with its network. A file that is truncated, or not what its name says, is skipped: it is made
        here, and `keep` sends it again.
        """
        self.files.invalidate_cache()  # others write there
        found = 0
        for job in jobs:
            if self._bring(workspace.result(job.spec), workspace, partial(_is_result, job)):
                found += 1
                if job.is_trial:
                    self._bring(workspace.network(job.key), workspace, _whole)
        return found

    def has(self, job: Job, workspace: Workspace) -> bool:
        """Whether a job's result is there. Raises StorageError."""
        found: bool = self._run("exists", self._there(workspace.result(job.spec), workspace))
        return found

    def fetch_checkpoint(self, job: Job, workspace: Workspace) -> None:
        """Fetch a job's checkpoint, unless it has one here. One that cannot be trusted is skipped."""
        from benchmarks.trials.checkpoint import previous

        here = _checkpoint(job, workspace)
        if not previous(here).exists():
            self._bring(here, workspace, _is_checkpoint)

    def keep(self, jobs: Iterable[Job], workspace: Workspace) -> None:
        """Copy results that are missing or different there, as after a retry. Raises StorageError.

        Their checkpoints are no longer needed and are removed there.
        """
        for job in jobs:
            if not (result := workspace.result(job.spec)).exists():
                continue
            for here in [workspace.network(job.key), result] if job.is_trial else [result]:
                there = self._there(here, workspace)
                if here.exists() and not self._holds(there, content := here.read_bytes()):
                    self._send(content, there)
            checkpoint = self._there(_checkpoint(job, workspace), workspace)
            if self._run("exists", checkpoint):
                self._run("rm_file", checkpoint)

    def keep_checkpoint(self, job: Job, workspace: Workspace) -> None:
        """Copy the last checkpoint that a job has here, if it has one. Raises StorageError."""
        here = _checkpoint(job, workspace)
        if here.exists():
            self._send(here.read_bytes(), self._there(here, workspace))

    def forget(self, trial_ids: Iterable[str], workspace: Workspace) -> None:
        """Move records aside, so that no machine fetches them. Raises StorageError."""
        for trial_id in trial_ids:
            there = self._there(workspace.records.path(trial_id), workspace)
            if self._run("exists", there):
                self._run("mv", there, f"{there.removesuffix('.json')}.failed")

    def _bring(self, here: Path, workspace: Workspace, sound: Callable[[bytes, str], bool]) -> bool:
        """Copy a file that is there and not here, if its content is sound; returns whether it did."""
        there = self._there(here, workspace)
        if here.exists() or not self._run("exists", there):
            return False
        content: bytes = self._run("cat_file", there)
        if not sound(content, there):
            return False
        write_atomic(here, partial(_write, content))
        return True

    def _holds(self, there: str, content: bytes) -> bool:
        """Whether the file there has just this content. Sizes are compared first, but equal sizes prove nothing."""
        if not self._run("exists", there) or self._run("size", there) != len(content):
            return False
        found: bytes = self._run("cat_file", there)
        return found == content

    def _send(self, content: bytes, there: str) -> None:
        """Write a file there, under another name until it is complete."""
        self._run("makedirs", there.rpartition("/")[0], exist_ok=True)
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
                without_secrets(
                    f"{self.url}: {what} of {arguments[0]} failed: {error}; run the same command again", self.url
                )
            ) from error


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _whole(network: bytes, there: str) -> bool:
    """Whether it is the whole network that was saved under this name. Free of torch."""
    return is_sealed(network, PurePosixPath(there).stem)


def _checkpoint(job: Job, workspace: Workspace) -> Path:
    return workspace.checkpoint(job.key if job.is_trial else job.spec.key)  # type: ignore[union-attr]


def _is_result(job: Job, content: bytes, there: str) -> bool:
    """Whether it is the job's float start, or its record; warns of a record that cannot be used."""
    if not job.is_trial:
        return _whole(content, there)
    try:
        found = parse_record(content, there).id
        wrong = None if found == job.key else f"{there}: holds the record of trial {found}"
    except RecordError as error:
        wrong = str(error)
    if wrong:
        warn(f"{wrong}; it is left out, and the trial's next record takes its place")
    return wrong is None


def _is_checkpoint(content: bytes, there: str) -> bool:
    from benchmarks.trials.checkpoint import CheckpointError, parse_checkpoint

    try:
        parse_checkpoint(content, there, PurePosixPath(there).stem)
    except CheckpointError:
        return False
    return True
