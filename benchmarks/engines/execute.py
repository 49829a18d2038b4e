"""What a worker does with a job, whichever engine gave it."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.engines.jobs import Job
from benchmarks.engines.one_process import work
from benchmarks.events import Outcome, Progress
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime


def execute(job: Job, workspace: Workspace, runtime: Runtime) -> Iterator[Progress | Outcome]:
    """Run one job under its lock: progress while it lasts, then its outcome."""
    from benchmarks.engines.keeping import Keeper
    from benchmarks.engines.several_processes import together

    with workspace.lock(job.key, wait=False) as mine:
        if not mine:
            yield Outcome("busy")
            return
        if workspace.done(job.spec):
            yield Keeper(job, workspace, runtime.storage).done()
            return
        yield from work(job, workspace, runtime) if runtime.ranks == 1 else together(job, workspace, runtime)
