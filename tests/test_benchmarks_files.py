"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import files
from benchmarks.files import file_lock, forget_unfinished, write_atomic, write_text_atomic


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


def left_behind(path: Path, pid: int, machine: str | None = None, age: float = 0.0) -> Path:
    """A file that a writer had begun and was killed at."""
    part = path.with_name(f".{path.name}.{machine or files._machine()}-{pid}-{'0' * 8}")
    part.write_bytes(b"half")
    os.utime(part, (time.time() - age, time.time() - age))
    return part


NOBODY = 2**22 + 1
"""No process has this number: Linux ends at 2**22."""
LONG = files.ABANDONED_SECONDS + 60


@pytest.mark.parametrize("name", ["r.json", "start.pt", "manifest", "a.b-c.json", "[x]*.json"])
def test_what_killed_writers_left_is_removed_beside_every_kind_of_file(name, tmp_path):
    path = tmp_path / name
    ours = left_behind(path, NOBODY)
    theirs, long_ago = left_behind(path, NOBODY, "f" * 8), left_behind(path, os.getpid(), "e" * 8, LONG)
    at_work = left_behind(path, os.getpid())
    write_text_atomic(path.with_name("another"), "whole")
    assert not ours.exists()  # its process is gone
    assert not long_ago.exists()
    assert theirs.exists()  # of another machine, where that number may be somebody
    assert at_work.exists()
    forget_unfinished(path)
    assert {theirs, at_work} <= set(tmp_path.iterdir())


def test_what_is_no_unfinished_file_is_left_alone(tmp_path):
    kept = [tmp_path / name for name in (".r.json", ".r.json.12-34", ".stamp", f"r.json.{'0' * 8}-1-{'0' * 8}")]
    for path in kept:
        path.write_text("mine")
        os.utime(path, (0, 0))
    write_text_atomic(tmp_path / "r.json", "whole")
    assert all(path.read_text() == "mine" for path in kept)


def test_a_name_is_on_the_disk_before_a_write_returns(tmp_path, monkeypatch):
    """What is synced, in order: the file, and after it has its name, every folder that has a new name in it."""
    done: list[str] = []
    monkeypatch.setattr(files, "_sync", lambda number: done.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    rename = files._rename

    def renamed(old, new):
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(files, "_rename", renamed)
    write_text_atomic(tmp_path / "a" / "b" / "r.json", "whole")
    folders, (temporary, *rest) = done[:2], done[2:]
    assert folders == [str(tmp_path), str(tmp_path / "a")]
    assert temporary.startswith(str(tmp_path / "a" / "b" / ".r.json."))
    assert rest == ["rename", str(tmp_path / "a" / "b")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_synced_are_no_fault_and_a_failing_disk_is(number, tmp_path, monkeypatch):
    def sync(file):
        if os.path.isdir(f"/proc/self/fd/{file}"):  # noqa: PTH112 (a link to follow)
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_sync", sync)
    if number == errno.EINVAL:
        write_text_atomic(tmp_path / "r.json", "whole")
    else:
        with pytest.raises(OSError, match=str(tmp_path)):
            write_text_atomic(tmp_path / "r.json", "whole")


def test_a_full_disk_names_the_file(tmp_path):
    def fill(file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*r\.json'"):
        write_atomic(tmp_path / "r.json", fill)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_says_so_and_what_to_do(number, tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"no locks.* choose an output folder on another.*x\.lock") as raised:  # noqa: SIM117
        with file_lock(tmp_path / "x.lock", wait=False):
            pass
    assert raised.value.errno == number
