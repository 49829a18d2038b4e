"""Where the command line writes: results and progress to stdout, warnings and errors to stderr.

All text printed here is made `printable`, so that a record's message cannot move the cursor or set a title.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from benchmarks.addresses import shown, without_secrets
from benchmarks.untrusted import printable


class _Careful(Console):
    """A console that makes every text printable and removes user, password and query from its addresses."""

    def print(self, *objects: Any, **how: Any) -> None:
        texts = (printable(without_secrets(each)) if isinstance(each, str) else each for each in objects)
        super().print(*texts, **how)


console = _Careful(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
errors = _Careful(stderr=True, highlight=False, soft_wrap=True)


def say_page(text: str) -> None:
    """Print a line whose addresses are `shown` already, and keep their # and ? parts, which name a place in a page."""
    console.print(Text(printable(text)))


def warn(text: str) -> None:
    errors.print(f"warning: {text}", markup=False)


def say_next(context: typer.Context, command: str = "", **changed: Any) -> None:
    """Print the command to run after this one; see `command_line`."""
    console.print(f"next: {command_line(context, command, **changed)}", markup=False)


def command_line(context: typer.Context, command: str = "", **changed: Any) -> str:
    """Another command, with the options that this one was given and that one takes.

    command: its name and arguments; `run` goes without one. changed: options by their parameters' names, over those
    given; None leaves one out. Addresses are without user, password and query.
    """
    group: Any = context.find_root().command
    name, *_ = [*command.split(), "run"]
    takes = {parameter.opts[0] for parameter in group.commands[name].params}
    given: Mapping[str, Any] = {**context.params, **changed}
    parts = ["python", "runner.py", *command.split()]
    for parameter in context.command.params:
        value, (option, *_) = given[parameter.name or ""], parameter.opts
        if option in takes and (option == "--suite" or value not in (None, parameter.default, [], ())):
            values = value if isinstance(value, list | tuple) else [value]
            parts += [text for each in values for text in (option, shown(each) if isinstance(each, str) else each)]
    return shlex.join(map(str, parts))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Aligned plain text: suites have hundreds of trials, for which rich's tables take a second."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
