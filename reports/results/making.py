"""Makes the pages: reads records, keeps our own words, draws figures, and fills in answers that documents repeat."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from benchmarks.records.archive import SUFFIX, open_records, with_parts
from benchmarks.records.record import Record
from benchmarks.suites.spec import canonical_json
from reports.findings import across, tables
from reports.findings.tables import escape_markdown
from reports.results.measured import Measured, ResultsError, as_measured
from reports.results.page import ours_of, page, prose
from reports.results.sections import Picture, Sections, sections_of
from reports.results.shipped import SHIPPED, Shipped

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "reports/reference"
PAGES = ROOT / "docs/results"
DOCUMENTS = (ROOT / "README.md",)
"""Documents that repeat answers, between `<!-- answer: NAME -->` and `<!-- end -->`."""

DPI = 120

_ANSWER = re.compile(r"(<!-- answer: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DESCRIPTION = re.compile(rb"made from ([0-9a-f]{64})")


class Maker:
    """Pages of the records in one folder, for one folder of pages; what several pages need is read once."""

    def __init__(self, records: Path = RECORDS, pages: Path = PAGES) -> None:
        self.folder, self.pages = records, pages
        self._records: dict[str, list[Record]] = {}
        self._measured: dict[str, list[Measured]] = {}
        self._sections: dict[str, Sections] = {}

    def records(self, name: str) -> list[Record]:
        """Shipped records, of a folder or an archive. Raises ResultsError saying what makes them."""
        if name not in self._records:
            place = self.folder / name
            archive = place.with_name(f"{name}{SUFFIX}")
            if not place.is_dir() and not with_parts(archive):
                raise self._lacking(name, f"neither {place} nor {archive.name} is there")
            self._records[name] = list(open_records(place if place.is_dir() else archive))
        return self._records[name]

    def _lacking(self, name: str, why: str) -> ResultsError:
        commands = "\n".join(f"  {command}" for command in self.named(name).commands)
        return ResultsError(f"no records of {name}: {why}; this makes them:\n{commands}")

    @staticmethod
    def named(name: str) -> Shipped:
        return next(shipped for shipped in SHIPPED if shipped.name == name)

    def measured(self, shipped: Shipped) -> list[Measured]:
        if shipped.name not in self._measured:
            found = [record for name in (shipped.name, *shipped.beside) for record in self.records(name)]
            measured = [as_measured(planned, found) for planned in shipped.plans(found)]
            if not any(outcome.record for one in measured for outcome in one.comparison.outcomes):
                raise self._lacking(shipped.name, f"what is under its name in {self.folder} answers none of its trials")
            self._measured[shipped.name] = measured
        return self._measured[shipped.name]

    def sections(self, shipped: Shipped) -> Sections:
        if shipped.name not in self._sections:
            records, measured = self.records(shipped.name), self.measured(shipped)
            self._sections[shipped.name] = sections_of(shipped.kind, measured, records)
        return self._sections[shipped.name]

    def page(self, shipped: Shipped) -> str:
        """The page, with our own words of the page that is there. Raises ResultsError where these would be lost."""
        path = self.pages / f"{shipped.name}.md"
        ours = ours_of(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {}
        return page(shipped, self.measured(shipped), self.sections(shipped), ours)

    def drawn(self, shipped: Shipped) -> bytes:
        """The figure as PNG, with the digest of what it was made from."""
        from reports.figures.style import save

        picture = self.sections(shipped).picture
        assert picture, shipped.name
        file = io.BytesIO()
        save(picture.draw(), file, "png", DPI, f"made from {digest_of(picture)}")
        return file.getvalue()

    def old_figures(self, figures: Mapping[Path, Shipped]) -> Iterator[Path]:
        """Figures that are not there, or were made from other numbers."""
        for path, shipped in figures.items():
            picture = self.sections(shipped).picture
            if picture and made_from(path) != digest_of(picture):
                yield path

    def index(self) -> str:
        """The page that lists the others with their answers, and says how to read them."""
        lines = [
            f"| [{shipped.name}]({shipped.name}.md) | {escape_markdown(self.sections(shipped).answer.short)} |"
            for shipped in SHIPPED
        ]
        return "\n".join(
            [
                "# Results\n",
                "<!-- Made by `make results` from reports/reference. -->\n",
                prose("Every page is made from shipped records, and a test holds it to them.") + "\n",
                "| suite | answer |",
                "| --- | --- |",
                *lines,
                "",
                "## How to read the pages\n",
                *(f"{prose(escape_markdown(text))}\n" for text in (tables.READING, across.READING)),
            ]
        )

    def document(self, path: Path) -> str:
        """A document with its answers brought up to date. Raises ResultsError for an answer that is not known."""
        text = path.read_text(encoding="utf-8")
        for match in _ANSWER.finditer(text):
            if match["name"] not in self._names:
                raise ResultsError(f"{path}: no page {match['name']}; known: {', '.join(self._names)}")
        return _ANSWER.sub(self._answer, text)

    def _answer(self, match: re.Match[str]) -> str:
        name, answer = match["name"], self.sections(self.named(match["name"])).answer.short
        return f"{match[1]}{prose(f'[{name}](docs/results/{name}.md), {escape_markdown(answer)}')}\n{match[3]}"

    @cached_property
    def _names(self) -> Sequence[str]:
        return [shipped.name for shipped in SHIPPED]


def digest_of(picture: Picture) -> str:
    """The SHA-256 of what a figure is made from."""
    return sha256(canonical_json([picture.made_from, picture.caption]).encode()).hexdigest()


def made_from(path: Path) -> str | None:
    """The digest that a figure's file carries; None without one."""
    found = _DESCRIPTION.search(path.read_bytes()) if path.exists() else None
    return found[1].decode() if found else None


def stale(path: Path, text: str) -> bool:
    """Whether a file is missing or holds another text."""
    return not path.exists() or path.read_text(encoding="utf-8") != text
