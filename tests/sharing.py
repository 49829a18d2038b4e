"""Builds what takes long once per session, in whichever of its processes needs it first."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

FOLDER_VARIABLE = "TESTS_SHARED_FOLDER"
"""Names the session's folder to every process of it."""

Value = TypeVar("Value")


def open_folder(config: pytest.Config) -> None:
    """Make the session's folder, which goes with it. Workers of pytest-xdist use that of the process they serve."""
    if hasattr(config, "workerinput"):
        return
    folder, outer = tempfile.mkdtemp(prefix="tests-shared-"), os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = folder

    def close() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop(FOLDER_VARIABLE)
        if outer is not None:  # a session inside a test, as `runner.py check` holds one
            os.environ[FOLDER_VARIABLE] = outer

    config.add_cleanup(close)


def built_once(name: str, build: Callable[[Path], Value]) -> Value:
    """What `build` returned, given a new folder; other processes wait for it. The folder is to be read only.

    The value is pickled. A build that fails is tried again by whoever asks next.
    """
    place = Path(os.environ[FOLDER_VARIABLE]) / name
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept, content = place / "value.pickle", place / "content"
        if not kept.exists():
            shutil.rmtree(content, ignore_errors=True)
            content.mkdir()
            kept.write_bytes(pickle.dumps(build(content)))
        value: Any = pickle.loads(kept.read_bytes())
    return value  # type: ignore[no-any-return]
