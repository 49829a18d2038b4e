"""Networks and datasets that other packages bring by entry point; free of torch. Methods: see methods/__init__.py."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from benchmarks.messages import SuiteError
from methods import BrokenPluginError, load_entry

MODELS = "mixed_precision.models"
"""name -> function (ModelSpec, number of classes) -> float network over (n, 3, size, size) images."""

DATASETS = "mixed_precision.datasets"
"""name -> function (DataSpec, folder or None) -> benchmarks.data.Dataset."""


@cache
def plugged(group: str) -> dict[str, EntryPoint]:
    """What installed packages bring to a group, by name."""
    return {point.name: point for point in entry_points(group=group)}


def load_plugin(group: str, name: str) -> Any:
    """What a plug-in brings. Raises SuiteError if it cannot be loaded."""
    try:
        return load_entry(plugged(group)[name])
    except BrokenPluginError as error:
        raise SuiteError(str(error)) from error
