"""Sets a suite's records against published numbers and against the records shipped with this repository."""

from __future__ import annotations

from pathlib import Path

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import gathered
from benchmarks.commands.session import open_session
from benchmarks.messages import SuiteError
from benchmarks.records.record import Records
from benchmarks.terminal import console, say_next
from reports.verification.claims import FAILED, judged, published
from reports.verification.reference import REFERENCE, checked, lines


def execute(context: typer.Context, options: Options, reference: Path | None) -> Exit:
    """Print what was reproduced and what was not. reference: a folder of records, in place of those shipped."""
    session = open_session(options, needs_data=False)
    if reference and not any(reference.glob("*.json")):
        raise SuiteError(f"no records in {reference}; --reference is a folder of records, such as OUT/SUITE/records")
    verdicts = judged(gathered(session, session.workspace.records), published())
    place = reference or REFERENCE / session.suite.suite
    checks = checked(session.plan, session.workspace.records, Records(place))
    for line in lines(checks, verdicts):
        console.print(line, markup=False)
    statuses = [*(check.status for check in checks), *(verdict.status for verdict in verdicts)]
    if set(statuses) & set(FAILED):
        return Exit.UNVERIFIED
    if not statuses:
        name = session.suite.suite
        console.print(f"there is no reference for {name} as it is set here; name one: --reference OUT/{name}/records")
    elif "reproduced" not in statuses:
        console.print("there is nothing yet that could be held against anything")
        say_next(context)
    return Exit.WELL
