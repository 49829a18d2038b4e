"""The report as Markdown, for reading in a terminal or a repository: every section of the page, in its order."""

from __future__ import annotations

import html
import re

from benchmarks.untrusted import printable
from reports.findings.tables import escape_markdown, markdown
from reports.page.blocks import (
    Block,
    Content,
    Counts,
    Figure,
    Files,
    Fold,
    Grid,
    Heading,
    Listing,
    PageOnly,
    Preformatted,
    Prose,
    Section,
)

FILE = "report.md"


def write(content: Content) -> str:
    """The text of FILE; its pictures are the files beside it."""
    parts = [f"# {escape_markdown(content.title)}", *map(_block, content.lead), *map(_section, content.sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {escape_markdown(section.title)}", *filter(None, map(_block, section.blocks))])


def _block(block: Block) -> str:
    match block:
        case Prose(text):
            return escape_markdown(text)
        case Heading(text):
            return f"### {escape_markdown(text)}"
        case Listing(items):
            return "\n".join(f"- {escape_markdown(item)}" for item in items)
        case Counts(items):
            return escape_markdown(", ".join(f"{number} {words}" for words, number in items))
        case Grid(table):
            return markdown(table).rstrip("\n")
        case Figure(name, alt, caption):
            return f"![{escape_markdown(alt)}]({name}.png)\n\n{escape_markdown(caption)}"
        case Preformatted(text):
            return _preformatted(text)
        case Fold(title, blocks, begins_open):
            return _fold(title, "\n\n".join(filter(None, map(_block, blocks))), begins_open)
        case Files(items):
            return "\n".join(f"- [{name}]({name}): {escape_markdown(words)}" for name, words in items if name != FILE)
        case PageOnly(_, _, instead):
            return "\n\n".join(map(_block, instead))


def _fold(title: str, inside: str, begins_open: bool) -> str:
    """Raw HTML, in which Markdown's own escapes would show; blank lines end it, so a title is one line."""
    summary = html.escape(" ".join(printable(title).split()))
    return f"<details{' open' if begins_open else ''}><summary>{summary}</summary>\n\n{inside}\n\n</details>"


def _preformatted(text: str) -> str:
    """Lines between fences; as escaped HTML where a fence could be left, or what is in it be taken for tags."""
    lines = printable(text).rstrip()
    if re.search("[<>`~]", lines):
        return f"<pre>{html.escape(lines, quote=False).replace('`', '&#96;').replace('~', '&#126;')}</pre>"
    return f"```\n{lines}\n```"
