"""A request to stop: SIGTERM, which schedulers send some time before they kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = False


class StoppedError(KeyboardInterrupt):
    """A trial has saved itself and goes on when it is run again. No Exception: nobody takes it for a method's fault."""


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


def asked() -> bool:
    return _asked


def _ask(_signal: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True
