"""Faults injected for real. After each, the same command gives the same `spec` and `result`, and no record is lost."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmarks.commands import doctor
from benchmarks.commands.progress import View
from benchmarks.data import preparing
from benchmarks.data.tree import write_tree
from benchmarks.engines import run_jobs
from benchmarks.engines.jobs import Job, jobs_of
from benchmarks.engines.local import LocalEngine
from benchmarks.events import Outcome, Progress
from benchmarks.planning import plan
from benchmarks.records.record import Records
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.suite import Resources, load_suite
from benchmarks.trials.checkpoint import previous
from benchmarks.trials.training import Loop, WeightTraining
from methods.quantization.cost import uniform_bits, with_pins
from tests.harness import (
    ROOT,
    Silent,
    cli,
    comparable,
    copy_float_starts,
    descendants,
    finished,
    run_with_ray,
    start,
    tiny_suite,
    write_suite,
)
from tests.problems import make_problem
from tests.sharing import built_once

DEADLINE_SECONDS = 900.0
METHOD = "metamix"
"""Its search has two phases with two optimizers, and its weights go on into fine-tuning: most that can be lost."""

_SHARED = {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 8, "micro_batch": 4}
OVER_RANKS = {
    "recipe": _SHARED,
    "pretraining": {"epochs": 1, "recipe": {**_SHARED, "batch_size": 64, "micro_batch": 32}},
}
"""Recipes whose batches two processes can share."""


class Noted(Silent):
    """Lost jobs leave their message in a file beside the ticks."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        if outcome.status == "lost" and self.ticks:
            with self.ticks.with_suffix(".lost").open("a") as file:
                file.write(f"{job.label}: {outcome.message}\n")


def work(out: Path, ticks: Path, seconds: float, ranks: int = 1, spare: int | None = None) -> None:
    """One trial, saved every `seconds`. spare: bytes of memory that it may take beyond what it has by now."""
    if spare is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
    suite = suite_of(ranks)
    workspace, runtime = Workspace(out, "tiny"), Runtime(checkpoint_seconds=seconds, ranks=ranks)
    run_jobs(LocalEngine(suite.resources), jobs_of(plan(suite)), workspace, runtime, Noted(ticks))


