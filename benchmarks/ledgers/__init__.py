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
    """The layers of a network with their MACs; one that has no committed ledger is built with torch."""
    return _ledger(model, data)


@cache
def _ledger(model: ModelSpec, data: DataSpec) -> Ledger:
    path = ledger_path(model, data)
    if path.exists():
        return ledger_from_json(path.read_text(encoding="utf-8"))
    from benchmarks.models import measure_ledger

    return measure_ledger(model, data)
