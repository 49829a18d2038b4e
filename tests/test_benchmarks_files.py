"""Files that are written whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.files import write_atomic, write_text_atomic


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "r.json"

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail)
    assert list(tmp_path.iterdir()) == []
    write_text_atomic(path, "whole")
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("r.json", "whole")]


def test_a_write_makes_the_folders_it_needs_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "r.json"
    write_text_atomic(path, "one")
    write_text_atomic(path, "two")
    assert path.read_text() == "two"
