"""Mirrors a suite to MLflow, and rebuilds that view from its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.addresses import shown
from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import warn_of_none
from benchmarks.commands.session import Session, open_session
from benchmarks.messages import SuiteError
from benchmarks.records.view import address_of, how_to_open
from benchmarks.terminal import console, errors, say_page, warn

if TYPE_CHECKING:
    from benchmarks.records.tracking import Tracker


def execute(options: Options) -> Exit:
    """Log every record that there is, and the report. Raises SuiteError for an address that MLflow cannot use."""
    session = open_session(options, needs_data=False)
    failures: list[str] = []
    tracker = tracker_for(session, options.tracking_uri, failures.append)
    synced = 0
    for trial in session.plan.trials:
        if record := session.record(trial.id):
            tracker.finished(trial, record)
            synced += 1
    tracker.close(sorted(session.workspace.report.glob("*.*")))
    if tracker.unusable:
        raise SuiteError(failures[0])
    if failures:
        errors.print(f"error: {failures[0]}; the view is not whole: run the same command again", markup=False)
        return Exit.FAILED
    warn_of_none(session)
    console.print(f"{synced} records mirrored to {shown(tracker.uri)}", markup=False)
    say_page(f"next: {how_to_open(tracker.uri, session.suite.suite, tracker.experiment)}")
    return Exit.WELL


def tracker_for(session: Session, uri: str | None, failed: Callable[[str], None] | None = None) -> Tracker:
    """The suite's mirror at a URI. failed: called with what went wrong; by default it warns, as trials go on."""
    from benchmarks.records.tracking import Tracker

    def go_on(what: str) -> None:
        warn(f"{what}; trials go on, `mlflow-sync` rebuilds the view later")

    out = session.workspace.out
    return Tracker(session.suite, out, address_of(out, uri), failed or go_on)
