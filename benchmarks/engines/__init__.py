"""Engines run jobs: float starts and trials. Which engine runs a job changes nothing in its record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from benchmarks.messages import SuiteError
from benchmarks.spec import StartSpec, TrialSpec
from benchmarks.suite import Plan
from benchmarks.workspace import Workspace

if TYPE_CHECKING:
    from benchmarks.ranks import Ranks
    from benchmarks.training import Progress

_POLL_SECONDS = 0.5
_ARRIVAL_SECONDS = 60.0
"""How long a result may take to be seen here: other machines' files come late over a network."""


class EngineError(Exception):
    """An engine that cannot be started or reached; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """A float start or a trial. key: its lock, alike in every process."""

    key: str
    label: str
    spec: TrialSpec | StartSpec

    @property
    def is_trial(self) -> bool:
        return isinstance(self.spec, TrialSpec)

    @property
    def with_starts(self) -> list[Job]:
        """The float starts that a trial makes where they are missing, then itself; of a start itself alone."""
        starts = self.spec.starts if isinstance(self.spec, TrialSpec) else ()
        return [*(Job(f"start-{start.key}", self.label, start) for start in starts), self]

    def done(self, workspace: Workspace) -> bool:
        """Whether its result is on disk. Raises RecordError for a damaged record."""
        if isinstance(self.spec, TrialSpec):
            return workspace.records.get(self.key) is not None
        return workspace.start(self.spec.key).exists()

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.key, "label": self.label, "trial": self.is_trial, "spec": self.spec.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        kind = TrialSpec if data["trial"] else StartSpec
        return cls(data["key"], data["label"], kind.model_validate(data["spec"]))


@dataclass(frozen=True)
class Outcome:
    """How a job ended. lost: by no fault of a method, and without a record; busy: another run has it.

    message: of a job that is done, why its result is not at the storage. wrong_use: lost because the suite asks for
    what cannot be, and so it would be again.
    """

    status: Literal["done", "busy", "lost"]
    message: str = ""
    wrong_use: bool = False


class Observer(Protocol):
    """Sees what happens, on the driver, one call at a time."""

    def progress(self, job: Job, progress: Sequence[Progress]) -> None: ...
    def ended(self, job: Job, outcome: Outcome) -> None: ...


class Engine(Protocol):
    def run(self, jobs: Sequence[Job], workspace: Workspace, observer: Observer) -> None:
        """Run every job once. Raises EngineError if nothing can be run."""


def jobs_of(plan: Plan) -> list[Job]:
    """Float starts before the trials that need them, long ones first, so that no core waits at the end."""
    longest = {start.key: trial.work for trial in plan.trials for start in trial.spec.starts}
    starts = sorted(plan.starts, key=lambda start: -longest[start.key])
    names = {start.key: f"{start.model.name} · float start · seed {start.seed}" for start in starts}
    trials = sorted(plan.trials, key=lambda trial: -trial.work)
    return [Job(f"start-{start.key}", names[start.key], start) for start in starts] + [
        Job(trial.id, trial.label, trial.spec) for trial in trials
    ]


def execute(job: Job, workspace: Workspace) -> Iterator[Progress | Outcome]:
    """Run one job under its lock: progress while it lasts, then its outcome. Runs in a worker."""
    from benchmarks.engines.together import together
    from benchmarks.keeping import Keeper

    with workspace.lock(job.key, wait=False) as mine:
        if not mine:
            yield Outcome("busy")
            return
        if job.done(workspace):
            yield Keeper(job, workspace, workspace.storage).done()
            return
        yield from work(job, workspace) if workspace.ranks == 1 else together(job, workspace)


def work(job: Job, workspace: Workspace, ranks: Ranks | None = None) -> Iterator[Progress | Outcome]:
    """Do a job, or one rank's part of it, unless it is done; its lock is held by whoever calls.

    Raises DeviceLostError where this process can do no other job either.
    """
    from benchmarks import trial
    from benchmarks.environment import configure_torch
    from benchmarks.faults import machine_s_fault, require_device
    from benchmarks.keeping import Keeper
    from benchmarks.pretraining import float_start
    from benchmarks.ranks import ALONE
    from benchmarks.training import DivergedError

    ranks = ranks or ALONE
    keeper = Keeper(job, workspace, None if ranks.rank else workspace.storage)
    try:
        keeper.fetch()
        if ranks.decided(ranks.rank == 0 and job.done(workspace)):  # by processes of which another died afterwards
            yield keeper.done()
            return
        steps: Generator[Progress, None, object]
        if isinstance(job.spec, TrialSpec):
            steps = trial.run(job.spec, workspace, ranks)
        else:
            configure_torch(workspace.threads, workspace.device)
            steps = float_start(job.spec, workspace, workspace.load_data(job.spec.data), ranks)
        yield from keeper.along(steps)
    except Exception as error:
        if not (isinstance(error, DivergedError) or machine_s_fault(error)):
            raise
        require_device(workspace.device, error)
        yield Outcome("lost", str(error) or traceback.format_exc(), isinstance(error, SuiteError))
        return
    yield keeper.done()


@dataclass
class _Watch:
    """Passes everything on, and remembers how jobs ended. Jobs that are done are so once their result is here.

    Results that are at the storage are brought from there.
    """

    observer: Observer
    workspace: Workspace
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    awaited: list[Job] = field(default_factory=list)

    def progress(self, job: Job, progress: Sequence[Progress]) -> None:
        self.observer.progress(job, progress)

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.key] = outcome
        if outcome.status == "done" and self._missed(job):
            self.awaited.append(job)
        elif outcome.status != "busy":
            self.observer.ended(job, outcome)

    def wait(self) -> None:
        """Wait for the results of jobs that are said to be done; those without one are lost."""
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
        """Why its result is not here; nothing once it is."""
        place = self.workspace
        if job.done(place):
            return ""
        if not place.storage:
            return "is --out on a shared file system? Without one, give --storage"
        from benchmarks.storage import Storage

        try:
            fetched = Storage.at(place.storage).fetch([job], place)
        except (OSError, SuiteError) as error:
            return str(error)
        return "" if fetched else f"nor is it at {place.storage}"


def run_jobs(engine: Engine, jobs: Iterable[Job], workspace: Workspace, observer: Observer) -> dict[str, Outcome]:
    """Run what has no result yet, sharing the work with other runs on the same folder; returns what was lost.

    Jobs that another run holds are waited for, and taken over if that run ends without them.
    """
    lost: dict[str, Outcome] = {}
    pending = [job for job in jobs if not job.done(workspace)]
    while pending:
        watch = _Watch(observer, workspace)
        engine.run(pending, workspace, watch)
        watch.wait()
        outcomes = watch.outcomes
        lost |= {key: outcome for key, outcome in outcomes.items() if outcome.status == "lost"}
        waiting = [job for job in pending if job.key not in outcomes or outcomes[job.key].status == "busy"]
        pending = list(_free(waiting, workspace, observer))
    return lost


def _free(jobs: list[Job], workspace: Workspace, observer: Observer) -> list[Job]:
    """Wait until one of `jobs` can be run here or all have ended elsewhere; returns those still to run."""
    while jobs:
        for job in [job for job in jobs if job.done(workspace)]:
            observer.ended(job, Outcome("done"))
            jobs = [other for other in jobs if other is not job]
        for job in jobs:
            with workspace.lock(job.key, wait=False) as free:
                if free and not job.done(workspace):
                    return jobs
        time.sleep(_POLL_SECONDS)
    return jobs
