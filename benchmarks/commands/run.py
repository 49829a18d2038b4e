"""Runs what a suite lacks: images first, then jobs by an engine, mirrored to a terminal and to MLflow; and reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.mlflow_sync import tracker_for
from benchmarks.commands.options import Options
from benchmarks.commands.report import say_where, warn_of_part, write_report
from benchmarks.commands.session import Session, check_writable, open_session
from benchmarks.engines import Engine, run_jobs
from benchmarks.engines.jobs import Job
from benchmarks.engines.storage import Storage
from benchmarks.events import Outcome, Progress
from benchmarks.messages import SuiteError, unknown
from benchmarks.suites.spec import ProceduralSpec
from benchmarks.suites.suite import Suite
from benchmarks.terminal import console, errors, warn

if TYPE_CHECKING:
    from benchmarks.commands.progress import View
    from benchmarks.records.tracking import Tracker


def execute(context: typer.Context, options: Options, retry: str | None) -> Exit:
    """Run a suite and report. Raises SuiteError, DataError, EngineError and so on if it cannot begin.

    retry: `failed` to run failed trials again.
    """
    check_engine(options.engine)
    if retry not in (None, "failed"):
        raise SuiteError(unknown("value of --retry", str(retry), ["failed"]))
    session = open_session(options)
    check_writable(options.out)
    session.set_damaged_aside()
    for warning in session.plan.warnings:
        warn(warning)
    kept = None if options.storage is None else Storage.at(options.storage)
    if kept:
        fetched = kept.fetch(session.jobs, session.workspace)
        console.print(f"{fetched} results fetched from {options.storage}", markup=False)
    if retry:
        failed = session.forget_failures()
        if kept:
            kept.forget(failed, session.workspace)

    def keep_and_report() -> None:
        if kept:
            kept.keep(session.jobs, session.workspace)
        write_report(session, session.workspace.records)

    lost: dict[str, Outcome] = {}
    if session.missing():
        if kept:  # float starts from before there was a storage, for other nodes
            kept.keep((job for job in session.jobs if not job.is_trial), session.workspace)
        lost = run_missing(session, engine_of(options, session.suite), options.tracking_uri, keep_and_report)
    else:
        keep_and_report()
    return _finish(context, session, options, lost)


def _finish(context: typer.Context, session: Session, options: Options, lost: dict[str, Outcome]) -> Exit:
    """Say what failed, and where everything is."""
    warn_of_part(context)
    unfinished = say_failures(session, lost)
    say_where(context, session, options)
    if would_be_lost_again(lost):
        return Exit.WRONG_USE
    if unfinished:
        console.print("some trials failed or were lost: run the same command again (--retry failed for failed ones)")
    return Exit.FAILED if unfinished else Exit.WELL


def would_be_lost_again(lost: dict[str, Outcome]) -> bool:
    """Whether every lost job was lost to wrong use."""
    return bool(lost) and all(outcome.wrong_use for outcome in lost.values())


def check_engine(name: str) -> None:
    """Raises SuiteError for an unknown engine."""
    if name not in ("ray", "local"):
        raise SuiteError(unknown("engine", name, ["ray", "local"]))


def run_missing(
    session: Session, engine: Engine, tracking_uri: str | None = None, report: Callable[[], None] | None = None
) -> dict[str, Outcome]:
    """Run what is missing; returns what was lost. report: writes the suite's report, which MLflow gets as well."""
    from benchmarks.commands.progress import View

    draw_images(session)
    compare_images(session)
    jobs = [job for job in session.jobs if not session.workspace.done(job.spec)]
    work = {trial.id: trial.work for trial in session.plan.trials}
    work |= {f"start-{start.key}": trial.work for trial in session.plan.trials for start in trial.spec.starts}
    done = len(session.plan.trials) - len(session.missing())
    console.print(f"{session.suite.suite}: {len(session.plan.trials)} trials, {done} done already")
    place = session.workspace
    with place.lock("mlflow", wait=False) as only_writer, View(console, jobs, work, place.records) as view:
        tracker = tracker_for(session, tracking_uri) if only_writer else None
        lost = run_jobs(engine, jobs, place, session.runtime, Mirrored(session, view, tracker))
        try:
            if report:
                report()
        finally:
            if tracker:
                tracker.close(sorted(place.report.glob("*.*")) if report else ())
    return lost


def engine_of(options: Options, suite: Suite) -> Engine:
    if options.engine == "local":
        from benchmarks.engines.local import LocalEngine

        return LocalEngine(suite.resources)
    # Read when ray is imported: with no cluster to join, Ray listens only on this machine's own address.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1" if options.address else "0"
    from benchmarks.engines.ray.engine import RayEngine

    return RayEngine(suite.resources, options.address)


@dataclass
class Mirrored:
    """Shows progress and mirrors it to MLflow; without a tracker another run on this folder does that."""

    session: Session
    view: View
    tracker: Tracker | None

    def progress(self, job: Job, progress: Sequence[Progress]) -> None:
        self.view.progress(job, progress)
        if job.is_trial and self.tracker:
            events = [event for event in progress if event.stage != "pretrain"]
            if events:
                self.tracker.progress(self.session.trials[job.key], events)

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.view.ended(job, outcome)
        if job.is_trial and self.tracker and (record := self.session.workspace.records.get(job.key)):
            self.tracker.finished(self.session.trials[job.key], record)
        if outcome.status == "done" and outcome.message:  # tried again at the end of the run
            warn(outcome.message)


def draw_images(session: Session) -> None:
    """Have generated images on disk before any job needs them."""
    data, folder = session.suite.data, session.runtime.data
    if isinstance(data, ProceduralSpec) and folder:
        from benchmarks.commands.progress import prepare_images

        prepare_images(console, data, folder, warn)


def compare_images(session: Session) -> None:
    """Raises DataError for image files that have changed since they were prepared, before any job needs them."""
    data, runtime = session.suite.data, session.runtime
    if data.dataset == "imagefolder" and runtime.data:
        from benchmarks.commands.progress import told
        from benchmarks.data.comparing import require_unchanged

        with told(console) as progress:
            require_unchanged(
                data, runtime.data, allow_bad_images=runtime.allow_bad_images, progress=progress, warn=warn
            )


def say_failures(session: Session, lost: dict[str, Outcome]) -> bool:
    """Print what failed or was lost; returns whether anything was."""
    records = [session.record(trial.id) for trial in session.plan.trials]
    failed = [record for record in records if record and record.status in ("failed", "over_ceiling")]
    names = {job.key: job.label for job in session.jobs}
    for message, keys in _by_message(lost).items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        what = "error" if lost[keys[0]].wrong_use else "lost"
        errors.print(f"{what}: {names[keys[0]]}{more}: {message}", markup=False)
    for record in failed:
        errors.print(f"{record.status}: {names[record.id]}: {record.result['reason']['message']}", markup=False)
    return bool(failed or lost)


def _by_message(lost: dict[str, Outcome]) -> dict[str, list[str]]:
    """Lost jobs grouped by what they died of: one missing file may cost a whole suite."""
    groups: dict[str, list[str]] = {}
    for key, outcome in lost.items():
        groups.setdefault(outcome.message, []).append(key)
    return groups
