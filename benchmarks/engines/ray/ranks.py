"""A job of several processes, which Tune sees as one trial: a Ray Train run, whose workers are the ranks."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray import train, tune
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.engines.jobs import Job
from benchmarks.engines.keeping import Keeper
from benchmarks.engines.one_process import work
from benchmarks.engines.ray.trials import REPORT_SECONDS, where_and_how
from benchmarks.events import Outcome
from benchmarks.messages import SuiteError
from benchmarks.ranks import PATIENCE, Ranks, backend_for, join
from benchmarks.stopping import StoppedError, asked, watch

MAX_WORKER_DEATHS = 3
_PARTING_SECONDS = 30.0


def train_together(config: dict[str, Any]) -> None:
    """Run a job of several processes, as one trial of Tune: a Ray Train run, whose workers are the ranks."""
    job, (workspace, runtime) = Job.from_dict(config["job"]), where_and_how(config)
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
                failure_config=train.FailureConfig(max_failures=MAX_WORKER_DEATHS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 (whatever it was, Ray has tried again as often as it may)
            tune.report({"progress": [], "outcome": asdict(_lost_by(error))})
        shutil.rmtree(storage / job.key, ignore_errors=True)


def _lost_by(error: Exception) -> Outcome:
    """The outcome of a job whose ranks failed: wrong use if one of them raised SuiteError, with its message."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    misused = [failure for failure in failures if isinstance(failure, SuiteError)]
    return Outcome("lost", str(misused[0]), wrong_use=True) if misused else Outcome("lost", str(error))


class Neighbours(TorchConfig):
    """Ranks of one machine, which meet at a file: torch's default is an open port that others could connect to."""

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
            with suppress(GetTimeoutError):  # the workers are ended next in any case
                ray.get(worker_group.execute_async(dist.destroy_process_group), timeout=_PARTING_SECONDS)
        finally:
            self.folder.cleanup()


def train_as_rank(config: dict[str, Any]) -> None:
    """The life of one rank in a Ray Train worker. All report when the first does: Ray waits for all of them."""
    job, (workspace, runtime) = Job.from_dict(config["job"]), where_and_how(config)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    if ranks.rank == 0:  # it saves for all
        watch(Path(config["stop"]))
    if ranks.decided(asked()):
        return
    seen: list[dict[str, Any]] = []
    until, outcome = time.monotonic() + REPORT_SECONDS, Outcome("done")
    try:
        for event in work(job, workspace, runtime, ranks):
            if isinstance(event, Outcome):
                outcome = event
                break
            seen.append(asdict(event))
            if ranks.decided(time.monotonic() > until):
                train.report({"progress": seen, "rank": ranks.rank})
                seen, until = [], time.monotonic() + REPORT_SECONDS
    except StoppedError:  # the others wait for this rank; started again, all of them stop
        raise RuntimeError("asked to stop") from None
    if outcome.status == "lost":  # the others wait for this rank; Ray ends them, and all go on from the checkpoint
        raise (SuiteError if outcome.wrong_use else RuntimeError)(outcome.message)
    train.report({"progress": seen, "outcome": asdict(outcome)})
