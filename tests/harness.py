"""A suite of second-long trials, the command line called in this process, and runs that can be killed."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import yaml

import runner
from benchmarks.engines import run_jobs
from benchmarks.engines.jobs import Job, jobs_of
from benchmarks.engines.local import LocalEngine
from benchmarks.events import Outcome
from benchmarks.planning import plan
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.suite import Suite, load_suite
from tests.sharing import built_once

ROOT = Path(__file__).parent.parent

METHODS = ("float", "uniform-lsq", "hawq", "differentiable", "metamix", "random")

TINY: dict[str, Any] = {
    # ResNet-18 with two channels: 21 layers, of which some share an input, at 30 ms a step.
    # Ten Hessian samples, HAWQ's least, cost about 25 fine-tuning steps of the 36 that are granted.
    "suite": "tiny",
    "data": {"dataset": "digits", "image_size": 8, "classes": 10, "augment": "affine"},
    "models": [{"name": "resnet18", "width": 0.03125, "form": "small"}],
    "space": {"weights": [4], "activations": [3, 4, 8]},
    "ceilings": ["uniform:w4a4"],
    "methods": list(METHODS),
    "seeds": [0],
    "pretraining": {"epochs": 1, "recipe": {"optimizer": {"name": "adam", "lr": 0.003}, "batch_size": 64}},
    "recipe": {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 8, "micro_batch": 8},
    "compute": {"epochs": 0.3, "search_share": 0.9},
}


def write_suite(folder: Path, **changes: Any) -> Path:
    """The tiny suite, with some of its top-level keys replaced, as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}), encoding="utf-8")
    return path


class Ran(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


class NoTracker:
    """Stands in for the mirror to MLflow, whose import and database take longer than a trial here."""

    uri = "nowhere"
    unusable = False

    def progress(self, *_what: object) -> None: ...
    def finished(self, *_what: object) -> None: ...
    def close(self, *_what: object) -> None: ...


UNDRAWN = {f"{name}.{form}": b"" for name in ("pareto", "profile", "curves", "bits") for form in ("pdf", "png")}
"""A report's figures that nobody looks at."""


@contextlib.contextmanager
def unseen(*, mlflow: bool, figures: bool) -> Iterator[None]:
    """Inside, runs leave out what takes longer than a trial here: the mirror to MLflow, and a report's figures."""
    with contextlib.ExitStack() as stack:
        if not mlflow:
            stack.enter_context(mock.patch("benchmarks.commands.run.tracker_for", return_value=NoTracker()))
        if not figures:
            stack.enter_context(mock.patch("reports.build._pictures", return_value=(UNDRAWN, "")))
        yield


def cli(*arguments: object, mlflow: bool = False, figures: bool = False) -> Ran:
    """The command line as a user has it, in this process, but for what is `unseen`; torch's settings are put back."""
    out, err = io.StringIO(), io.StringIO()
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), unseen(mlflow=mlflow, figures=figures):
        try:
            code = runner.main([str(argument) for argument in arguments])
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
    return Ran(code, out.getvalue(), err.getvalue())


class Finished(NamedTuple):
    """The tiny suite after an undisturbed run; to be copied, never written to."""

    suite: Path
    out: Path
    ran: Ran


@cache
def finished() -> Finished:
    return built_once("tiny", _run_tiny)


def _run_tiny(folder: Path) -> Finished:
    suite = write_suite(folder)
    ran = cli("--suite", suite, "--engine", "local", "--out", folder / "out", mlflow=True, figures=True)
    assert ran.code == 0, ran
    return Finished(suite, folder / "out", ran)


def copy_finished(folder: Path) -> Path:
    """A copy of the finished output folder, MLflow's database left out."""
    ignored = shutil.ignore_patterns("mlflow.db", "mlartifacts")
    return Path(shutil.copytree(finished().out, folder / "out", ignore=ignored))


def copy_float_starts(folder: Path) -> Path:
    """A fresh output folder that has the float starts, so that trials need not train them."""
    shutil.copytree(finished().out / "float", folder / "out" / "float")
    return folder / "out"


def comparable(records: Path) -> dict[str, tuple[Any, Any]]:
    """What must not depend on how a trial ran: spec and result by method and draw."""
    found = {}
    for path in sorted(records.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        found[f"{data['spec']['method']['name']} {data['spec']['draw']}"] = (data["spec"], data["result"])
    return found


def descendants(pid: int) -> Iterator[int]:
    """A process and all that it has started, themselves or through others."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from descendants(int(child))


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change and content; locks are no content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


class Silent:
    """An observer that shows nothing; it adds a byte per step to `ticks`, for those who wait to kill."""

    def __init__(self, ticks: Path | None = None) -> None:
        self.ticks = ticks

    def progress(self, job: Job, progress: Sequence[Any]) -> None:
        if self.ticks:
            with self.ticks.open("ab") as file:
                file.write(b"." * len(progress))

    def ended(self, job: Job, outcome: Outcome) -> None:
        assert outcome.status != "lost", outcome.message


def tiny_suite(overrides: Mapping[str, Any] | None = None, **changes: Any) -> Suite:
    with tempfile.TemporaryDirectory() as folder:
        return load_suite(str(write_suite(Path(folder), **changes)), overrides)


def run_locally(out: Path, ticks: Path) -> None:
    """Run the tiny suite, saving after every step: the target of processes that are to be killed."""
    suite = tiny_suite()
    with (out.parent / "log").open("a") as log, contextlib.redirect_stderr(log):
        workspace = Workspace(out, "tiny")
        saved = Runtime(checkpoint_seconds=0)
        run_jobs(LocalEngine(suite.resources), jobs_of(plan(suite)), workspace, saved, Silent(ticks))


def run_with_ray(suite: Path, out: Path, *arguments: str) -> None:
    """The command line with Ray's engine, but for what is `unseen`: the target of processes that are to be killed."""
    with (
        (out.parent / "log").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        unseen(mlflow=False, figures=False),
    ):
        code = runner.main(["--suite", str(suite), "--out", str(out), *arguments])
    os._exit(code)


PRELOADED = [
    "tests.harness",
    "benchmarks.data.digits",
    "benchmarks.trials.trial",
    "methods.hawq",
    "methods.metamix",
    "methods.quantization.kernels",
]


@cache
def server() -> Any:
    """A process that has imported what trials need, and forks: killing and restarting then costs no import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start(target: Any, *arguments: Any) -> BaseProcess:
    process: BaseProcess = server().Process(target=target, args=arguments)
    process.start()
    atexit.register(process.kill)  # what a failed test has left would be waited for
    return process