def suite_of(ranks: int = 1) -> Any:
    if ranks == 1:
        return tiny_suite(methods=[METHOD])
    return tiny_suite({"resources.workers_per_trial": ranks}, methods=[METHOD], **OVER_RANKS)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_for(process: BaseProcess, reached: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert process.is_alive(), f"ended too soon, with {process.exitcode}"
        assert time.monotonic() < until
        time.sleep(0.005)


def run(*arguments: Any) -> None:
    process = start(work, *arguments)
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0


@cache
def undisturbed_over_ranks() -> Mapping[str, Any]:
    """What two processes together leave of `suite_of(2)`."""
    return built_once("two ranks", run_over_ranks)


def run_over_ranks(folder: Path) -> Mapping[str, Any]:
    run(folder / "out", folder / "ticks", 0, 2)
    return comparable(folder / "out" / "tiny" / "records")


def same_as_undisturbed(out: Path) -> bool:
    expected = comparable(finished().out / "tiny" / "records")[f"{METHOD} 0"]
    return comparable(out / "tiny" / "records") == {f"{METHOD} 0": expected}


def restarts(out: Path) -> int:
    (record,) = Records(out / "tiny" / "records")
    count: int = record.observed["restarts"]
    return count


def steps(out: Path) -> int:
    """Steps that a trial needs, of search and fine-tuning."""
    (record,) = Records(out / "tiny" / "records")
    return sum(phase["steps"] for phase in record.result["account"]["phases"])


@pytest.mark.parametrize("step", [2, 9])  # of 14: during its search, and after it
def test_sigterm_has_a_trial_save_itself(tmp_path, step):
    out, ticks = copy_float_starts(tmp_path), tmp_path / "ticks"
    process = start(work, out, ticks, 1e9)  # without the signal it would not save at all
    wait_for(process, lambda: size(ticks) >= step)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(30)
    assert process.exitcode not in (0, None, -signal.SIGTERM)
    run(out, ticks, 1e9)
    assert same_as_undisturbed(out)
    assert restarts(out) == 1
    assert size(ticks) == steps(out) - 1  # the step after which it saved itself was not told, and not taken again


def test_sigterm_to_the_command_is_answered_with_what_to_do(tmp_path):
    out, suite = copy_float_starts(tmp_path), write_suite(tmp_path, methods=[METHOD])
    command = [sys.executable, "runner.py", "--suite", str(suite), "--engine", "local", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + DEADLINE_SECONDS
    while not (out / "locks").exists() or len(list((out / "locks").glob("*.lock"))) < 2:  # a trial has begun
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert cli("--suite", suite, "--engine", "local", "--out", out).code == 0
    assert same_as_undisturbed(out)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: size(path) // 2])


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path):
    out, ticks = copy_float_starts(tmp_path), tmp_path / "ticks"
    (trial,) = plan(suite_of()).trials
    checkpoint = Workspace(out, "tiny").checkpoint(trial.id)
    process = start(work, out, ticks, 0)
    wait_for(process, lambda: size(ticks) >= 10)
    process.kill()
    process.join()
    cut(checkpoint)
    assert previous(checkpoint).exists()
    run(out, ticks, 0)
    assert same_as_undisturbed(out)
    assert restarts(out) == 1
    assert size(ticks) <= steps(out) + 2  # of the steps that were told, two at most were taken again
    assert not list(checkpoint.parent.glob("*.pt"))


def test_where_no_checkpoint_can_be_trusted_the_trial_starts_from_its_beginning(tmp_path):
    out, ticks = copy_float_starts(tmp_path), tmp_path / "ticks"
    (trial,) = plan(suite_of()).trials
    checkpoint = Workspace(out, "tiny").checkpoint(trial.id)
    process = start(work, out, ticks, 0)
    wait_for(process, lambda: size(ticks) >= 5)
    process.kill()
    process.join()
    cut(checkpoint)
    cut(previous(checkpoint))
    ticks.unlink()
    run(out, ticks, 0)
    assert same_as_undisturbed(out)
    assert restarts(out) == 0
    assert size(ticks) == steps(out)


@pytest.mark.parametrize("spare_megabytes", [1, 24])
def test_want_of_memory_is_no_fault_of_the_method(tmp_path, spare_megabytes):
    out, ticks = copy_float_starts(tmp_path), tmp_path / "ticks"
    process = start(work, out, ticks, 0, 1, spare_megabytes * 2**20)
    process.join(DEADLINE_SECONDS)
    assert list(Records(out / "tiny" / "records")) == []  # no record that calls the method failed
    run(out, ticks, 0)
    assert same_as_undisturbed(out)


@pytest.mark.skipif(subprocess.call(["unshare", "-rm", "true"]) != 0, reason="no mounts allowed here")
def test_a_full_disk_costs_nothing_but_the_time(tmp_path):
    """The output folder is a file system of its own that fills up, and is then given room."""
    suite, place = write_suite(tmp_path, methods=[METHOD]), tmp_path / "small"
    place.mkdir()
    command = f"{sys.executable} runner.py --suite {suite} --engine local --out {place}/out"
    script = f"""
    mount -t tmpfs -o size=600k tmpfs {place}
    {command} > {tmp_path}/first 2>&1
    echo $? > {tmp_path}/code
    mount -o remount,size=64m {place}
    {command} > {tmp_path}/second 2>&1 || exit 1
    cp -r {place}/out/tiny {tmp_path}/kept
    """
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + (tmp_path / "second").read_text()
    assert int((tmp_path / "code").read_text()) == 1
    assert "No space left" in (tmp_path / "first").read_text()
    kept = tmp_path / "out" / "tiny"
    kept.parent.mkdir()
    shutil.copytree(tmp_path / "kept", kept)
    assert same_as_undisturbed(tmp_path / "out")


def itself(pid: int) -> Sequence[int]:
    return [pid]


def process_group(pid: int) -> Sequence[int]:
    """What `timeout` signals, and a shell that ends its jobs."""
    return [one for one in descendants(pid) if os.getpgid(one) == pid]


def every_process(pid: int) -> Sequence[int]:
    """What a service's manager signals."""
    return list(descendants(pid))


@pytest.mark.complete
@pytest.mark.parametrize("told", [process_group, every_process])
def test_sigterm_to_loaders_as_well_has_a_trial_save_itself(told, tmp_path):
    write_tree(tmp_path / "tree", classes=3, train=30, val=2)
    suite = write_suite(
        tmp_path,
        data={"dataset": "imagefolder", "image_size": 32, "classes": 3, "augment": "crop-flip"},
        methods=["uniform-lsq"],
        compute={"epochs": 1000, "search_share": 0.5},
        resources={"loaders": 1, "checkpoint_seconds": 1.0},
    )
    (trial,) = plan(load_suite(str(suite))).trials
    checkpoint = Workspace(tmp_path / "out", "tiny").checkpoint(trial.id)
    command = [sys.executable, "runner.py", "--suite", str(suite), "--engine", "local"]
    command += ["--data", str(tmp_path / "tree"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + DEADLINE_SECONDS
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)
    for pid in told(process.pid):
        os.kill(pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, "run the same command again" in said) == (130, True), said


def look_at_names(begun: Path) -> None:
    names = [str(number) for number in range(10_000)]
    preparing._everywhere(slowly, names, lambda _done, _total: begun.touch())


def slowly(path: str) -> str:
    time.sleep(0.01)
    return path


def examine_and_wait(begun: Path) -> None:
    def wait(*_arguments: Any) -> Iterator[doctor.Finding]:
        begun.touch()
        time.sleep(60)
        yield doctor.Finding(True, "waited")

    with mock.patch.object(doctor, "_weights", wait):  # which comes after what the other process looks at
        list(doctor.examine(load_suite("smoke"), None, begun.parent))


@pytest.mark.parametrize("target", [look_at_names, examine_and_wait])
def test_killed_commands_leave_no_process_behind(tmp_path, target):
    process = start(target, tmp_path / "begun")
    wait_for(process, (tmp_path / "begun").exists)
    others = [Path("/proc", str(pid)) for pid in descendants(process.pid or 0) if pid != process.pid]
    process.kill()
    process.join()
    until = time.monotonic() + 10
    while (left := [other for other in others if other.exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    assert (bool(others), left) == (True, [])


def test_one_method_s_nan_is_its_own_failure_and_the_others_go_on(tmp_path):
    steep = {"name": "uniform-lsq", "label": "steep", "settings": {"recipe.optimizer.lr": 1e30}}
    suite = write_suite(tmp_path, methods=[steep, METHOD])
    ran = cli("--suite", suite, "--engine", "local", "--out", copy_float_starts(tmp_path))
    assert ran.code == 1
    found = {record.spec["method"]["name"]: record for record in Records(tmp_path / "out" / "tiny" / "records")}
    assert found["uniform-lsq"].status == "failed"
    assert "finetune step" in found["uniform-lsq"].result["reason"]["message"]
    assert found[METHOD].status == "ok"


@pytest.mark.complete
def test_memory_does_not_grow_over_two_thousand_steps():
    problem = make_problem(steps=2_100, share=0.0)
    bits = with_pins(problem.ledger, uniform_bits(problem.ledger, 4, 4))
    training, account = WeightTraining(problem, bits, total=2_000), problem.account
    loop = Loop(problem, training, "finetune", account, account.granted_macs)
    resident = []
    for progress in loop.run():
        if progress.step % 500 == 0:
            gc.collect()
            resident.append(resident_bytes(os.getpid()))
    assert len(resident) == 4
    # A leak of one gradient of this network's 20 kB a step would be 20 MB from one reading to the next.
    assert resident[-1] - resident[0] < 8 * 2**20


@pytest.mark.complete
def test_memory_does_not_grow_over_two_thousand_steps_of_a_trial(tmp_path):
    """As it is run: two searches' streams of image files with a loader each, a teacher, and checkpoints."""
    write_tree(tmp_path / "tree", classes=3, train=30, val=2)
    suite = write_suite(
        tmp_path,
        data={"dataset": "imagefolder", "image_size": 32, "classes": 3, "augment": "crop-flip"},
        teacher={"name": "resnet18", "width": 0.03125, "form": "small"},
        methods=[METHOD],
        compute={"epochs": 460, "search_share": 0.85},
    )
    resident: dict[str, list[tuple[int, int]]] = {}

    class Weighed(Silent):
        def progress(self, _job: Job, progress: Sequence[Progress]) -> None:
            stage, step = progress[-1].stage, progress[-1].step
            if step % 100 == 0 and step:
                gc.collect()
                trial, *loaders = map(resident_bytes, descendants(os.getpid()))
                resident.setdefault(stage, []).append((trial, max(loaders)))

    (trial,) = (job for job in jobs_of(plan(load_suite(str(suite)))) if job.is_trial)
    place, runtime = Workspace(tmp_path / "out", "tiny"), Runtime(tmp_path / "tree", loaders=1, checkpoint_seconds=1.0)
    assert run_jobs(LocalEngine(Resources()), [trial], place, runtime, Weighed()) == {}
    assert steps(tmp_path / "out") > 2_000
    assert resident.keys() == {"search", "finetune"}
    for readings in resident.values():
        assert len(readings) >= 5
        # A gradient of this network's 20 kB a step would be 8 MB from the first reading to the fifth.
        assert all(last - first < 4 * 2**20 for first, last in zip(readings[0], readings[-1], strict=True))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def ray_workers(driver: int, kind: str = "Trainable") -> Sequence[int]:
    """Processes of Ray's actors that belong to a driver, by their command lines."""
    found = []
    for pid in descendants(driver):
        with suppress(OSError):
            if kind in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]:
                found.append(pid)
    return found


@pytest.mark.complete
def test_a_killed_ray_worker_is_replaced(tmp_path):
    out = copy_float_starts(tmp_path)
    process = start(run_with_ray, finished().suite, out, "--methods", "hawq,metamix")
    wait_for(process, lambda: bool(ray_workers(process.pid or 0)))
    time.sleep(2)
    for worker in ray_workers(process.pid or 0)[:1]:
        os.kill(worker, signal.SIGKILL)
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    reference = comparable(finished().out / "tiny" / "records")
    assert comparable(out / "tiny" / "records") == {name: reference[name] for name in ("hawq 0", "metamix 0")}
    said = (tmp_path / "log").read_text()
    assert (said.count("its worker has gone"), "Traceback" in said) == (1, False), said


@pytest.mark.complete
def test_ray_s_ranks_are_those_of_this_machine_also_when_one_is_killed(tmp_path):
    """Ray Train's workers add the same numbers as processes that this project starts itself: to the bit."""
    suite = write_suite(tmp_path, methods=[METHOD], resources={"workers_per_trial": 2}, **OVER_RANKS)
    expected, out = undisturbed_over_ranks(), tmp_path / "out"
    process = start(run_with_ray, suite, out)
    wait_for(process, lambda: any((out / "tiny" / "checkpoints").glob("*.pt")) or (out / "tiny" / "records").exists())
    for worker in ray_workers(process.pid or 0, "RayTrainWorker")[:1]:
        os.kill(worker, signal.SIGKILL)
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert comparable(out / "tiny" / "records") == expected
    assert not list((out / "tiny" / "ray").rglob("*.json"))


def run_with_ray_noted(suite: Path, out: Path) -> None:
    """The suite by Ray, in a process group of its own; a file by a trial's id says that it trains."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where tests run in the background

    def note(_view: View, job: Job, _progress: Sequence[Any]) -> None:
        (out.parent / job.key).touch()

    with mock.patch.object(View, "progress", note):
        run_with_ray(suite, out)


@pytest.mark.complete
@pytest.mark.parametrize("told", [itself, process_group])
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_has_ray_s_trials_save_themselves(tmp_path, ranks, told):
    suite = write_suite(
        tmp_path,
        methods=["uniform-lsq"],
        compute={"epochs": 100, "search_share": 0.9},
        resources={"workers_per_trial": ranks, "checkpoint_seconds": 1e9},  # without the signal it would not save
        **OVER_RANKS,
    )
    process = start(run_with_ray_noted, suite, tmp_path / "out")
    (trial,) = plan(load_suite(str(suite))).trials
    checkpoint = Workspace(tmp_path / "out", "tiny").checkpoint(trial.id)
    wait_for(process, (tmp_path / trial.id).exists)
    assert not checkpoint.exists()
    for pid in told(process.pid or 0):
        os.kill(pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 130, (tmp_path / "log").read_text()
    assert checkpoint.exists()
    assert "run the same command again" in (tmp_path / "log").read_text()


@pytest.mark.complete
def test_ctrl_c_ends_a_run_with_ray(tmp_path):
    suite = write_suite(tmp_path, methods=["uniform-lsq"], compute={"epochs": 100, "search_share": 0.9})
    process = start(run_with_ray_noted, suite, tmp_path / "out")
    (trial,) = plan(load_suite(str(suite))).trials
    wait_for(process, (tmp_path / trial.id).exists)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130, (tmp_path / "log").read_text()
    assert "run the same command again" in (tmp_path / "log").read_text()


@pytest.mark.complete
def test_under_ray_a_method_s_nan_over_ranks_is_its_failure_at_once(tmp_path):
    steep = {"name": "uniform-lsq", "settings": {"recipe.optimizer.lr": 1e30}}
    suite = write_suite(tmp_path, methods=[steep], resources={"workers_per_trial": 2}, **OVER_RANKS)
    process = start(run_with_ray, suite, tmp_path / "out")
    process.join(DEADLINE_SECONDS)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 1, log
    assert "failed: " in log
    assert ": lost: " not in log
    assert not [line for line in log.splitlines() if line.startswith("lost: ")]


@pytest.mark.complete
def test_under_ray_what_ranks_cannot_use_is_wrong_use(tmp_path):
    shared = {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 8, "micro_batch": 4}
    suite = write_suite(
        tmp_path,
        methods=["uniform-lsq"],
        models=[{"name": "resnet18", "weights": "IMAGENET1K_V1"}],
        data={"dataset": "imagefolder", "image_size": 32, "classes": 1000},
        recipe=shared,
        pretraining={"epochs": 1, "recipe": shared},
        resources={"workers_per_trial": 2},
    )
    write_tree(tmp_path / "tree", classes=2, train=8, val=1)
    for label in range(2, 1000):
        for part in ("train", "val"):
            place = tmp_path / "tree" / part
            (place / f"n{label:08d}").symlink_to(place / "n00000000")
    process = start(run_with_ray, suite, tmp_path / "out", "--data", tmp_path / "tree", "--weights", tmp_path)
    process.join(DEADLINE_SECONDS)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 2, log
    (said,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "download" in said


@pytest.mark.complete
@pytest.mark.parametrize("victim", ["parent", "both"])
def test_a_trial_over_ranks_outlives_its_processes(tmp_path, victim):
    expected, out, ticks = undisturbed_over_ranks(), tmp_path / "out", tmp_path / "ticks"
    process = start(work, out, ticks, 0, 2)
    wait_for(process, lambda: size(ticks) >= 20)  # of 29, 15 of them pretraining
    if victim == "parent":
        process.kill()
    else:
        os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    time.sleep(1.0)  # its ranks end with it, and write nothing any more
    before = size(ticks)
    run(out, ticks, 0, 2)
    assert size(ticks) > before
    assert comparable(out / "tiny" / "records") == expected
