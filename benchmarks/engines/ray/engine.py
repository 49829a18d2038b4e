"""The engine: one Tune trial per job."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.engines import Observer
from benchmarks.engines.jobs import Job
from benchmarks.engines.ray.cluster import connect, fitted, slots
from benchmarks.engines.ray.forwarding import Forward
from benchmarks.engines.ray.ranks import MAX_WORKER_DEATHS, train_together
from benchmarks.engines.ray.trials import JobTrainable
from benchmarks.engines.storage import Storage
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.stopping import StoppedError, asked, heeded
from benchmarks.suites.suite import Resources
from benchmarks.trials.environment import require_compiler

_WAITING = {"node:__internal_head__": 0.001}
"""Resources of the function that waits for its workers: a place on the head node, and none of their CPUs."""


class RayEngine:
    """One Tune trial per job.

    A trial of one process is an actor, reused from job to job so that torch is imported once; one of several is a Ray
    Train run over workers wherever the cluster has room. address: an existing cluster to join; None starts one on this
    machine that ends with this process.
    """

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        self.resources, self.address = resources, address

    def run(self, jobs: Sequence[Job], workspace: Workspace, runtime: Runtime, observer: Observer) -> None:
        """Run all jobs. Raises EngineError where no trial fits the cluster, StoppedError when asked to stop."""
        if not ray.is_initialized():
            connect(self.address, workspace, runtime)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = fitted(self.resources, nodes)
        workspace = replace(workspace, out=workspace.out.resolve())
        runtime = self._on_nodes(runtime, resources)
        forget_dead_runs(workspace)
        notes = workspace.folder.resolve() / "ray" / f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}"
        notes.mkdir(parents=True, exist_ok=True)
        stop = notes / "stop"
        asked_of_each = {
            "workspace": asdict(workspace),
            "runtime": asdict(runtime),
            "stop": str(stop),
            "abroad": self.address is not None,
            "needed": {kind.upper(): amount for kind, amount in _needed(resources).items() if amount},
            "job": tune.grid_search([job.to_dict() for job in jobs]),
        }
        forward = Forward({job.key: job for job in jobs}, observer, stop)
        tuner = _tuner(asked_of_each, resources, slots(resources, nodes), forward, notes, alone=runtime.ranks == 1)
        with heeded():
            tuner.fit()
        shutil.rmtree(notes, ignore_errors=True)  # Tune's own bookkeeping: the results are the records
        if asked():
            raise StoppedError

    def _on_nodes(self, runtime: Runtime, resources: Resources) -> Runtime:
        """How trials run on what the nodes have. Raises SuiteError where a compiler is wanted and there is none."""
        url = runtime.storage and Storage.at(runtime.storage).url
        runtime = replace(runtime, gpu=resources.gpus > 0, storage=url)
        if resources.loaders is None:
            runtime = replace(runtime, loaders=min(runtime.loaders, resources.cpus - 1))
        if runtime.compile and not self.address:
            require_compiler(runtime.device)
        return runtime


def _needed(resources: Resources) -> dict[str, float]:
    """What Ray sets aside for each process of a trial."""
    return {"cpu": resources.cpus, "gpu": resources.gpus}


def _tuner(
    asked_of_each: dict[str, Any], resources: Resources, at_a_time: int, forward: Forward, notes: Path, *, alone: bool
) -> tune.Tuner:
    """Tune, set to run each job as it comes. alone: whether a trial is one process."""
    # Ray Train reserves what its workers need; the function that waits for them needs almost nothing.
    trainable = (
        tune.with_resources(JobTrainable, _needed(resources))
        if alone
        else tune.with_resources(train_together, _WAITING)
    )
    return tune.Tuner(
        trainable,
        param_space=asked_of_each,
        tune_config=tune.TuneConfig(
            reuse_actors=alone,
            max_concurrent_trials=at_a_time,
            trial_dirname_creator=lambda trial: str(trial.config["job"]["key"]),
        ),
        run_config=tune.RunConfig(
            name=notes.name,
            storage_path=str(notes.parent),
            callbacks=[forward],
            failure_config=tune.FailureConfig(max_failures=MAX_WORKER_DEATHS if alone else 0),
            # Jobs keep their own checkpoints; for Tune's, a node would have to see Tune's folder.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def forget_dead_runs(workspace: Workspace) -> None:
    """Remove Tune's notes on runs that were killed on this machine, and Ray Train's on jobs without a lock."""
    storage = workspace.folder / "ray"
    for folder in storage.glob(f"{socket.gethostname()}-*-*"):
        pid = folder.name.split("-")[-2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (storage / "ranks").glob("*"):
        with workspace.lock(folder.name, wait=False) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)
