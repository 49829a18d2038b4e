"""What workers report goes to the observer, and a request to stop to the workers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from benchmarks.engines import Observer
from benchmarks.engines.jobs import Job
from benchmarks.events import Outcome, Progress
from benchmarks.stopping import StoppedError, asked
from benchmarks.terminal import warn

_NOTICE_SECONDS = 20.0
"""How much of a scheduler's usual 30 seconds trials get to save themselves."""


class Forward(tune.Callback):
    """Passes what workers report to the observer, on the driver, and a request to stop to the workers, as a file."""

    def __init__(self, jobs: dict[str, Job], observer: Observer, stop: Path) -> None:
        self.jobs, self.observer, self.stop = jobs, observer, stop
        self.stopping: list[Any] = []
        self.until = math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles callbacks to restore an experiment. Records do that here; a terminal has no pickle."""
        return {}

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """After a request to stop, let running trials save themselves, then raise StoppedError."""
        if asked() and self.until == math.inf:
            self.stop.touch()
            self.stopping, self.until = [trial for trial in trials if trial.status == "RUNNING"], time.monotonic()
            self.until += _NOTICE_SECONDS
        waiting = any(trial.status == "RUNNING" for trial in self.stopping)
        if asked() and (not waiting or time.monotonic() > self.until):
            raise StoppedError

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        job = self.jobs[trial.config["job"]["key"]]
        if result["progress"]:
            self.observer.progress(job, [Progress(**row) for row in result["progress"]])
        if "outcome" in result:
            self.observer.ended(job, Outcome(**result["outcome"]))

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        warn(f"{self.jobs[trial.config['job']['key']].label}: its worker has gone; it goes on in another")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        job = self.jobs[trial.config["job"]["key"]]
        self.observer.ended(job, Outcome("lost", f"its worker died: {trial.error_file or 'no traceback'}"))
