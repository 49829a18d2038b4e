"""Runs jobs as Ray Tune trials, first in, first out, here or on a cluster. The only file that imports ray."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partialmethod
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
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # _Forward tells them in a line
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end as if all were well, and what is missing be run again
        "RAY_AIR_NEW_OUTPUT": "0",
    }
)
# `ray start` asks for the user's token once there is one, as after any run here; who joins must say that he has it.
if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (
    Path.home().joinpath(".ray", "auth_token").exists()
):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
ROOT = Path(__file__).resolve().parents[2]

import ray  # noqa: E402
import torch.distributed as dist  # noqa: E402
from ray import train, tune  # noqa: E402
from ray.exceptions import GetTimeoutError  # noqa: E402
from ray.train.backend import Backend  # noqa: E402
from ray.train.torch import TorchConfig, TorchTrainer  # noqa: E402
from ray.tune.integration.ray_train import TuneReportCallback  # noqa: E402

from benchmarks.engines import EngineError, Observer  # noqa: E402
from benchmarks.engines.execute import execute  # noqa: E402
from benchmarks.engines.jobs import Job  # noqa: E402
from benchmarks.engines.keeping import Keeper  # noqa: E402
from benchmarks.engines.one_process import work  # noqa: E402
from benchmarks.engines.storage import Storage  # noqa: E402
from benchmarks.events import Outcome, Progress  # noqa: E402
from benchmarks.messages import SuiteError  # noqa: E402
from benchmarks.ranks import PATIENCE, Ranks, backend_for, join  # noqa: E402
from benchmarks.records.workspace import Workspace  # noqa: E402
from benchmarks.runtime import Runtime  # noqa: E402
from benchmarks.stopping import StoppedError, asked, heeded, watch  # noqa: E402
from benchmarks.suites.suite import Resources  # noqa: E402
from benchmarks.terminal import warn  # noqa: E402
from benchmarks.trials.environment import SENT_FROM, require_compiler, source_state  # noqa: E402

_OBJECT_STORE_BYTES = 100 * 2**20
_REPORT_SECONDS = 2.0
_MAX_WORKER_DEATHS = 3
_CONNECT_SECONDS = 10.0
_PARTING_SECONDS = 30.0
_NOTICE_SECONDS = 20.0
"""What is left of a scheduler's usual 30 seconds for trials to save themselves."""
_WAITING = {"node:__internal_head__": 0.001}
"""What a function needs that waits for its workers: a place on the head node, and no CPU of theirs."""

STAYS_HERE = ["/runs", "/data", "/docs", "/tests", "/reports/reference", "/.git", "/.venv", "/.*_cache", "/.hypothesis"]
"""What other nodes need not be sent to run trials: patterns as in a .gitignore, of the top folder alone."""


