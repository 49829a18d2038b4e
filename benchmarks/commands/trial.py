"""Runs one trial in this process."""

from __future__ import annotations

from dataclasses import replace

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.progress import View
from benchmarks.commands.run import compare_images
from benchmarks.commands.session import Session, check_writable, open_session
from benchmarks.engines import run_jobs
from benchmarks.engines.jobs import Job
from benchmarks.engines.local import LocalEngine
from benchmarks.engines.storage import Storage
from benchmarks.events import Outcome
from benchmarks.terminal import console, errors, say_next


def execute(context: typer.Context, options: Options, trial_id: str) -> Exit:
    """Run the trial whose id begins with `trial_id`, with the float starts that it needs."""
    session = open_session(replace(options, engine="local"))
    chosen = session.find(trial_id)
    check_writable(options.out)
    session.set_damaged_aside([chosen.id])
    job = next(job for job in session.jobs if job.key == chosen.id)
    if lost := _run(session, job):
        what = "error" if lost.wrong_use else "lost"
        errors.print(f"{what}: {job.label}: {lost.message}", markup=False)
        return Exit.WRONG_USE if lost.wrong_use else Exit.FAILED
    console.print(f"record: {session.workspace.records.path(chosen.id)}", markup=False)
    say_next(context, "report")
    record = session.workspace.records.get(chosen.id)
    return Exit.FAILED if record is None or record.status in ("failed", "over_ceiling") else Exit.WELL


def _run(session: Session, job: Job) -> Outcome | None:
    """Run a job and show its progress; returns how it was lost, None if it was not."""
    place, storage = session.workspace, session.runtime.storage
    kept = None if storage is None else Storage.at(storage)
    if kept:
        kept.fetch(job.with_starts, place)
    if not place.done(job.spec):
        compare_images(session)
    with View(console, [job], {job.key: 1.0}, place.records) as view:
        lost = run_jobs(LocalEngine(session.suite.resources), [job], place, session.runtime, view)
    if kept:
        kept.keep(job.with_starts, place)
    return lost.get(job.key)
