"""Builds a suite's report, and says where it and everything else of the suite is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.session import Session, check_writable, fetch_records, open_session
from benchmarks.messages import SuiteError
from benchmarks.records.archive import open_records
from benchmarks.records.record import RecordError, RecordSource
from benchmarks.records.view import address_of, how_to_open
from benchmarks.suites.spec import digest
from benchmarks.terminal import command_line, console, say_page, warn

if TYPE_CHECKING:
    from reports.findings.comparison import Comparison


def execute(context: typer.Context, options: Options, place: Path | None) -> Exit:
    """Build the report of what records there are. Raises SuiteError, DataError, RecordError and StorageError.

    place: an archive or a folder of records, in place of those in the output folder.
    """
    session = open_session(options, needs_data=False)
    check_writable(options.out)
    if place and options.storage:
        raise SuiteError("--records and --storage: give one of them, a report is of one place's records")
    fetch_records(session)
    records = open_records(place) if place else session.workspace.records
    write_report(session, records, always=True)
    if not place:
        warn_of_none(session)
    elif not any(records.get(trial.id) for trial in session.plan.trials):
        warn(f"no trial of {session.suite.suite} has a record in {place}; is it of another suite, or version?")
    warn_of_part(context)
    say_where(context, session, options, place)
    return Exit.WELL


def write_report(session: Session, records: RecordSource, *, always: bool = False) -> None:
    """Build the report of some records, unless the existing one shows the same."""
    stamp, stamp_file = _stamp(session, records), session.workspace.report / ".stamp"
    if not always and stamp_file.exists() and stamp_file.read_text(encoding="utf-8") == stamp:
        return
    from reports.build import build_report
    from reports.findings.comparison import ComparisonError

    try:
        report = build_report(session.plan, records, session.workspace.report)
    except ComparisonError as error:
        raise SuiteError(str(error)) from error
    for warning in report.warnings:
        warn(warning)
    stamp_file.write_text(stamp, encoding="utf-8")


def _stamp(session: Session, records: RecordSource) -> str:
    """A digest of what a report shows."""
    trials = session.plan.trials
    found = {trial.id: _seen(records, trial.id) for trial in trials}
    disputed = sorted(record.checksum for record in records.disputed())
    suite = session.suite.model_dump(mode="json")
    return digest({"suite": suite, "trials": [trial.id for trial in trials], "records": found, "disputed": disputed})


def _seen(records: RecordSource, trial_id: str) -> str | None:
    """The checksum of a trial's record, or what is wrong with it: it changes whenever the record does."""
    try:
        record = records.get(trial_id)
    except RecordError as error:
        return str(error)
    return record.checksum if record else None


def gathered(session: Session, records: RecordSource) -> Comparison:
    """A session's plan with some records. Raises SuiteError if they cannot be compared in one table."""
    from reports.findings.comparison import ComparisonError, gather

    try:
        return gather(session.plan, records)
    except ComparisonError as error:
        raise SuiteError(str(error)) from error


def warn_of_none(session: Session) -> None:
    if len(session.missing()) == len(session.plan.trials):
        warn(f"no trial of {session.suite.suite} has a record in {session.workspace.records.folder}; is --out right?")


CUTS = {"methods": "", "models": "", "seeds": ""}
"""Parameters that cut a suite down, with the values that do not."""


def warn_of_part(context: typer.Context) -> None:
    """Warn that a report of a part of a suite replaces the report of the whole: a suite has one."""
    if cut := [f"--{name} {context.params[name]}" for name in CUTS if context.params[name]]:
        whole = command_line(context, "report", **CUTS)
        warn(f"the report is of a part of the suite ({' '.join(cut)}), in place of the whole; for that: {whole}")


def say_where(context: typer.Context, session: Session, options: Options, place: Path | None = None) -> None:
    """Print where report, records, MLflow's view and networks are. place: of the records, if not the output folder."""
    out, networks = session.workspace.out, session.workspace.networks
    console.print(f"report:  {session.workspace.report / 'index.html'}", markup=False)
    console.print(f"records: {place or session.workspace.records.folder}", markup=False)
    if view := how_to_open(address_of(out, options.tracking_uri), session.suite.suite):
        say_page(f"mlflow:  {view}")
    if networks.is_dir():
        console.print(f"again:   {command_line(context, 'evaluate TRIAL')}  (networks in {networks})", markup=False)
