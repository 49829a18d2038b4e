"""A request to stop: SIGTERM, which schedulers send some time before they kill, passed on elsewhere by a file.

Also ends processes that a killed parent would leave behind.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_LOOK_SECONDS = 1.0
"""How often a process looks for the file."""
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)

_asked = False
_file: Path | None = None
_looked = 0.0


class StoppedError(KeyboardInterrupt):
    """A trial has saved itself and continues when run again. Not an Exception, so that no handler blames the method."""


@contextmanager
def heeded() -> Iterator[None]:
    """SIGTERM asks the trials inside to save themselves and stop; only the main thread can be asked."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _asked = signal.signal(signal.SIGTERM, _ask), False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def watch(file: Path) -> None:
    """From now on this file is a request too; another process, on any machine, makes it when it gets SIGTERM."""
    global _file
    _file = file


def asked() -> bool:
    global _asked, _looked
    if _file and not _asked and time.monotonic() - _looked > _LOOK_SECONDS:
        _looked = time.monotonic()
        with suppress(OSError):
            _asked = _file in _file.parent.iterdir()  # over a network, asking for the file itself may give old answers
    return _asked


def _ask(_signal: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True


def end_with_parent() -> None:
    """From now on this process, started by multiprocessing, is killed when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # it died before
        os._exit(1)
