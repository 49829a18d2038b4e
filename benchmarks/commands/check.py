"""Runs the checks of tests/test_every_method.py on one method, and shows each result."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.commands.exits import Exit
from benchmarks.commands.session import assignment
from benchmarks.messages import SuiteError
from benchmarks.suites.rows import MethodEntry, options_of
from benchmarks.terminal import console

EXAM = Path(__file__).parents[2] / "tests" / "test_every_method.py"

BROUGHT = ("given",)
"""Methods with an option that depends on the network: the tests make it for each of their networks."""

Show = Callable[[str, str], None]
"""Called with each answer (`ok`, `FAILED` or `not asked`) and its question."""


def execute(method: str, settings: Sequence[str], only: str) -> Exit:
    """Print each question and its answer. settings: `key=value`, options of the method's."""
    chosen = dict(assignment(text) for text in settings)
    try:
        if chosen or method not in BROUGHT:
            options_of(MethodEntry(name=method, options=chosen))
    except ValueError as error:
        raise SuiteError(str(error)) from None
    answers = examine(method, chosen, _show, only=only)
    for question, how in answers.failed:
        console.print(f"\nFAILED: {question}\n{how}", markup=False)
    if answers.failed:
        return Exit.FAILED
    if only:
        console.print(f"{method} passes what was asked ({answers.asked} of {answers.questions})", markup=False)
    else:
        console.print(f"{method} passes; next: add it to a suite's methods", markup=False)
    return Exit.WELL


def _show(mark: str, question: str) -> None:
    console.print(f"{mark:9}  {question}", markup=False)


class Answers(NamedTuple):
    """failed: each failed question, with the failure. asked: how many of all `questions` were asked."""

    failed: list[tuple[str, str]]
    asked: int
    questions: int


def examine(method: str, options: Mapping[str, Any], show: Show, *, only: str = "") -> Answers:
    """Run the tests, called questions here, on a method. Raises SuiteError if `only` selects none.

    options: the method's options in these tests. only: pytest's expression of words in questions (its -k).
    """
    stdout = sys.stdout

    def shown(answer: str, question: str) -> None:
        with contextlib.redirect_stdout(stdout):
            show(answer, question)

    sitting = _Sitting(shown)
    examinee = f"{method}={json.dumps(dict(options))}" if options else method
    arguments = [str(EXAM), "--rootdir", str(EXAM.parent.parent), "--examine", examinee, "-q", "-p", "no:cacheprovider"]
    arguments += ["--capture=sys"]  # this process's own output stays where it goes
    arguments += ["-k", only] if only else []
    unread = io.StringIO()
    with contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
        code = pytest.main(arguments, plugins=[sitting])
    if only and code == pytest.ExitCode.USAGE_ERROR:
        raise SuiteError(f"--only {only!r}: write words with `and`, `or` and `not`, such as `ceiling or gradients`")
    if code == pytest.ExitCode.NO_TESTS_COLLECTED and sitting.left_out:
        raise SuiteError(f"no question has the words {only!r}; questions: {'; '.join(sitting.left_out)}")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sitting.failed.append(("the exam could be held", unread.getvalue().strip()))
    return Answers(sitting.failed, sitting.asked, sitting.selected + len(sitting.left_out))


class _Sitting:
    """A plug-in of pytest that passes each result on to `show`."""

    def __init__(self, show: Show) -> None:
        self.show, self.failed, self.left_out = show, list[tuple[str, str]](), list[str]()
        self.selected = self.asked = 0

    @pytest.hookimpl
    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.left_out += [_question(item.nodeid) for item in items]

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.selected = len(session.items)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        question = _question(report.nodeid)
        self.asked += report.when == "call"
        if report.failed:
            self.failed.append((question, str(report.longreprtext)))
            self.show("FAILED", question)
        elif report.when == "setup" and report.skipped:
            self.show("not asked", question)
        elif report.when == "call":
            self.show("ok", question)


def _question(nodeid: str) -> str:
    """A test's question, made from its name: `it spends no more than its share`."""
    name, _, parameters = nodeid.rpartition("::")[2].partition("[")
    where = [part for part in ("first", "middle", "last") if parameters.rstrip("]").endswith(f"-{part}")]
    return " ".join([name.removeprefix("test_").replace("_", " "), *(f"({part})" for part in where)])
