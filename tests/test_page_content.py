"""The report's content: all of it is both on the page and in the Markdown file."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from reports.findings.comparison import gather
from reports.findings.summary import summarise
from reports.findings.tables import Row, Table
from reports.page import content, html, markdown
from reports.page.blocks import (
    PAGE_ONLY,
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
    walk,
)
from tests.fabricated import fail, make_plan, make_suite, write_records

CEILINGS = ("uniform:w4a3", "uniform:w4a4")


def full(tmp_path) -> Content:
    """A content with every section and every kind of block."""

    def change(trial, result, observed):
        observed["environment"]["commit"] = ("a" if trial.row == "float" else "b") * 40
        if trial.row == "metamix":
            fail(result, observed, message="loss is nan | 1 < 2")
        if trial.row == "hawq" and trial.spec.seed == 0:
            result["metrics"]["best_validation_accuracy"] = 0.97

    methods = ["float", "uniform-lsq", "hawq", "metamix"]
    plan = make_plan(make_suite(methods, models=("mobilenet_v2", "resnet18"), ceilings=CEILINGS, seeds=(0, 1, 2)))
    comparison = gather(plan, write_records(plan, tmp_path, change))
    other = next(outcome.record for outcome in comparison.outcomes if outcome.ok)
    again = type(other)(other.id, other.spec, {**other.result, "network_digest": "other"}, other.observed)
    comparison = type(comparison)(plan, comparison.cells, comparison.warnings, (again,))
    return content.content_of(comparison, summarise(comparison), "A caption.", content.FILES)


def pictures(of: Content) -> dict[str, bytes]:
    return {f"{block.name}.png": b"" for block in of.blocks() if isinstance(block, Figure)}


class Text(HTMLParser):
    """What a page says: its text, with that of images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.feed(page)

    def handle_starttag(self, _tag, attrs):
        self.said += [value for name, value in attrs if name == "alt"]

    def handle_data(self, data):
        self.said.append(data)


def of_page(page: str) -> str:
    body = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    return flat(" ".join(Text(body).said))


def of_markdown(text: str) -> str:
    """What a reader of the rendered file sees, near enough: escapes undone, bold marks and tags of ours dropped."""
    bare = re.sub(r"</?(?:details|summary|pre)(?: open)?>|(?<!\\)\*\*", " ", text)
    return flat(unescape(re.sub(r"\\([\\`*_{}\[\]#|!~$])", r"\1", bare)))


def flat(text: str) -> str:
    return " ".join(text.split())


def texts(block) -> list[str]:
    """Everything a block has to say."""
    match block:
        case Prose(text) | Heading(text):
            return [text]
        case Preformatted(text):
            return text.splitlines()
        case Listing(items):
            return list(items)
        case Counts(items):
            return [f"{number} {words}" for words, number in items]
        case Grid(table):
            return [*table.header, *(cell for row in table.rows for cell in row.cells)]
        case Figure(_, alt, caption):
            return [alt, caption]
        case Fold(title, _):
            return [title]
        case Files(items):
            return [text for name, words in items if not name.endswith((".html", ".md")) for text in (name, words)]
    raise AssertionError(f"no test reads a {block.kind}")


def missing(of: Content, written: str) -> list[str]:
    said = [of.title, *(section.title for section in of.sections)]
    said += [text for block in of.blocks() if not isinstance(block, PageOnly) for text in texts(block)]
    # A column "Notes" is written on the page as small lines in the cells.
    return [text for text in said if text not in ("", "Notes") and flat(text) not in written]


def test_whatever_the_content_says_stands_on_the_page_and_in_the_markdown_file(tmp_path):
    of = full(tmp_path)
    assert [section.id for section in of.sections] == [
        *("results", "trials", "across", "fronts", "absent", "disputes", "warnings", "policies"),
        *("compute", "bops", "environment", "reproduce", "files"),
    ]
    kinds = {block.kind for block in of.blocks()}
    assert kinds == {
        "prose",
        "heading",
        "listing",
        "counts",
        "grid",
        "figure",
        "preformatted",
        "fold",
        "files",
        "page_only",
    }
    assert missing(of, of_page(html.render(of, pictures(of)))) == []
    assert missing(of, of_markdown(markdown.write(of))) == []


ALL_KINDS = (
    Prose("A paragraph, <b>plain</b>."),
    Heading("A heading | with a bar"),
    Listing(("one * item",)),
    Counts((("trials ok", 3),)),
    Grid(Table(("What", "Notes"), (Row(("a `cell`", "a note")),))),
    Figure("pareto", "An alt text", "A caption"),
    Preformatted("line 1\n```\n<b>line 3"),
    Fold("A fold & more", (Prose("Folded words"),)),
    Files((("table.csv", "the rows"),)),
)


@pytest.mark.parametrize("block", ALL_KINDS, ids=lambda block: block.kind)
def test_a_section_is_added_in_one_place_whatever_is_in_it(block):
    of = Content("A title", (), (Section("new", "A new section", (block,)),))
    for written in (of_page(html.render(of, pictures(of))), of_markdown(markdown.write(of))):
        assert missing(of, written) == []


def test_a_text_that_one_of_them_lacks_is_found():
    of = Content("A title", (), (Section("new", "A new section", (Grid(Table(("What",), (Row(("a cell",)),))),)),))
    assert missing(of, "A title A new section What") == ["a cell"]
    assert missing(of, "A title What a cell") == ["A new section"]


def test_what_only_the_page_has_is_named_in_both(tmp_path):
    of = full(tmp_path)
    used = {block.view for block in of.blocks() if isinstance(block, PageOnly)}
    assert used | {"sorting"} == set(PAGE_ONLY)
    page, file = of_page(html.render(of, pictures(of))), of_markdown(markdown.write(of))
    assert all(flat(words) in page and flat(words) in file for words in PAGE_ONLY.values())
    with pytest.raises(ValueError, match="add it to PAGE_ONLY"):
        PageOnly("dancing")


def test_what_stands_instead_of_a_view_is_in_the_markdown_file_alone(tmp_path):
    of = full(tmp_path)
    page, file = of_page(html.render(of, pictures(of))), of_markdown(markdown.write(of))
    instead = [
        text
        for block in of.blocks()
        if isinstance(block, PageOnly)
        for inner in walk(block.instead)
        for text in texts(inner)
    ]
    assert len(instead) == 3  # of the explorer, and the alt text and caption of the strips'
    assert all(flat(text) in file and flat(text) not in page for text in instead)


def test_folds_are_walked_into():
    inner = Prose("inside")
    assert list(walk((Fold("a", (Fold("b", (inner,)),)),)))[-1] is inner
