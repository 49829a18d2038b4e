"""Runs a suite at several shares of its compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.report import gathered
from benchmarks.commands.run import check_engine, engine_of, run_missing, say_failures, would_be_lost_again
from benchmarks.commands.session import Session, check_writable, open_session
from benchmarks.events import Outcome
from benchmarks.messages import SuiteError
from benchmarks.terminal import console, warn


def execute(options: Options, shares: str) -> Exit:
    """Run the suite at each of `shares`, separated by commas, and write how stable the order of methods is."""
    check_engine(options.engine)
    whole = open_session(options)
    if not any(entry.name == "float" for entry in whole.suite.methods):
        raise SuiteError("a sweep measures from the float control at the same compute; add float to the methods")
    sessions = {
        share: open_session(replace(options, overrides=[*options.overrides, f"compute.epochs={epochs!r}"]))
        for share, epochs in shares_of(shares, whole.suite.compute.epochs).items()
    }
    check_writable(options.out)
    for warning in whole.plan.warnings:
        warn(warning)
    unfinished, lost = _run_each(sessions, options)
    _write_stability(whole, sessions)
    if would_be_lost_again(lost):
        return Exit.WRONG_USE
    if unfinished:
        console.print("some trials failed or were lost: run the same command again")
    return Exit.FAILED if unfinished else Exit.WELL


def _run_each(sessions: Mapping[float, Session], options: Options) -> tuple[bool, dict[str, Outcome]]:
    """Whether some trial failed or was lost, and what was lost."""
    unfinished, all_lost = False, dict[str, Outcome]()
    for session in sessions.values():
        session.set_damaged_aside()
        lost = run_missing(session, engine_of(options, session.suite)) if session.missing() else {}
        unfinished |= say_failures(session, lost)
        all_lost |= lost
    return unfinished, all_lost


def _write_stability(whole: Session, sessions: Mapping[float, Session]) -> None:
    from reports.studies.stability import write

    found = {share: gathered(session, session.workspace.records) for share, session in sessions.items()}
    console.print(f"stability: {write(found, whole.workspace.report)}", markup=False)


def shares_of(text: str, epochs: float) -> dict[float, float]:
    """Share -> epochs, ascending. Raises SuiteError.

    >>> shares_of("1,0.5", 9)
    {0.5: 4.5, 1.0: 9.0}
    """
    try:
        shares = sorted({float(part) for part in text.split(",")})
    except ValueError:
        shares = []
    if len(shares) < 2 or not all(0 < share < float("inf") for share in shares):
        raise SuiteError(
            f"--shares {text!r}: write two or more different numbers above 0 separated by commas, such as 0.25,0.5,1,2"
        )
    return {share: share * epochs for share in shares}
