"""What a command's exit code says."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """FAILED: some trial failed or was lost, or the machine. UNVERIFIED: a claim did not verify."""

    WELL = 0
    FAILED = 1
    WRONG_USE = 2
    UNVERIFIED = 3
    STOPPED = 130
