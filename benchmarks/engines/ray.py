"""Runs jobs as Ray Tune trials, first in, first out, here or on a cluster. The only file that imports ray."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Read by ray when it is imported, here and in the workers that inherit this environment.
os.environ.update(
    {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
)
ROOT = Path(__file__).resolve().parents[2]

import ray  # noqa: E402
from ray import tune  # noqa: E402

from benchmarks.engines import EngineError, Job, Observer, Outcome, execute  # noqa: E402
from benchmarks.environment import require_compiler  # noqa: E402
from benchmarks.suite import Resources  # noqa: E402
from benchmarks.training import Progress  # noqa: E402
from benchmarks.workspace import Workspace  # noqa: E402

_OBJECT_STORE_BYTES = 100 * 2**20
_REPORT_SECONDS = 2.0
_MAX_WORKER_DEATHS = 3
_CONNECT_SECONDS = 10.0


class RayEngine:
    """One Tune trial per job, one actor per slot, reused from job to job so that torch is imported once.

    address: an existing cluster to join; None starts one on this machine that ends with this process.
    """

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        self.resources, self.address = resources, address

    def run(self, jobs: Sequence[Job], workspace: Workspace, observer: Observer) -> None:
        if not ray.is_initialized():
            _connect(self.address)
        resources = _fitted(self.resources)
        workspace = replace(workspace, out=workspace.out.resolve(), gpu=resources.gpus > 0)
        if workspace.compile and not self.address:
            require_compiler(workspace.device)
        settings = asdict(workspace)
        storage, name = workspace.folder.resolve() / "ray", f"{workspace.suite}-{os.getpid()}-{int(time.time())}"
        tuner = tune.Tuner(
            tune.with_resources(JobTrainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
            param_space={"workspace": settings, "job": tune.grid_search([job.to_dict() for job in jobs])},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=_slots(resources),
                trial_dirname_creator=lambda trial: str(trial.config["job"]["key"]),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(storage),
                callbacks=[_Forward({job.key: job for job in jobs}, observer)],
                failure_config=tune.FailureConfig(max_failures=_MAX_WORKER_DEATHS),
                verbose=0,
            ),
        )
        tuner.fit()
        shutil.rmtree(storage / name, ignore_errors=True)  # Tune's own bookkeeping; records are what counts


def _connect(address: str | None) -> None:
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONPATH"] = python_path  # inherited by the workers of a cluster started here
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        if address and ":" in address:
            _knock(address)
        ray.init(address=address or "local", **options)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise EngineError(f"cannot start or reach {where}: {error}; check --address, or use --engine local") from error


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at host:port; ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _fitted(resources: Resources) -> Resources:
    """What a trial gets here: no GPU where there is none, and no more CPUs than the largest node has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = resources.gpus if any(node.get("GPU") for node in nodes) else 0
    most = int(max(node.get("CPU", 0) for node in nodes))
    return resources.model_copy(update={"gpus": gpus, "cpus": max(1, min(resources.cpus, most))})


def _slots(resources: Resources) -> int:
    total = ray.cluster_resources()
    slots = int(total.get("CPU", 0) // resources.cpus)
    if resources.gpus:
        slots = min(slots, int(total.get("GPU", 0) / resources.gpus))
    if slots < 1:
        raise EngineError(
            f"a trial needs {resources.cpus} CPUs and {resources.gpus:g} GPUs, the cluster has "
            f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}; lower resources.cpus or resources.gpus with --set"
        )
    return slots


class JobTrainable(tune.Trainable):
    """A job seen by Tune: each `step` runs it for about two seconds and passes its progress on."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job = Job.from_dict(new_config["job"])
        self.events: Iterator[Progress | Outcome] = execute(job, Workspace(**new_config["workspace"]))
        return True

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + _REPORT_SECONDS
        seen: list[dict[str, Any]] = []
        for event in self.events:
            if isinstance(event, Outcome):
                return {"progress": seen, "outcome": asdict(event), "done": True}
            seen.append(asdict(event))
            if time.monotonic() > until:
                break
        return {"progress": seen, "done": False}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a job keeps its own checkpoints, which outlive this Ray session."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see save_checkpoint."""


class _Forward(tune.Callback):
    """Passes what workers report to the observer, on the driver."""

    def __init__(self, jobs: dict[str, Job], observer: Observer) -> None:
        self.jobs, self.observer = jobs, observer

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks to restore an experiment; records do that here, and an observer holds a terminal."""
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        job = self.jobs[trial.config["job"]["key"]]
        if result["progress"]:
            self.observer.progress(job, [Progress(**row) for row in result["progress"]])
        if "outcome" in result:
            self.observer.ended(job, Outcome(**result["outcome"]))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        job = self.jobs[trial.config["job"]["key"]]
        self.observer.ended(job, Outcome("lost", f"its worker died: {trial.error_file or 'no traceback'}"))
