"""Engines: what they refuse, how trials fit nodes, what is sent, and when their reports are trusted; no whole runs."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import engines, stopping
from benchmarks.commands.progress import View
from benchmarks.engines import EngineError, Observer, run_jobs
from benchmarks.engines.jobs import Job, jobs_of
from benchmarks.engines.local import LocalEngine
from benchmarks.events import Outcome, Progress
from benchmarks.planning import plan
from benchmarks.records.record import Records
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.suite import Resources
from benchmarks.trials import notes, trial
from benchmarks.trials.faults import DeviceLostError
from tests.harness import ROOT, tiny_suite

SMALL, LARGE, GPU = {"CPU": 4.0}, {"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}


@dataclass
class Endings:
    """An observer that keeps how jobs ended."""

    seen: list[Outcome] = field(default_factory=list)

    def progress(self, job: Job, progress: Sequence[Any]) -> None: ...

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.seen.append(outcome)


class Elsewhere:
    """An engine whose results are written where nobody here sees them."""

    def run(self, jobs: Sequence[Job], workspace: Workspace, runtime: Runtime, observer: Observer) -> None:
        for job in jobs:
            observer.ended(job, Outcome("done"))


def test_a_line_counts_jobs_that_have_ended_not_those_at_their_last_step(tmp_path):
    said = io.StringIO()
    first, second = jobs_of(plan(tiny_suite(methods=["uniform-lsq"])))
    view = View(Console(file=said, width=200), [first, second], {}, Records(tmp_path))
    view.progress(second, [Progress("finetune", 9, 9, {})])
    view.ended(first, Outcome("done"))
    view.ended(second, Outcome("done"))
    assert [line.split()[0] for line in said.getvalue().splitlines()] == ["[1/2]", "[2/2]"]


def test_a_job_without_a_result_is_lost_whatever_its_engine_says(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_ARRIVAL_SECONDS", 0.0)
    jobs, endings = jobs_of(plan(tiny_suite(methods=["uniform-lsq"]))), Endings()
    lost = run_jobs(Elsewhere(), jobs, Workspace(tmp_path, "tiny"), Runtime(), endings)
    assert set(lost) == {job.key for job in jobs}
    assert all("is --out on a shared file system?" in outcome.message for outcome in lost.values())
    assert [outcome.status for outcome in endings.seen] == ["lost"] * len(jobs)


def test_a_result_may_come_late(tmp_path, monkeypatch):
    workspace, endings = Workspace(tmp_path, "tiny"), Endings()
    (start, _) = jobs_of(plan(tiny_suite(methods=["uniform-lsq"])))
    path = workspace.start(start.key.removeprefix("start-"))

    def sleep(_seconds: float) -> None:
        path.parent.mkdir()
        path.touch()

    monkeypatch.setattr(engines.time, "sleep", sleep)
    assert run_jobs(Elsewhere(), [start], workspace, Runtime(), endings) == {}
    assert endings.seen == [Outcome("done")]


@pytest.mark.parametrize(
    ("asked", "nodes", "cpus", "gpus", "slots"),
    [
        ({"cpus": 8, "gpus": 1}, [LARGE, GPU], 4, 1, 1),
        ({"cpus": 8, "gpus": 1}, [LARGE, SMALL], 8, 0, 8),
        ({"cpus": 8, "gpus": 0.5}, [GPU, GPU], 4, 0.5, 2),
        ({"cpus": 2, "gpus": 0.5}, [GPU, GPU], 2, 0.5, 4),
        ({"cpus": 3}, [SMALL, SMALL], 3, 0, 2),
        ({"cpus": 2, "gpus": 1, "workers_per_trial": 2}, [GPU, GPU, GPU], 2, 1, 1),
    ],
)
def test_a_trial_is_fitted_to_a_node_that_there_is(asked, nodes, cpus, gpus, slots):
    from benchmarks.engines.ray import cluster

    given = cluster.fitted(Resources(**asked), nodes)
    assert (given.cpus, given.gpus, cluster.slots(given, nodes)) == (cpus, gpus, slots)


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        ({"gpus": 2}, [GPU, GPU], "needs 2 GPUs, no node has more than 1"),
        ({"gpus": 0.5, "workers_per_trial": 2}, [GPU], "need a GPU each"),
        ({"gpus": 1, "workers_per_trial": 2}, [GPU, LARGE], "needs 2 times 1 CPUs and 1 GPUs"),
        ({"cpus": 4, "workers_per_trial": 2}, [{"CPU": 6.0}], "nodes have 6 CPUs, 0 GPUs"),
    ],
)
def test_what_fits_no_node_is_refused(asked, nodes, message):
    from benchmarks.engines.ray.cluster import fitted, slots

    with pytest.raises(EngineError, match=message):
        slots(fitted(Resources(**asked), nodes), nodes)


def test_a_cluster_is_sent_neither_data_nor_results_that_lie_in_the_checkout(tmp_path):
    from pathspec import PathSpec

    from benchmarks.engines.ray.cluster import STAYS_HERE, staying

    stays = PathSpec.from_lines(
        "gitignore", staying(Workspace(ROOT / "mine" / "results", "tiny"), Runtime(ROOT / "images"))
    )
    assert stays.match_file("mine/results/tiny/records/a.json")
    assert stays.match_file("images/train/a.jpg")
    assert not stays.match_file("methods/hawq.py")
    here = PathSpec.from_lines("gitignore", staying(Workspace(ROOT, "tiny"), Runtime()))
    assert here.match_file("tiny/records/a.json")
    assert here.match_file("float/a.pt")
    assert not here.match_file("methods/hawq.py")
    assert staying(Workspace(tmp_path, "tiny"), Runtime(tmp_path)) == STAYS_HERE


def test_what_killed_runs_left_of_ray_is_removed_and_nothing_of_living_ones(tmp_path):
    from benchmarks.engines.ray.engine import forget_dead_runs

    workspace, host = Workspace(tmp_path, "tiny"), socket.gethostname()
    ended = subprocess.Popen(["true"])
    ended.wait()
    living = [f"{host}-{os.getpid()}-1", "ranks/held", f"elsewhere-{ended.pid}-1"]
    for name in [*living, f"{host}-{ended.pid}-1", "ranks/left"]:
        (workspace.folder / "ray" / name / "below").mkdir(parents=True)
    with workspace.lock("held", wait=False):
        forget_dead_runs(workspace)
    found = [path.parent for path in workspace.folder.rglob("below")]
    assert sorted(found) == sorted(workspace.folder / "ray" / name for name in living)


class Group:
    """Stands in for Ray's workers."""

    def __len__(self) -> int:
        return 0

    def execute_async(self, _what: Any) -> list[Any]:
        return []


