"""Has one method sit the exam of tests/test_every_method.py, question by question."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

EXAM = Path(__file__).parent.parent / "tests" / "test_every_method.py"

BROUGHT = ("given",)
"""Methods that need an option made for a network: the exam brings one for each of its own."""

Show = Callable[[str, str], None]
"""Told each question as it is answered: `ok`, `FAILED` or `not asked`, and what it is."""


def examine(method: str, options: Mapping[str, Any], show: Show, *, only: str = "") -> list[tuple[str, str]]:
    """Each question that the method fails, with how it failed.

    options: those of the method's that it sits the exam under. only: pytest's expression of words in questions.
    """
    stdout = sys.stdout

    def shown(answer: str, question: str) -> None:
        with contextlib.redirect_stdout(stdout):
            show(answer, question)

    sitting = _Sitting(shown)
    examinee = f"{method}={json.dumps(dict(options))}" if options else method
    arguments = [str(EXAM), "--rootdir", str(EXAM.parent.parent), "--examine", examinee, "-q", "-p", "no:cacheprovider"]
    arguments += ["-k", only] if only else []
    unread = io.StringIO()
    with contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
        code = pytest.main(arguments, plugins=[sitting])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sitting.failed.append(("the exam could be held", unread.getvalue().strip()))
    return sitting.failed


class _Sitting:
    """A plug-in of pytest that passes each answer on."""

    def __init__(self, show: Show) -> None:
        self.show, self.failed = show, list[tuple[str, str]]()

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        question = _question(report.nodeid)
        if report.failed:
            self.failed.append((question, str(report.longreprtext)))
            self.show("FAILED", question)
        elif report.when == "setup" and report.skipped:
            self.show("not asked", question)
        elif report.when == "call":
            self.show("ok", question)


def _question(nodeid: str) -> str:
    """What a test asks, from its name: `it spends no more than its share`."""
    name, _, parameters = nodeid.rpartition("::")[2].partition("[")
    where = [part for part in ("first", "middle", "last") if parameters.rstrip("]").endswith(f"-{part}")]
    return " ".join([name.removeprefix("test_").replace("_", " "), *(f"({part})" for part in where)])
