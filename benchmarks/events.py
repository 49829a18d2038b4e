"""What a job reports while it runs, and how it ended. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Progress:
    """One step of a job, as seen from outside.

    total: steps of this stage, None if unknown. note: a message for the user; none if empty.
    """

    stage: str
    step: int
    total: int | None
    row: Mapping[str, Any]
    note: str = ""

    @classmethod
    def noting(cls, note: str) -> Progress:
        """No step, only a message for the user."""
        return cls("note", 0, None, {}, note)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    failed: a float start that cannot be trained by its network's fault, as the records of its trials say; lost: through
    no fault of a method, and without a record; busy: another run has it.

    message: why it failed or was lost; of a job that is done, why its result is not at the storage. wrong_use: lost to
    a configuration error; a rerun would fail too.
    """

    status: Literal["done", "failed", "busy", "lost"]
    message: str = ""
    wrong_use: bool = False
