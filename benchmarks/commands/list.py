"""Lists what can be named: suites and methods."""

from __future__ import annotations

import json

from benchmarks.commands.exits import Exit
from benchmarks.suites.suite import load_suite, suite_names
from benchmarks.terminal import console, print_columns
from methods import BrokenPluginError, known_methods, load_method


def execute(*, as_json: bool) -> Exit:
    """Print them as tables, or as JSON."""
    suites = {name: load_suite(name).description for name in suite_names()}
    methods = {name: _described(name) for name in sorted(known_methods())}
    if as_json:
        print(json.dumps({"suites": suites, "methods": methods}))
        return Exit.WELL
    for title, rows in (("suite", suites), ("method", methods)):
        print_columns([(title, "what it is"), *rows.items()])
        print()
    console.print("next: python runner.py plan --suite NAME, then python runner.py --suite NAME")
    return Exit.WELL


def _described(method: str) -> str:
    try:
        return (load_method(method).__doc__ or "").partition("\n")[0]
    except BrokenPluginError as error:
        return str(error)
