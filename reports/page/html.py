"""The report as one self-contained page: figures embedded, nothing fetched, every name escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.untrusted import printable
from reports.findings.account import ACCOUNT_WORDS
from reports.findings.strips import COLOURS
from reports.page.blocks import FEW, Content, Figure
from reports.page.explorer import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH

FILE = "index.html"

WRAPPED = frozenset({"Verdict", "Read from", "Source", *ACCOUNT_WORDS})
"""Columns of words that may break into lines; all others keep to one line."""

DPI = 200


def render(content: Content, pictures: Mapping[str, bytes]) -> str:
    """The text of FILE. pictures: PNG by file name, of every figure in the content."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    script = (folder / "page.js").read_text(encoding="utf-8")
    shown = [f"{block.name}.png" for block in content.blocks() if isinstance(block, Figure)]
    return environment.get_template("page.html.j2").render(
        content=content,
        css=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}",
        pictures={name: _embedded(pictures[name]) for name in shown},
        own_file=FILE,
        wrapped=WRAPPED,
        few=FEW,
        colours=COLOURS,
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def _shown(value: Any) -> Any:
    """What stands where the template names a value; text that is HTML already is ours."""
    return printable(value) if type(value) is str else value


def _embedded(png: bytes) -> dict[str, Any]:
    """A PNG as text, and how wide it is shown: a third wider than on paper."""
    pixels = int.from_bytes(png[16:20], "big")
    return {"data": base64.b64encode(png).decode(), "width": round(pixels * 128 / DPI)}
