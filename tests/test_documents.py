"""Documents: short lines, working links, and a map that agrees with the project's folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT

WIDTH = 120
MOST_NUMBERS = 3
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "REPRODUCE.md", *(ROOT / "docs").rglob("*.md")])
MADE = ROOT / "docs/results"
BY_HAND = [path for path in DOCUMENTS if MADE not in path.parents and path.name != "procedural.md"]
"""Documents without those that are made, and without the one that defines how images are drawn."""

MAPPED = ("methods", "benchmarks", "reports")

LINK = re.compile(r"(?<!`)\]\((?P<target>[^)\s]+)\)")
NUMBER = re.compile(r"(?<![\w.,:-])\d[\d,.]*\b(?!\w)")
NOT_COUNTED = re.compile(r"`[^`]*`|\]\([^)]*\)|\[[−+]?[\d.]+,\s*[−+]?[\d.]+\]", re.DOTALL)
"""Code, targets of links, and intervals, which belong to their number."""


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are neither code nor tables, numbered from 1."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code and not line.startswith("|"):
            yield number, line


def too_long(text: str) -> list[int]:
    return [number for number, line in prose(text) if len(line) > WIDTH]


def paragraphs(text: str) -> list[str]:
    """Paragraphs, and items of lists, of prose."""
    lines = [line for _, line in prose(text) if not line.startswith(("#", "<!--", "    "))]
    parts = re.split(r"\n\s*\n|\n(?= *(?:-|\d+\.) )", "\n".join(lines))
    return [part.strip("\n") for part in parts if part.strip()]


def numbers_in(paragraph: str) -> list[str]:
    """Measured numbers: not those in code, in names such as W4A4 or ResNet-18, or that number an item."""
    text = re.sub(r"^ *\d+\. ", "", NOT_COUNTED.sub(" ", paragraph))
    return NUMBER.findall(text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_line_of_prose_is_too_long(path):
    assert too_long(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_paragraph_is_a_heap_of_numbers(path):
    found = paragraphs(path.read_text(encoding="utf-8"))
    assert [part for part in found if len(numbers_in(part)) > MOST_NUMBERS] == []


def test_long_lines_and_heaps_are_found():
    assert too_long("| " + "x" * 130 + "\n```\n" + "x" * 130 + "\n```\n" + "x" * 121) == [5]
    assert numbers_in("2. W4A4 and ResNet-18 at `3 x 3` gave 1.5 [1.0, 2.0] and 4,096, n = 7") == ["1.5", "4,096", "7"]
    assert paragraphs("# 1\n\na\nb\n- c\n- d\n\n| 1 | 2 |") == ["a\nb", "- c", "- d"]


def test_readme_and_reproduce_are_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 110
    assert len((ROOT / "REPRODUCE.md").read_text(encoding="utf-8").splitlines()) < 130


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path):
    targets = [match["target"] for match in LINK.finditer(path.read_text(encoding="utf-8"))]
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [target for target in local if target and not (path.parent / target).exists()] == []


def named(tree: str) -> Iterator[str]:
    """Paths that a tree names: `name   what it is`, a folder ending in a slash, indented under its folder."""
    above: list[tuple[int, str]] = []
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        above = [(depth, folder) for depth, folder in above if depth < indent]
        yield "".join(folder for _, folder in above) + name
        if name.endswith("/"):
            above.append((indent, name))


def tree() -> list[str]:
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    return list(named(text.partition("## The map")[2].split("```\n")[1]))


def test_what_the_map_names_exists_and_every_folder_is_named():
    paths = tree()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    folders = {path.parent for top in MAPPED for path in (ROOT / top).rglob("*.py")}
    inner = {folder.relative_to(ROOT).as_posix() + "/" for folder in folders}
    assert inner - set(paths) == set()


def test_the_map_names_every_method_and_each_path_once():
    paths = tree()
    files = {f"methods/{path.name}" for path in (ROOT / "methods").glob("*.py")} - {"methods/__init__.py"}
    assert files <= set(paths)
    assert len(paths) == len(set(paths))


def test_a_tree_is_read_by_its_indents():
    text = "a.py  x\nb/  y\n  c.py  z\n  d/  z\n    e.py  z\nf/  y\n"
    assert list(named(text)) == ["a.py", "b/", "b/c.py", "b/d/", "b/d/e.py", "f/"]


def test_every_path_that_a_document_names_in_code_exists():
    """`benchmarks/x.py` in running text; patterns and what a run makes are no files of ours."""
    pattern = re.compile(r"`((?:methods|benchmarks|reports|tests|docs)/[\w./-]*\w/?)`")
    missing = [
        (path.name, name)
        for path in DOCUMENTS
        for name in pattern.findall(path.read_text(encoding="utf-8"))
        if not Path(ROOT / name).exists()
    ]
    assert missing == []
