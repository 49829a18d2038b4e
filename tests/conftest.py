"""What every test runs under: hypothesis profiles, one thread, and a folder that the session's processes share."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.sharing import open_folder

# `ci`: the same examples on every run, so that a red build is a change of the code. No deadline: the first call of a
# kernel may take a hundred times as long as the second. `explore`: new examples each time, for an evening's hunt.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, max_examples=50, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--examine",
        dest="examinees",
        action="append",
        default=[],
        type=_examinee,
        metavar='METHOD[={"option": value}]',
        help="the methods that tests/test_every_method.py examines; all registered ones if none is named",
    )
    parser.addoption(
        "--path",
        choices=("fused", "plain", "compiled"),
        default="fused",
        help="what quantizes in tests/test_every_method.py; compiled: torch.compile in fine-tuning, else as fused",
    )


def pytest_configure(config: pytest.Config) -> None:
    open_folder(config)
    if config.getoption("--path") == "plain":
        os.environ["QUANTIZER_PATH"] = "plain"  # before anything of ours is imported; child processes inherit it


LONGEST = {
    "test_benchmarks_ranks",
    "test_engines_cluster",
    "test_every_method",
    "test_faults",
    "test_trials_checkpoint",
}
"""Files whose tests take longest. Begun first, so that no worker is left with one when the other has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def _examinee(given: str) -> tuple[str, dict[str, Any]]:
    name, _, options = given.partition("=")
    return name, json.loads(options or "{}")


torch.set_num_threads(1)  # sums keep their order, and the tests their speed beside other work