@pytest.mark.parametrize("error", ["GetTimeoutError", "RayError"])
def test_ranks_that_do_not_part_are_not_waited_for_and_their_folder_goes(error, monkeypatch):
    from benchmarks.engines.ray import ranks

    limits: list[float | None] = []

    def get(_what: Any, timeout: float | None = None) -> list[Any]:
        limits.append(timeout)
        if len(limits) == 2:
            raise getattr(ranks.ray.exceptions, error)
        return []

    monkeypatch.setattr(ranks.ray, "get", get)
    backend, config = ranks._AtFile(), ranks.Neighbours(backend="gloo")
    backend.on_start(Group(), config)
    folder = Path(backend.folder.name)
    with nullcontext() if error == "GetTimeoutError" else pytest.raises(ranks.ray.exceptions.RayError):
        backend.on_shutdown(Group(), config)
    assert (limits, folder.exists()) == ([None, 30.0], False)


def test_more_processes_than_gpus_are_refused_here(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    engine = LocalEngine(Resources(gpus=1, workers_per_trial=2))
    with pytest.raises(EngineError, match=r"the 2 processes of a trial need a GPU each, this machine has 1"):
        engine.run([], Workspace(tmp_path, "tiny"), Runtime(ranks=2), Endings())


def test_a_trial_says_what_it_had_of_a_gpu_s_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 5)
    assert notes._peaks(torch.device("cuda"))["peak_gpu_memory_bytes"] == 5
    assert list(notes._peaks(torch.device("cpu"))) == ["peak_memory_bytes"]


@pytest.mark.parametrize("dead", [True, False])
def test_a_gpu_that_a_process_has_lost_costs_no_other_job(tmp_path, monkeypatch, dead):
    def fail(*_arguments: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for it in its documentation")

    monkeypatch.setattr(trial, "run", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", fail if dead else lambda: None)
    jobs = [job for job in jobs_of(plan(tiny_suite(methods=["uniform-lsq", "metamix"]))) if job.is_trial]
    endings, engine, workspace = Endings(), LocalEngine(Resources(gpus=1)), Workspace(tmp_path, "tiny")
    if dead:
        with pytest.raises(
            DeviceLostError, match=r"lost to this process \(CUDA error: device-side assert triggered\)$"
        ):
            run_jobs(engine, jobs, workspace, Runtime(), endings)
        assert endings.seen == []
    else:
        assert len(run_jobs(engine, jobs, workspace, Runtime(), endings)) == 2


def test_a_file_asks_a_process_to_stop(tmp_path, monkeypatch):
    for name, value in (("_asked", False), ("_file", None), ("_looked", 0.0), ("_LOOK_SECONDS", 0.0)):
        monkeypatch.setattr(stopping, name, value)
    assert not stopping.asked()
    stopping.watch(tmp_path / "gone" / "stop")
    assert not stopping.asked()
    stopping.watch(tmp_path / "stop")
    assert not stopping.asked()
    Path(tmp_path / "stop").touch()
    assert stopping.asked()