class RayEngine:
    """One Tune trial per job.

    A trial of one process is an actor, reused from job to job so that torch is imported once; one of several is a Ray
    Train run over workers wherever the cluster has room. address: an existing cluster to join; None starts one on this
    machine that ends with this process.
    """

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        self.resources, self.address = resources, address

    def run(self, jobs: Sequence[Job], workspace: Workspace, runtime: Runtime, observer: Observer) -> None:
        if not ray.is_initialized():
            _connect(self.address, workspace, runtime)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = _fitted(self.resources, nodes)
        url = runtime.storage and Storage.at(runtime.storage).url
        workspace = replace(workspace, out=workspace.out.resolve())
        runtime = replace(runtime, gpu=resources.gpus > 0, storage=url)
        if resources.loaders is None:
            runtime = replace(runtime, loaders=min(runtime.loaders, resources.cpus - 1))
        if runtime.compile and not self.address:
            require_compiler(runtime.device)
        storage, name = workspace.folder.resolve() / "ray", f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}"
        _forget_dead_runs(workspace)
        stop = storage / name / "stop"
        stop.parent.mkdir(parents=True, exist_ok=True)
        alone = runtime.ranks == 1
        needed = {"cpu": resources.cpus, "gpu": resources.gpus}
        tuner = tune.Tuner(
            # Ray Train asks for what its workers need; the function that waits for them needs next to nothing.
            tune.with_resources(JobTrainable, needed) if alone else tune.with_resources(train_together, _WAITING),
            param_space={
                "workspace": asdict(workspace),
                "runtime": asdict(runtime),
                "stop": str(stop),
                "abroad": self.address is not None,
                "job": tune.grid_search([job.to_dict() for job in jobs]),
                "needed": {kind.upper(): amount for kind, amount in needed.items() if amount},
            },
            tune_config=tune.TuneConfig(
                reuse_actors=alone,
                max_concurrent_trials=_slots(resources, nodes),
                trial_dirname_creator=lambda trial: str(trial.config["job"]["key"]),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(storage),
                callbacks=[_Forward({job.key: job for job in jobs}, observer, stop)],
                failure_config=tune.FailureConfig(max_failures=_MAX_WORKER_DEATHS if alone else 0),
                # Jobs keep their own; to save one, a node would have to see Tune's folder.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with heeded():
            tuner.fit()
        shutil.rmtree(storage / name, ignore_errors=True)  # Tune's own bookkeeping; records are what counts
        if asked():
            raise StoppedError


def _forget_dead_runs(workspace: Workspace) -> None:
    """Remove what Tune noted of runs that were killed on this machine, and Ray Train of jobs that nobody holds."""
    storage = workspace.folder / "ray"
    for folder in storage.glob(f"{socket.gethostname()}-*-*"):
        pid = folder.name.split("-")[-2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (storage / "ranks").glob("*"):
        with workspace.lock(folder.name, wait=False) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str | None, workspace: Workspace, runtime: Runtime) -> None:
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONPATH"] = python_path  # inherited by the workers of a cluster started here
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        sent = {SENT_FROM: json.dumps(source_state())}
        options |= {
            "runtime_env": {"working_dir": str(ROOT), "excludes": _staying(workspace, runtime), "env_vars": sent},
        }
    try:
        if address and ":" in address:
            _knock(address)
        with _groups_of_their_own():
            ray.init(address=address or "local", **options)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        advice = "check --address and that ~/.ray/auth_token is the cluster's, or " if address else ""
        raise EngineError(f"cannot start or reach {where}: {error}; {advice}use --engine local") from error


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Processes started inside leave this one's group: a signal to all of it is answered here, and trials need Ray."""
    plain = subprocess.Popen.__init__
    subprocess.Popen.__init__ = partialmethod(plain, process_group=0)  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = plain  # type: ignore[method-assign]


def _staying(workspace: Workspace, runtime: Runtime) -> list[str]:
    """STAYS_HERE, and where this run keeps its data and results, if that is in the checkout."""
    places = (workspace.out, workspace.folder, workspace.starts, runtime.data, runtime.weights)
    inside = [place.resolve() for place in places if place and ROOT in place.resolve().parents]
    return [*STAYS_HERE, *(f"/{place.relative_to(ROOT).as_posix()}" for place in inside)]


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at host:port; ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _fitted(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> Resources:
    """What a process of a trial gets here: no GPU where there is none, and no more CPUs than a node for it has.

    Raises EngineError where no node has the GPUs.
    """
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = resources.gpus if most else 0.0
    if gpus > most:
        raise EngineError(f"a process needs {gpus:g} GPUs, no node has more than {most:g}; lower resources.gpus")
    if 0 < gpus < 1 < resources.workers_per_trial:
        raise EngineError(
            f"processes that train a trial together need a GPU each, resources.gpus is {gpus:g}; set it to 1"
        )
    cpus = int(max((node.get("CPU", 0) for node in nodes if node.get("GPU", 0.0) >= gpus), default=0))
    return resources.model_copy(update={"gpus": gpus, "cpus": max(1, min(resources.cpus, cpus))})


def _slots(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials the nodes have room for at a time. Raises EngineError if for none."""
    cpus, gpus, ranks = resources.cpus, resources.gpus, resources.workers_per_trial
    processes = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) / gpus if gpus else math.inf)) for node in nodes
    )
    if processes < ranks:
        each = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise EngineError(
            f"a trial needs {ranks} times {cpus} CPUs and {gpus:g} GPUs, the cluster's nodes have {each}; lower "
            "resources.cpus, resources.gpus or resources.workers_per_trial with --set"
        )
    return processes // ranks


class JobTrainable(tune.Trainable):
    """A job seen by Tune: each `step` runs it for about two seconds and passes its progress on."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job = Job.from_dict(new_config["job"])
        watch(Path(new_config["stop"]))
        self.events: Iterator[Progress | Outcome] = execute(job, *_where_and_how(new_config))
        return True

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + _REPORT_SECONDS
        seen: list[dict[str, Any]] = []
        if asked():  # after the job before
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


def _where_and_how(config: Mapping[str, Any]) -> tuple[Workspace, Runtime]:
    """Where a job's files are and how it runs, as the driver told."""
    return Workspace(**config["workspace"]), Runtime(**config["runtime"])


def train_together(config: dict[str, Any]) -> None:
    """A job of several processes, seen by Tune: a Ray Train run, whose workers are the ranks."""
    job, (workspace, runtime) = Job.from_dict(config["job"]), _where_and_how(config)
    with workspace.lock(job.key, wait=False) as mine:
        if not mine or workspace.done(job.spec):
            outcome = Keeper(job, workspace, runtime.storage).done() if mine else Outcome("busy")
            tune.report({"progress": [], "outcome": asdict(outcome)})
            return
        storage = workspace.folder / "ray" / "ranks"
        meeting = TorchConfig if config["abroad"] else Neighbours
        trainer = TorchTrainer(
            train_as_rank,
            train_loop_config=config,
            torch_config=meeting(backend=backend_for(runtime.device), timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=train.ScalingConfig(
                num_workers=runtime.ranks, use_gpu=runtime.gpu, resources_per_worker=config["needed"]
            ),
            run_config=train.RunConfig(
                name=job.key,
                storage_path=str(storage),
                callbacks=[TuneReportCallback()],
                failure_config=train.FailureConfig(max_failures=_MAX_WORKER_DEATHS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 (whatever it was, Ray has tried again as often as it may)
            tune.report({"progress": [], "outcome": asdict(_lost_by(error))})
        shutil.rmtree(storage / job.key, ignore_errors=True)


def _lost_by(error: Exception) -> Outcome:
    """How a job ended whose ranks failed: by wrong use if one of them says so, in its words."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    misused = [failure for failure in failures if isinstance(failure, SuiteError)]
    return Outcome("lost", str(misused[0]), wrong_use=True) if misused else Outcome("lost", str(error))


class Neighbours(TorchConfig):
    """Ranks of one machine, who meet at a file: where torch has them meet, strangers can knock while they train."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _AtFile


class _AtFile(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")
        told = (len(worker_group), Path(self.folder.name, "meeting"), backend_config.backend)
        ray.get([worker_group.execute_single_async(rank, join, rank, *told) for rank in range(len(worker_group))])

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        try:
            with suppress(GetTimeoutError):  # the workers are ended next, whatever they wait for
                ray.get(worker_group.execute_async(dist.destroy_process_group), timeout=_PARTING_SECONDS)
        finally:
            self.folder.cleanup()


def train_as_rank(config: dict[str, Any]) -> None:
    """The life of one rank in a Ray Train worker. All report when the first does: Ray waits for all of them."""
    job, (workspace, runtime) = Job.from_dict(config["job"]), _where_and_how(config)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    if ranks.rank == 0:  # it saves for all
        watch(Path(config["stop"]))
    if ranks.decided(asked()):
        return
    seen: list[dict[str, Any]] = []
    until, outcome = time.monotonic() + _REPORT_SECONDS, Outcome("done")
    try:
        for event in work(job, workspace, runtime, ranks):
            if isinstance(event, Outcome):
                outcome = event
                break
            seen.append(asdict(event))
            if ranks.decided(time.monotonic() > until):
                train.report({"progress": seen, "rank": ranks.rank})
                seen, until = [], time.monotonic() + _REPORT_SECONDS
    except StoppedError:  # the others wait for this rank; started again, all of them stop
        raise RuntimeError("asked to stop") from None
    if outcome.status == "lost":  # the others wait for this rank; Ray ends them, and all go on from the checkpoint
        raise (SuiteError if outcome.wrong_use else RuntimeError)(outcome.message)
    train.report({"progress": seen, "outcome": asdict(outcome)})


class _Forward(tune.Callback):
    """Passes what workers report to the observer, on the driver, and a request to stop to the workers, as a file."""

    def __init__(self, jobs: dict[str, Job], observer: Observer, stop: Path) -> None:
        self.jobs, self.observer, self.stop = jobs, observer, stop
        self.stopping: list[Any] = []
        self.until = math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks to restore an experiment; records do that here, and an observer holds a terminal."""
        return {}

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Asked to stop, wait for the trials under way to save themselves; raises StoppedError then."""
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
