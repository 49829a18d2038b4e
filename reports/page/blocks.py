"""What a report is made of: sections of blocks, values that do not know how they are written.

Text is plain: whoever writes a block escapes it for the format. `html` and `markdown` each write every kind of block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from reports.findings.tables import Table

PAGE_ONLY = {
    "sorting": "tables are sorted by a click on a column's head",
    "filter": "the tables of results are filtered by words",
    "explorer": "every trial is a point in a figure that shows its bits per layer under the cursor",
    "strips": "the bits per layer of every trial are drawn; the file shows the first trial of each cell",
    "bars": "the compute account is drawn as bars, in addition to the table",
    "searches": "what each method reports of its own search can be unfolded; the records hold it as well",
}
"""All that the page has and the Markdown file lacks: views by name, in words."""


FEW = 24
"""Up to so many rows or strips, what can be folded begins unfolded."""


@dataclass(frozen=True)
class Prose:
    """A paragraph. role: `note` says how to read what stands beside it, `claim` what may be concluded at all."""

    kind: ClassVar = "prose"
    text: str
    role: Literal["plain", "note", "claim"] = "plain"


@dataclass(frozen=True)
class Heading:
    """A title within a section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Listing:
    """A list of short texts. warning: whether they ask for attention."""

    kind: ClassVar = "listing"
    items: tuple[str, ...]
    warning: bool = False


@dataclass(frozen=True)
class Counts:
    """Numbers, each with what it counts."""

    kind: ClassVar = "counts"
    items: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Grid:
    """A table. name: what the page's filter also searches for its rows; plain: of words, with nothing to sort."""

    kind: ClassVar = "grid"
    table: Table
    name: str = ""
    plain: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing. name: that of its files, without suffix; alt: what it shows, for those who cannot see it."""

    kind: ClassVar = "figure"
    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Preformatted:
    """Lines that are kept as they are: commands, tracebacks, JSON."""

    kind: ClassVar = "preformatted"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader unfolds. open: whether they begin unfolded."""

    kind: ClassVar = "fold"
    title: str
    blocks: tuple[Block, ...]
    open: bool = False


@dataclass(frozen=True)
class Files:
    """Files beside the report, each with what it holds."""

    kind: ClassVar = "files"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PageOnly:
    """A view of PAGE_ONLY. data: what the page draws it from; instead: what the Markdown file has in its place."""

    kind: ClassVar = "page_only"
    view: str
    data: Any = None
    instead: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        if self.view not in PAGE_ONLY:
            raise ValueError(f"view {self.view!r} is not among those that only the page has; add it to PAGE_ONLY")


Block = Prose | Heading | Listing | Counts | Grid | Figure | Preformatted | Fold | Files | PageOnly


@dataclass(frozen=True)
class Section:
    """A part of the report. id: its anchor; short: its name in the contents, the title's where none is given."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    short: str = ""


@dataclass(frozen=True)
class Content:
    """The whole report: a title, blocks before the first section, and sections in order."""

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]

    def blocks(self) -> Iterator[Block]:
        """Every block, those within folds after the fold; without what stands instead of a view."""
        for blocks in (self.lead, *(section.blocks for section in self.sections)):
            yield from walk(blocks)


def walk(blocks: tuple[Block, ...]) -> Iterator[Block]:
    """Every block and, after each fold, those within it."""
    for block in blocks:
        yield block
        if isinstance(block, Fold):
            yield from walk(block.blocks)
