"""Engines run jobs: float starts and trials. Which engine runs a job changes nothing in its record."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.addresses import shown
from benchmarks.engines.jobs import Job
from benchmarks.events import Outcome, Progress
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.terminal import warn

_POLL_SECONDS = 0.5
_ARRIVAL_SECONDS = 60.0
"""How long to wait for a result: files of other machines appear late over a network."""


class EngineError(Exception):
    """An engine that cannot be started or reached; the message says what to do."""


class Observer(Protocol):
    """Sees what happens, on the driver, one call at a time."""

    def progress(self, job: Job, progress: Sequence[Progress]) -> None: ...
    def ended(self, job: Job, outcome: Outcome) -> None: ...


class Engine(Protocol):
    def run(self, jobs: Sequence[Job], workspace: Workspace, runtime: Runtime, observer: Observer) -> None:
        """Run every job once. Raises EngineError if nothing can be run."""


@dataclass
class _Watch:
    """Passes everything on, and remembers how jobs ended. A job counts as done once its result is in the workspace.

    Results that are at the storage are fetched from there.
    """

    observer: Observer
    workspace: Workspace
    storage: str | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    awaited: list[Job] = field(default_factory=list)

    def progress(self, job: Job, progress: Sequence[Progress]) -> None:
        for note in [event.note for event in progress if event.note]:
            warn(f"{job.label}: {note}")
        if steps := [event for event in progress if not event.note]:
            self.observer.progress(job, steps)

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.key] = outcome
        if outcome.status == "done" and self._missed(job):
            self.awaited.append(job)
        elif outcome.status != "busy":
            self.observer.ended(job, outcome)

    def wait(self) -> None:
        """Wait for the results of jobs reported as done; a job without one is lost."""
        until = time.monotonic() + _ARRIVAL_SECONDS
        for job in self.awaited:
            while (missed := self._missed(job)) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
            if missed:
                why = self.outcomes[job.key].message or missed
                message = f"it ended, but its result is not in {self.workspace.out}; {why}"
                self.outcomes[job.key] = Outcome("lost", message)
            self.observer.ended(job, self.outcomes[job.key])

    def _missed(self, job: Job) -> str:
        """Why a job's result is not here; empty once it is."""
        if self.workspace.done(job.spec):
            return ""
        if not self.storage:
            return "is --out on a shared file system? Without one, give --storage"
        from benchmarks.engines.storage import Storage

        try:
            fetched = Storage.at(self.storage).fetch([job], self.workspace)
        except OSError as error:
            return str(error)
        return "" if fetched else f"nor is it at {shown(self.storage)}"


def run_jobs(
    engine: Engine, jobs: Iterable[Job], workspace: Workspace, runtime: Runtime, observer: Observer
) -> dict[str, Outcome]:
    """Run what has no result yet, sharing the work with other runs on the same folder; returns what was lost.

    Jobs that another run holds are waited for, and taken over if that run ends without them.
    """
    lost: dict[str, Outcome] = {}
    pending = [job for job in jobs if not workspace.done(job.spec)]
    while pending:
        watch = _Watch(observer, workspace, runtime.storage)
        engine.run(pending, workspace, runtime, watch)
        watch.wait()
        outcomes = watch.outcomes
        lost |= {key: outcome for key, outcome in outcomes.items() if outcome.status == "lost"}
        waiting = [job for job in pending if job.key not in outcomes or outcomes[job.key].status == "busy"]
        pending = list(_free(waiting, workspace, observer))
    return lost


def _free(jobs: list[Job], workspace: Workspace, observer: Observer) -> list[Job]:
    """Wait until one of `jobs` can be run here or all have ended elsewhere; returns those still to run."""
    while jobs:
        for job in [job for job in jobs if workspace.done(job.spec)]:
            observer.ended(job, Outcome("done"))
            jobs = [other for other in jobs if other is not job]
        for job in jobs:
            with workspace.lock(job.key, wait=False) as free:
                if free and not workspace.done(job.spec):
                    return jobs
        time.sleep(_POLL_SECONDS)
    return jobs
