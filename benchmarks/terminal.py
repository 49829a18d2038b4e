"""Where the command line writes: results and progress to stdout, warnings and errors to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    errors.print(f"warning: {text}", markup=False)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Aligned plain text: suites have hundreds of trials, for which rich's tables take a second."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
