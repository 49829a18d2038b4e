"""Committed MAC ledgers: ceilings become BOPs without torch. `python -m benchmarks.ledgers` remakes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from methods.quantization.cost import Ledger, ledger_from_json

if TYPE_CHECKING:
    from benchmarks.suites.spec import DataSpec, ModelSpec

FOLDER = Path(__file__).parent


def ledger_path(model: ModelSpec, data: DataSpec) -> Path:
    """Where the ledger of a network stands: one file per construction, image size and number of classes."""
    return FOLDER / f"{model.name}-x{model.width:g}-{model.form}-{data.image_size}px-{data.classes}.json"


def ledger_for(model: ModelSpec, data: DataSpec) -> Ledger:
    """The layers of a network with their MACs; one that has no committed ledger is built with torch.

    Raises SuiteError where such a network cannot be counted or quantized as it is.
    """
    return _ledger(model, data)


@cache
def notes_for(model: ModelSpec, data: DataSpec) -> tuple[str, ...]:
    """Warnings about a network that has no committed ledger: it is built and run once, with torch.

    Raises SuiteError where it does not run once it is quantized.
    """
    if is_committed(model, data):
        return ()
    from benchmarks.models import inspect_network

    return inspect_network(model, data)


def is_committed(model: ModelSpec, data: DataSpec) -> bool:
    return ledger_path(model, data).exists() and not model.stays_float


@cache
def _ledger(model: ModelSpec, data: DataSpec) -> Ledger:
    if is_committed(model, data):
        return ledger_from_json(ledger_path(model, data).read_text(encoding="utf-8"))
    from benchmarks.models import measure_ledger

    return measure_ledger(model, data)
