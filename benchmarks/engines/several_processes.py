"""A job done by several processes of this machine together, any of which may die."""

from __future__ import annotations

import math
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import Any

from benchmarks.engines.jobs import Job
from benchmarks.engines.one_process import work
from benchmarks.events import Outcome, Progress
from benchmarks.ranks import GONE, joined
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.stopping import StoppedError, asked, end_with_parent, heeded

RESTARTS = 3
"""How often a job goes on from its checkpoint after a process of its own has died."""

_POLL_SECONDS = 0.2
_NOTICE_SECONDS = 25.0
"""How much of a scheduler's usual 30 seconds the ranks get to end by themselves."""

_DIED = "one of its processes died"


def together(job: Job, workspace: Workspace, runtime: Runtime) -> Iterator[Progress | Outcome]:
    """Progress of the first rank, then the outcome. If a process dies, all start again from the checkpoint."""
    for _ in range(1 + RESTARTS):
        outcome = yield from _once(job, workspace, runtime)
        if not outcome.message.startswith(_DIED):
            break
    yield outcome


def _once(job: Job, workspace: Workspace, runtime: Runtime) -> Generator[Progress, None, Outcome]:
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        told = (job, workspace, runtime, Path(folder) / "meeting", events)
        ranks = [context.Process(target=_rank, args=(rank, *told)) for rank in range(runtime.ranks)]
        try:
            for process in ranks:
                process.start()
            outcome = yield from _watch(ranks, events)
        finally:
            for process in ranks:  # everything is written before the outcome is sent
                process.kill()
            for process in ranks:
                process.join()
    return outcome


def _watch(ranks: Sequence[BaseProcess], events: Any) -> Generator[Progress, None, Outcome]:
    """Pass progress on until the job's outcome is known.

    The first rank reports it. If that only says that another rank has gone, the outcome is the other rank's own report
    or, without one, how its process ended.
    """
    last_words: list[Outcome] = []
    until = math.inf
    while True:
        if asked():
            _stop(ranks[0])
        try:
            rank, event = events.get(timeout=_POLL_SECONDS)
        except Empty:
            if dead := [process for process in ranks if process.exitcode not in (None, 0)]:
                return Outcome("lost", f"{_DIED}: {_ending(dead[0])}")
            if last_words and (ranks[0].exitcode == 0 or time.monotonic() > until):
                return last_words[0]
            continue
        until = time.monotonic() + _NOTICE_SECONDS
        if not isinstance(event, Outcome):
            yield event
        elif event.message.startswith(GONE):
            last_words.append(event)
        elif rank == 0:
            return event
        else:
            last_words.insert(0, event)


def _stop(first: BaseProcess) -> None:
    """Have the first rank save the trial, for all of them."""
    first.terminate()
    first.join(_NOTICE_SECONDS)
    raise StoppedError


def _ending(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _rank(rank: int, job: Job, workspace: Workspace, runtime: Runtime, meeting: Path, events: Any) -> None:
    """The life of one rank, in its own process, which ends with its parent."""
    import torch

    end_with_parent()
    if runtime.gpu:
        torch.cuda.set_device(rank)
    with ExitStack() as stack:
        if rank == 0:  # it saves for all; the parent ends the others
            stack.enter_context(suppress(StoppedError))
            stack.enter_context(heeded())
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ranks = stack.enter_context(joined(rank, runtime.ranks, meeting, runtime.device))
        for event in work(job, workspace, runtime, ranks):
            if rank == 0 or (isinstance(event, Outcome) and event.status == "lost"):
                events.put((rank, event))
