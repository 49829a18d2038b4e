"""Runs jobs one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engines import Job, Observer, Outcome, execute
from benchmarks.workspace import Workspace


class LocalEngine:
    """Needs nothing but torch; all progress is passed on at once."""

    def run(self, jobs: Sequence[Job], workspace: Workspace, observer: Observer) -> None:
        for job in jobs:
            for event in execute(job, workspace):
                if isinstance(event, Outcome):
                    observer.ended(job, event)
                else:
                    observer.progress(job, [event])
