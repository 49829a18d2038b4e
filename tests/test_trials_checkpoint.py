"""A killed run equals an unkilled one: bit-identical `spec` and `result`, wherever and however often it was killed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engines.execute import execute
from benchmarks.engines.jobs import jobs_of
from benchmarks.events import Progress
from benchmarks.planning import plan
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.trials import trial
from benchmarks.trials.checkpoint import load_checkpoint, save_checkpoint
from tests.harness import (
    comparable,
    copy_float_starts,
    finished,
    run_locally,
    run_with_ray,
    start,
    tiny_suite,
)

DEADLINE_SECONDS = 600.0


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """Trials set torch up for themselves."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


SAVED = Runtime(checkpoint_seconds=0)


def reference() -> dict[str, object]:
    return comparable(finished().out / "tiny" / "records")


def run_to_end(life: Iterator[Progress]) -> object:
    while True:
        try:
            next(life)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("method", ["float", "uniform-lsq"])
def test_compute_for_no_step_at_all_is_refused_and_not_ranked(method, tmp_path):
    suite = tiny_suite(methods=[method], compute={"epochs": 0.001, "search_share": 0.9})
    (chosen,) = plan(suite).trials
    workspace = Workspace(copy_float_starts(tmp_path), "tiny")
    run_to_end(trial.run(chosen.spec, workspace, SAVED))
    (record,) = workspace.records
    assert (record.status, "raise compute.epochs" in record.result["reason"]["message"]) == ("refused", True)


@pytest.mark.parametrize("method", ["hawq", "differentiable", "metamix"])
def test_a_trial_stopped_where_its_search_ends_ends_as_if_it_had_not_been(method, tmp_path):
    out = copy_float_starts(tmp_path)
    workspace = Workspace(out, "tiny")
    (chosen,) = plan(tiny_suite(methods=[method])).trials
    life = trial.run(chosen.spec, workspace, SAVED)
    saved = b""
    while next(life).stage == "search":
        saved = workspace.checkpoint(chosen.id).read_bytes()
    life.close()
    workspace.checkpoint(chosen.id).write_bytes(saved)  # as if it had ended before fine-tuning's first save
    run_to_end(trial.run(chosen.spec, workspace, SAVED))
    assert comparable(workspace.records.folder) == {f"{method} 0": reference()[f"{method} 0"]}


def test_a_metamix_stopped_in_its_last_statistics_ends_as_if_it_had_not_been(tmp_path):
    out = copy_float_starts(tmp_path)
    suite = tiny_suite(methods=[{"name": "metamix", "options": {"statistics_batches": 2}}])
    (chosen,) = plan(suite).trials
    undisturbed, stopped = (Workspace(out, name) for name in ("undisturbed", "stopped"))
    run_to_end(trial.run(chosen.spec, undisturbed, SAVED))
    life = trial.run(chosen.spec, stopped, SAVED)
    phases = [next(life).row["phase"]]
    while phases[-2:] != ["bit-selection", "bn-statistics"]:
        phases.append(next(life).row["phase"])
    life.close()  # its share is spent, but for a batch of statistics
    run_to_end(trial.run(chosen.spec, stopped, SAVED))
    assert comparable(stopped.records.folder) == comparable(undisturbed.records.folder)


def test_a_trial_under_way_is_left_alone_by_another_run(tmp_path):
    out = copy_float_starts(tmp_path)
    workspace = Workspace(out, "tiny")
    job = next(job for job in jobs_of(plan(tiny_suite(methods=["uniform-lsq"]))) if job.is_trial)
    life = execute(job, workspace, Runtime())
    assert isinstance(next(life), Progress)
    assert [event.status for event in execute(job, workspace, Runtime())] == ["busy"]
    life.close()


