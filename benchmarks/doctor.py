"""What will not work on this machine, and how to mend it."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from benchmarks.data.folders import DataError, class_names, find_folder
from benchmarks.environment import require_compiler
from benchmarks.messages import SuiteError
from benchmarks.spec import DataSpec, ProceduralSpec
from benchmarks.suite import Suite, plan

_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pandas", "matplotlib", "scipy", "scikit-learn", "pydantic")
_MIN_DISK_GB = 2
_MIN_SHARED_MEMORY_MB = 64


class Finding(NamedTuple):
    """One thing looked at. what: what was found and, if it is not ok, what to do."""

    ok: bool
    what: str


def examine(suite: Suite, data: Path | None, out: Path) -> list[Finding]:
    return [*_python(), *_space(out), *_shared_memory(), *_data(suite, data), *_plan(suite), *_devices(suite)]


def _python() -> Iterator[Finding]:
    yield Finding(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} (3.11 or later is needed)")
    for package in _PACKAGES:
        try:
            yield Finding(True, f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(False, f"{package} is not installed: run `make install`")


def _space(out: Path) -> Iterator[Finding]:
    place = out.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    yield Finding(free >= _MIN_DISK_GB, f"{free:.1f} GB free for {out} ({_MIN_DISK_GB} GB are needed)")
    yield Finding(os.access(place, os.W_OK), f"{out} can be written to (else choose another with --out)")


def _shared_memory() -> Iterator[Finding]:
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free / 1e6
        advice = f"{_MIN_SHARED_MEMORY_MB} MB keep Ray fast; in a container use --shm-size"
        yield Finding(free >= _MIN_SHARED_MEMORY_MB, f"{free:,.0f} MB of shared memory ({advice})")


def _data(suite: Suite, data: Path | None) -> Iterator[Finding]:
    try:
        folder = find_folder(suite.data.dataset, data)
        yield Finding(True, f"dataset {suite.data.dataset}{_contents(suite.data, folder)}")
    except DataError as error:
        yield Finding(False, str(error))


def _contents(data: DataSpec, folder: Path | None) -> str:
    if folder is None:
        return ""
    if isinstance(data, ProceduralSpec):
        return f", {data.preset}, drawn on first use and kept in {folder}"
    return f", {len(class_names(folder))} classes in {folder}"


def _plan(suite: Suite) -> Iterator[Finding]:
    try:
        yield Finding(True, f"suite {suite.suite}: {len(plan(suite).trials)} trials")
    except SuiteError as error:
        yield Finding(False, str(error))


def _devices(suite: Suite) -> Iterator[Finding]:
    import torch

    from methods.quantization.paths import path_on

    cores = os.cpu_count() or 1
    yield Finding(cores >= suite.resources.cpus, f"{cores} cores, a trial takes {suite.resources.cpus}")
    gpus = torch.cuda.device_count()
    yield Finding(gpus >= suite.resources.gpus, f"{gpus} GPUs, a trial takes {suite.resources.gpus:g}")
    device = "cuda" if gpus and suite.resources.gpus else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is said here
        path = path_on(device)
    slow = path == "plain" and device == "cpu"
    advice = ": twice the time of kernels; reinstall numba by `make install`" if slow else ""
    yield Finding(not slow, f"quantizers run on the {path} path{advice}")
    if suite.resources.compile:
        try:
            require_compiler(device)
            yield Finding(True, "a compiler for resources.compile")
        except SuiteError as error:
            yield Finding(False, str(error))
