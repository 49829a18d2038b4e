"""Text from others: what reaches a terminal or a spreadsheet, and what a traceback says about a machine."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import terminal
from benchmarks.trials.faults import traceback_of
from benchmarks.trials.notes import Notes
from benchmarks.untrusted import COMMIT, csv_cell, printable
from tests.harness import ROOT


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$rbad\x1b\\device", "device"),
        ("\x9b31mC1 colour", "C1 colour"),
        ("\x9d0;C1 title\x9crest", "rest"),
        ("\x1bcreset", "reset"),
        ("\x1b", ""),
        ("no end \x1b]0;title", "no end 0;title"),
        ("bar 10%\rbar 20%\r\nnext", "bar 10%\nbar 20%\nnext"),
        ("over\x08\x08type\x07\x00", "overtype"),
        ("turned \u202etxt.exe\u2069", "turned txt.exe"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("tab\tand\nline: 日本 é ±\u00a0–", "tab\tand\nline: 日本 é ±\u00a0–"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@given(st.text(alphabet=st.sampled_from("\x1b\x9b\x9d[]P0;31mH\x07\\\r\n\x08\u202e\ud800ab")))
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = printable(text)
    assert not set(shown) & set("\x1b\x9b\x9d\x07\r\x08\u202e\ud800")
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text", ["=1", "+1", "-1", "@x", "\t=1", " =1", "\n=1", "\r\n =1", "\u00a0=1", "\x1b[0m=1", "\u200b", "\uff1d1"]
)
def test_no_cell_is_a_formula(text):
    cell = csv_cell(text)
    assert (cell[:1] == "'") == (text != "\u200b")


@pytest.mark.parametrize("value", [-1.5, 3, None, True, "plain", "a=b", "1 - 2", ""])
def test_other_cells_stay_as_they_are(value):
    assert csv_cell(value) == value


def test_whatever_is_printed_is_printable(capsys, monkeypatch):
    hostile = "\x1b]0;owned\x07\x1b[31mfailed\x1b[0m \x9b2J"
    for name in ("console", "errors"):
        file = io.StringIO()
        monkeypatch.setattr(getattr(terminal, name), "_file", file)  # `file` would keep a stream that pytest closes
        getattr(terminal, name).print(hostile, markup=False)
        assert file.getvalue() == "failed \n"
    terminal.print_columns([[hostile, "b"], ["a", hostile]])
    assert capsys.readouterr().out == "failed   b\na        failed\n"


def test_a_plain_console_would_print_what_a_terminal_obeys():
    file = io.StringIO()
    Console(file=file).print("\x1b[31mred", markup=False, highlight=False)
    assert "\x1b" in file.getvalue()


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "A" * 40, "g" * 40, "a" * 40 + "\n", "HEAD", "$(id)"])
def test_only_forty_hexadecimal_digits_are_a_commit(text):
    assert COMMIT.fullmatch("0123456789abcdef" * 2 + "01234567")
    assert not COMMIT.fullmatch(text)


def raised_in(path: str) -> Exception:
    try:
        exec(compile("raise ValueError('in ' + __file__)", path, "exec"), {"__file__": path})
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        (ROOT / "methods", "methods"),
        (Path(sys.prefix) / "lib" / "python3" / "site-packages", "lib/python3/site-packages"),
        (Path.home() / "plug-ins", "~/plug-ins"),
        (Path("/srv/elsewhere"), "/srv/elsewhere"),
    ],
)
def test_a_traceback_has_paths_relative_to_the_project(folder, shown):
    text = traceback_of(raised_in(str(folder / "mine.py")))
    assert f'File "{shown}/mine.py", line 1' in text
    assert text.endswith(f"ValueError: in {shown}/mine.py\n")
    assert 'File "tests/test_benchmarks_untrusted.py"' in text
    assert str(ROOT) not in text


def test_a_folder_whose_name_only_ends_like_the_project_s_is_left_alone():
    text = traceback_of(raised_in(f"/mnt{ROOT}/mine.py"))
    assert f'File "/mnt{ROOT}/mine.py"' in text


def test_a_record_of_a_failure_keeps_no_password():
    error = raised_in("s3://key:planted-secret@bucket/weights")
    notes = Notes({}).outcome("failed", error)
    assert notes["reason"] == {"type": "ValueError", "message": "in s3://bucket/weights"}
    assert "planted-secret" not in traceback_of(error)
