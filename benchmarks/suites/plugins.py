"""Networks and datasets that other packages bring by entry point. For methods see methods/__init__.py."""

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
    """Entry points of installed packages in a group, by name."""
    return {point.name: point for point in entry_points(group=group)}


def load_plugin(group: str, name: str) -> Any:
    """The object that a plug-in's entry point names. Raises SuiteError if it cannot be loaded."""
    try:
        return load_entry(plugged(group)[name])
    except BrokenPluginError as error:
        raise SuiteError(str(error)) from error
