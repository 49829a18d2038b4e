"""Lists what can be named: suites, methods, data sets and networks."""

from __future__ import annotations

import json
from collections.abc import Mapping

from benchmarks.commands.exits import Exit
from benchmarks.suites.plugins import DATASETS, MODELS, plugged
from benchmarks.suites.spec import OWN_DATASETS, OWN_MODELS
from benchmarks.suites.suite import load_suite, suite_names
from benchmarks.terminal import console, print_columns
from methods import BrokenPluginError, known_methods, load_method


def execute(*, as_json: bool) -> Exit:
    """Print them as tables, or as JSON."""
    suites = {name: load_suite(name).description for name in suite_names()}
    methods = {name: _described(name) for name in sorted(known_methods())}
    datasets, networks = _with_plugged(OWN_DATASETS, DATASETS), _with_plugged(OWN_MODELS, MODELS)
    if as_json:
        print(json.dumps({"suites": suites, "methods": methods, "datasets": datasets, "networks": networks}))
        return Exit.WELL
    tables = {"suite": suites, "method": methods, "data set": datasets, "network": networks}
    for title, rows in tables.items():
        print_columns([(title, "what it is"), *rows.items()])
        print()
    console.print("next: python runner.py plan --suite NAME, then python runner.py --suite NAME")
    return Exit.WELL


def _described(method: str) -> str:
    try:
        return (load_method(method).__doc__ or "").partition("\n")[0]
    except BrokenPluginError as error:
        return str(error)


def _with_plugged(own: Mapping[str, str], group: str) -> dict[str, str]:
    """What the project has, and what installed packages bring, which says where it is from and is not imported."""
    return {**own, **{name: f"From {point.value}." for name, point in sorted(plugged(group).items())}}
