"""Runs jobs one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.engines import EngineError, Observer
from benchmarks.engines.execute import execute
from benchmarks.engines.jobs import Job
from benchmarks.events import Outcome
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.stopping import heeded
from benchmarks.suites.suite import Resources
from benchmarks.trials.environment import require_compiler


class LocalEngine:
    """Needs nothing but torch. A suite that asks for GPUs gets one if there is one."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def run(self, jobs: Sequence[Job], workspace: Workspace, runtime: Runtime, observer: Observer) -> None:
        import torch

        runtime = replace(runtime, gpu=self.resources.gpus > 0 and torch.cuda.is_available())
        if runtime.gpu and runtime.ranks > torch.cuda.device_count():
            raise EngineError(
                f"the {runtime.ranks} processes of a trial need a GPU each, this machine has "
                f"{torch.cuda.device_count()}; lower resources.workers_per_trial, or set resources.gpus=0"
            )
        if runtime.compile:
            require_compiler(runtime.device)
        with heeded():
            for job in jobs:
                for event in execute(job, workspace, runtime):
                    if isinstance(event, Outcome):
                        observer.ended(job, event)
                    else:
                        observer.progress(job, [event])
