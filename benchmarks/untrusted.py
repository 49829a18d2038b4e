"""Makes text from others, such as a record's or an exception's, harmless where it is shown. Free of torch.

A page, Markdown and LaTeX have their own escapes, in `reports`; all of them begin with `printable`.
"""

from __future__ import annotations

import re
from typing import Any

COMMIT = re.compile(r"[0-9a-f]{40}")
"""Matches a full commit hash; nothing else is written into a command as a commit."""

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links, clipboard, device control
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|[\x90\x98\x9d-\x9f][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_FORMULA = re.compile(r"[\t\r]|\s*[=+\-@\uff0b\uff0d\uff1d\uff20]")


def printable(text: str) -> str:
    r"""Text without terminal escapes, other control characters and text-direction marks; line ends and tabs stay.

    A lone surrogate, which no file can hold, becomes U+FFFD.

    >>> printable("\x1b[31mred\x1b[0m\x07 and\r\nplain \x1b]0;a title\x07text")
    'red and\nplain text'
    """
    lines = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", _SEQUENCES.sub("", text))
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", lines))


def csv_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula, blanks before it or not, gets a quote; numbers stay numbers.

    >>> csv_cell("=1+1"), csv_cell(" -x"), csv_cell(-1.5)
    ("'=1+1", "' -x", -1.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) else text