def wait_for(what: str, process: BaseProcess, reached: object) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert process.is_alive(), f"ended with {process.exitcode} before {what}"
        assert time.monotonic() < until, f"never came to {what}"
        time.sleep(0.01)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_runs_killed_at_random_and_sharing_a_folder_give_the_same_records(tmp_path):
    out, ticks = tmp_path / "out", tmp_path / "ticks"
    # 15 steps of pretraining and 189 of trials. Kills fall into pretraining and into trials, also between steps
    # and during saves, as nothing waits for them.
    dice = random.Random(2026)
    for target in [5, dice.randrange(20, 140)]:
        process = start(run_locally, out, ticks)
        wait_for(f"step {target}", process, lambda target=target: size(ticks) >= target)
        time.sleep(dice.random() * 0.05)
        process.kill()
        process.join()
    both = [start(run_locally, out, ticks) for _ in range(2)]
    for process in both:
        process.join(DEADLINE_SECONDS)
    assert [process.exitcode for process in both] == [0, 0]
    assert comparable(out / "tiny" / "records") == reference()
    assert size(ticks) <= 15 + 189  # a step is told once it is saved, so none is told twice: the work was shared
    leftovers = [path.name for path in out.rglob("*") if path.is_file() and "checkpoints" in path.parts]
    assert [name for name in leftovers if not name.startswith(".")] == []


@pytest.mark.complete
def test_ray_gives_the_same_records_also_when_its_driver_is_killed(tmp_path):
    # Methods with a search, which have the most to lose; the others are trained by the same loop.
    names = ("hawq", "differentiable", "metamix")
    out = copy_float_starts(tmp_path)
    records = out / "tiny" / "records"
    arguments = (finished().suite, out, "--methods", ",".join(names))
    process = start(run_with_ray, *arguments)
    wait_for("a first record", process, lambda: records.is_dir() and any(records.glob("*.json")))
    process.kill()
    process.join()
    process = start(run_with_ray, *arguments)
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert comparable(records) == {f"{name} 0": reference()[f"{name} 0"] for name in names}
    # Ray Tune's own bookkeeping goes with the run that made it; a killed run's stays.
    assert len(list((out / "tiny" / "ray").glob("*"))) <= 1


def unfit(saved: dict[str, Any], how: str) -> dict[str, Any]:
    """A state that no trial of this network can have saved."""
    other = {"fc.weight": torch.zeros(2)}
    changes = {
        "model": {"model": other},
        "loop": {"loop": {}},
        "method": {"loop": {**saved["loop"], "trainee": {"taken": 3}}},
        "random": {"rng": {"cpu": torch.zeros(3)}},
        "account": {"account": {"phases": {"search/x": [1]}, "shown": {}}},
    }
    return {"stage": saved["stage"]} if how == "bare" else {**saved, **changes[how]}


@pytest.mark.parametrize("how", ["model", "loop", "method", "random", "account", "bare"])
@pytest.mark.parametrize("step", [3, 13])  # during the search, and after it
def test_a_whole_checkpoint_of_another_shape_is_no_fault_of_the_method(step, how, tmp_path):
    (chosen,) = plan(tiny_suite(methods=["metamix"])).trials
    workspace = Workspace(copy_float_starts(tmp_path), "tiny")
    life = trial.run(chosen.spec, workspace, SAVED)
    for _ in range(step):
        next(life)
    life.close()
    path = workspace.checkpoint(chosen.id)
    saved = load_checkpoint(path, chosen.id)
    assert saved is not None
    assert saved["stage"] == ("search" if step == 3 else "finetune")
    save_checkpoint(path, chosen.id, unfit(saved, how))
    first, *_ = told = list(trial.run(chosen.spec, workspace, SAVED))
    assert f"{path} does not fit this trial" in first.note
    assert next(event.step for event in told if event.stage == "search") == 1
    assert comparable(workspace.records.folder) == {"metamix 0": reference()["metamix 0"]}
    (record,) = workspace.records
    assert record.observed["restarts"] == 0


def test_a_float_starts_checkpoint_of_another_shape_is_made_anew(tmp_path):
    (chosen,) = plan(tiny_suite(methods=["float"])).trials
    workspace = Workspace(tmp_path / "out", "tiny")
    path = workspace.checkpoint(chosen.spec.start.key)
    save_checkpoint(path, chosen.spec.start.key, {"model": {"fc.weight": torch.zeros(2)}, "loop": {}, "rng": {}})
    first, *_ = trial.run(chosen.spec, workspace, SAVED)
    assert f"{path} does not fit this trial" in first.note
    assert comparable(workspace.records.folder) == {"float 0": reference()["float 0"]}
