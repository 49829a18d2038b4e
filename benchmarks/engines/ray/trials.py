"""A job of one process, seen by Tune: an actor that goes from job to job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from benchmarks.engines.execute import execute
from benchmarks.engines.jobs import Job
from benchmarks.events import Outcome, Progress
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.stopping import StoppedError, asked, watch

REPORT_SECONDS = 2.0


class JobTrainable(tune.Trainable):
    """A job seen by Tune: each `step` runs it for about two seconds and passes its progress on."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job = Job.from_dict(new_config["job"])
        watch(Path(new_config["stop"]))
        self.events: Iterator[Progress | Outcome] = execute(job, *where_and_how(new_config))
        return True

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + REPORT_SECONDS
        seen: list[dict[str, Any]] = []
        if asked():  # since the previous job
            return {"progress": seen, "done": True}
        try:
            for event in self.events:
                if isinstance(event, Outcome):
                    return {"progress": seen, "outcome": asdict(event), "done": True}
                seen.append(asdict(event))
                if time.monotonic() > until:
                    break
        except StoppedError:
            return {"progress": seen, "done": True}
        return {"progress": seen, "done": False}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a job keeps its own checkpoints, which outlive this Ray session."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see save_checkpoint."""


def where_and_how(config: Mapping[str, Any]) -> tuple[Workspace, Runtime]:
    """Where a job's files are and how it runs, as the driver set it."""
    return Workspace(**config["workspace"]), Runtime(**config["runtime"])
