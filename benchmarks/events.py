"""What a job tells while it runs, and how it ended. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Progress:
    """One step of a job, as seen from outside. total: steps of this stage, None where it is not known."""

    stage: str
    step: int
    total: int | None
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a job ended. lost: through no fault of a method, and without a record; busy: another run has it.

    message: of a job that is done, why its result is not at the storage. wrong_use: lost to a configuration error; a
    rerun would fail too.
    """

    status: Literal["done", "busy", "lost"]
    message: str = ""
    wrong_use: bool = False
