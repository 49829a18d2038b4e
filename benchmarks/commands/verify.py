"""Sets a suite's records against published numbers and against the records shipped with this repository."""

from __future__ import annotations

from pathlib import Path

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import gathered
from benchmarks.commands.session import open_session
from benchmarks.records.archive import open_records
from benchmarks.terminal import console, say_next
from reports.verification.claims import FAILED, judged, published
from reports.verification.reference import checked, lines, shipped


def execute(context: typer.Context, options: Options, reference: Path | None) -> Exit:
    """Print what was reproduced and what was not.

    reference: an archive or a folder of records, in place of those shipped.
    """
    session = open_session(options, needs_data=False)
    theirs = open_records(reference) if reference else shipped(session.suite.suite)
    verdicts = judged(gathered(session, session.workspace.records), published())
    checks = checked(session.plan, session.workspace.records, theirs)
    for line in lines(checks, verdicts):
        console.print(line, markup=False)
    statuses = [*(check.status for check in checks), *(verdict.status for verdict in verdicts)]
    if set(statuses) & set(FAILED):
        return Exit.UNVERIFIED
    if not statuses:
        name = session.suite.suite
        console.print(
            f"no shipped reference matches these settings of {name}; give one with --reference OUT/{name}/records"
        )
    elif "reproduced" not in statuses:
        console.print("nothing to verify yet: none of these trials has both a record and a reference")
        say_next(context)
    return Exit.WELL
