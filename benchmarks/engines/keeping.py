"""What the process that works on a job copies to the storage, and what it fetches from there first."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from benchmarks.engines.jobs import Job
from benchmarks.engines.storage import Storage, StorageError
from benchmarks.events import Outcome, Progress
from benchmarks.records.workspace import Workspace
from benchmarks.stopping import StoppedError
from benchmarks.terminal import warn
from benchmarks.trials.checkpoint import Saver

KEEP_SECONDS = 300.0
"""Seconds between copies of a checkpoint to the storage; more if a copy takes long, as the trial waits for it."""


class Keeper:
    """A job's files between here and a storage; without a URL it does nothing."""

    def __init__(self, job: Job, workspace: Workspace, url: str | None) -> None:
        self.job, self.workspace, self.url = job, workspace, url
        self.unkept = [job]
        """What is still to be copied: the job, and float starts that are not at the storage."""

    def fetch(self) -> None:
        """Fetch the job's result, else what it can continue from. Raises StorageError."""
        if self.url is None:
            return
        storage, parts = Storage.at(self.url), self.job.with_starts
        storage.fetch(parts, self.workspace)
        missing = [part for part in parts if not self.workspace.done(part.spec)]
        self.unkept = [
            part for part in parts if part is self.job or part in missing or not storage.has(part, self.workspace)
        ]
        for part in missing:
            storage.fetch_checkpoint(part, self.workspace)

    def along(self, steps: Generator[Progress, None, object]) -> Generator[Progress, None, None]:
        """Pass progress on; keep checkpoints now and then, and the last one when told to stop."""
        saver = Saver(KEEP_SECONDS, self._keep_or_warn)
        with closing(steps):
            try:
                for progress in steps:
                    yield progress
                    if self.url and saver.due:
                        saver.now()
            except StoppedError:
                self._keep_or_warn()
                raise

    def done(self) -> Outcome:
        """Copy the result to the storage; returns the job's outcome, with what went wrong in copying."""
        try:
            self._keep()
        except StorageError as error:
            return Outcome("done", str(error))
        return Outcome("done")

    def _keep_or_warn(self) -> None:
        try:
            self._keep()
        except StorageError as error:
            warn(str(error))

    def _keep(self) -> None:
        """Copy results that exist by now, each once, and checkpoints of unfinished work."""
        if self.url is None:
            return
        storage = Storage.at(self.url)
        for part in [*self.unkept]:
            if self.workspace.done(part.spec):
                storage.keep([part], self.workspace)
                self.unkept.remove(part)
            else:
                storage.keep_checkpoint(part, self.workspace)
