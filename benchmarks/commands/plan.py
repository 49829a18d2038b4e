"""Shows a suite's trials and what is done, without running anything."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import gathered
from benchmarks.commands.session import Session, fetch_records, open_session
from benchmarks.messages import SuiteError
from benchmarks.planning import Trial
from benchmarks.terminal import console, print_columns, say_next, warn


def execute(
    context: typer.Context, options: Options, *, ids: bool, as_json: bool, measure: bool, gap: float | None
) -> Exit:
    """Print the plan as a table, as the ids of missing trials, or as JSON.

    measure: time a step of each kind here. gap: in percentage points; print how many seeds such a difference takes.
    """
    if (measure or gap is not None) and (ids or as_json):
        raise SuiteError("--measure and --gap go with the plan as a table, not with --ids or --json")
    if gap is not None and not gap > 0:
        raise SuiteError(f"--gap {gap:g}: give a difference in points above 0, such as 0.5")
    session = open_session(options, needs_data=measure)
    fetch_records(session)
    if ids:
        for trial in session.missing():
            print(trial.id)
        return Exit.WELL
    rows = _rows(session)
    if as_json:
        print(json.dumps([{"id": t.id, "label": t.label, "status": s, "spec": t.spec.model_dump()} for t, s in rows]))
        return Exit.WELL
    _show(session, rows)
    if measure:
        from benchmarks.commands.measure import show_estimate

        show_estimate(session)
    if gap is not None:
        _show_power(session, gap / 100)
    say_next(context)
    return Exit.WELL


Rows = Sequence[tuple[Trial, str]]


def _rows(session: Session) -> Rows:
    """Every trial with its record's status, or that it is to run."""
    trials = session.plan.trials
    return [(trial, record.status if (record := session.record(trial.id)) else "to run") for trial in trials]


def _show(session: Session, rows: Rows) -> None:
    cells = [("id", "network", "method", "ceiling", "MBOPs", "seed", "draw", "status")]
    for trial, status in rows:
        spec = trial.spec
        budget = "-" if spec.ceiling_bops is None else f"{spec.ceiling_bops / 1e6:,.2f}"
        cells.append((trial.id, trial.model, trial.row, trial.ceiling, budget, str(spec.seed), str(spec.draw), status))
    print_columns(cells)
    for warning in session.plan.warnings:
        warn(warning)
    epochs = sum(trial.spec.compute.epochs for trial in session.plan.trials)
    cached = sum(session.workspace.done(start) for start in session.plan.starts)
    console.print(
        f"{len(rows)} trials of {session.suite.compute.epochs:g} recipe epochs ({epochs:g} in all) from "
        f"{len(session.plan.starts)} float starts, {cached} of them there; {len(session.missing())} to run"
    )


def _show_power(session: Session, gap: float) -> None:
    """Seeds that a gap needs, at the spread of the records here, else of the shipped ones, of whatever version."""
    from reports.findings.power import advice, spreads
    from reports.results.measured import as_measured
    from reports.verification.reference import shipped

    source, found = "records here", gathered(session, session.workspace.records)
    if not spreads(found):
        source, found = "shipped records", as_measured(session.plan, list(shipped(session.suite.suite))).comparison
    for line in advice(found, gap, source):
        console.print(line, markup=False)
