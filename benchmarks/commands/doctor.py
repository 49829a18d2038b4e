"""Finds what will not work on this machine, and says how to correct it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import socket
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.session import chosen_suite
from benchmarks.data import AHEAD, EVALUATION_BATCH
from benchmarks.data.comparing import changed_error, sampled
from benchmarks.data.folders import DataError, class_names, find_folder, fit_classes, images_folder, shown
from benchmarks.data.listing import MANIFEST, left_out_of, left_out_text, listing_of
from benchmarks.messages import SuiteError
from benchmarks.planning import plan
from benchmarks.stopping import end_with_parent
from benchmarks.suites.spec import DataSpec, ProceduralSpec
from benchmarks.suites.suite import Suite
from benchmarks.terminal import console, say_next
from benchmarks.trials.environment import require_compiler

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_MIN_DISK_GB = 2
_MIN_SHARED_MEMORY_MB = 64
_MIN_FILES = 1024
_HASHED = 256
"""Images of a prepared folder that are hashed, chosen at random."""


def execute(context: typer.Context, options: Options) -> Exit:
    """Print every finding, and whether it is a problem."""
    well = True
    for finding in examine(chosen_suite(options), options.data, options.out, options.weights, options.bad_images):
        console.print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}", markup=False)
        well &= finding.ok
    if not well:
        return Exit.FAILED
    say_next(context)
    return Exit.WELL


class Finding(NamedTuple):
    """One thing looked at. what: what was found and, if it is not ok, what to do."""

    ok: bool
    what: str


def examine(
    suite: Suite, data: Path | None, out: Path, weights: Path | None = None, allow_bad_images: int = 0
) -> Iterator[Finding]:
    """Examine what a suite needs, in a few seconds, the slowest checks last; nothing is written or fetched."""
    # A process of its own for the data: a manifest of a million files takes a second while torch is imported here.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as aside:
        data_findings = aside.submit(_listed, partial(_data, suite, data, allow_bad_images))
        checks: dict[str, Callable[[], Iterable[Finding]]] = {
            "Python and packages": _packages,
            "the output folder": partial(_space, out),
            "shared memory": partial(_shared_memory, suite),
            "the machine's limits": _limits,
            "cores": partial(_cores, suite),
            "the plan": partial(_plan, suite),
            "GPUs": partial(_gpus, suite),
            "quantizers": partial(_quantizers, suite),
            "convolutions": _convolutions,
            "a compiler": partial(_compiler, suite),
            "data": data_findings.result,
            "weights": partial(_weights, suite, data, weights),
        }
        for what, check in checks.items():
            yield from _found(what, check)


def _listed(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    return list(check())


def _found(what: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """A check's findings; if it raises, that is a finding too, so that the other checks still run."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 (whatever is wrong with a machine)
        advice = ": reinstall by `make install`" if isinstance(error, ImportError) else ""
        yield Finding(False, f"{what} cannot be looked at: {error!r}{advice}")


def _packages() -> Iterator[Finding]:
    """Installed packages against the versions that the project needs."""
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    python, needed = ".".join(map(str, sys.version_info[:3])), SpecifierSet(project["requires-python"])
    yield Finding(needed.contains(python), f"Python {python} ({needed} is needed)")
    for wanted in map(Requirement, project["dependencies"]):
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            yield Finding(False, f"{wanted.name} is not installed: run `make install`")
            continue
        fits = wanted.specifier.contains(there, prereleases=True)
        yield Finding(
            fits, f"{wanted.name} {there}" + ("" if fits else f", {wanted.specifier} is needed: `make install`")
        )


def _space(out: Path) -> Iterator[Finding]:
    place = out.resolve()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield Finding(False, f"{place} is no folder: choose another with --out")
        return
    free = shutil.disk_usage(place).free / 1e9
    yield Finding(free >= _MIN_DISK_GB, f"{free:.1f} GB free for {out} ({_MIN_DISK_GB} GB are needed)")
    yield Finding(os.access(place, os.W_OK), f"{out} can be written to (else choose another with --out)")


def _shared_memory(suite: Suite) -> Iterator[Finding]:
    """Ray keeps objects in it, and loaders hand over their micro-batches through it."""
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free / 1e6
        needed = _MIN_SHARED_MEMORY_MB + _loaded_bytes(suite) / 1e6
        advice = f"a trial takes {needed:,.0f}; in a container use --shm-size, or --set resources.loaders=0"
        yield Finding(free >= needed, f"{free:,.0f} MB of shared memory ({advice})")


def _loaded_bytes(suite: Suite) -> int:
    """Most bytes of images that the loaders of one trial hold at a time.

    Two streams exist at a time: those of a search's two phases, or training's and evaluation's.
    """
    image = 3 * suite.data.image_size**2 * 4
    loaders = min(suite.resources.loaders_for(suite.data.dataset), len(os.sched_getaffinity(0)))
    micro_batch = suite.recipe.micro_batch
    images = AHEAD * (micro_batch + max(micro_batch, EVALUATION_BATCH))
    return loaders * images * image * suite.resources.workers_per_trial


def _limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(files >= _MIN_FILES, f"{files:,} files may be open ({_MIN_FILES:,} keep Ray going: ulimit -n 65536)")
    try:
        with socket.create_server(("127.0.0.1", 0)):
            yield Finding(True, "ports can be opened on this machine")
    except OSError as error:
        yield Finding(False, f"no port can be opened on 127.0.0.1 ({error.strerror}): use --engine local")


def _fitted(suite: Suite, data: Path | None) -> Suite:
    """The suite with the number of classes that its folder has, if it has one."""
    try:
        folder = find_folder(suite.data.dataset, data)
        return suite.model_copy(update={"data": fit_classes(suite.data, folder)})
    except DataError:
        return suite


def _data(suite: Suite, data: Path | None, allow_bad_images: int) -> Iterator[Finding]:
    try:
        folder = find_folder(suite.data.dataset, data)
        yield Finding(True, f"dataset {suite.data.dataset}{_contents(suite.data, folder)}")
        if folder is not None and suite.data.dataset == "imagefolder":
            yield from _images(suite, folder, allow_bad_images)
    except DataError as error:
        yield Finding(False, str(error))


def _images(suite: Suite, folder: Path, allow_bad_images: int) -> Iterator[Finding]:
    """Findings about a folder's images; without a manifest only their names are checked. Raises DataError."""
    place, side = images_folder(folder, suite.data.short_side), suite.data.short_side
    prepared = (place / MANIFEST).exists()
    if prepared or side is not None or allow_bad_images:
        listing = listing_of(place, short_side=side, allow_bad_images=allow_bad_images)
        found = sampled(place, listing, _HASHED)
        if found.changed:
            raise changed_error(place, found.changed)
        count = sum(len(rows) for rows in listing.files.values())
        yield Finding(
            True,
            f"images looked through; {found.hashed:,} of {count:,} hashed, as they were prepared "
            "(only `prepare --check` hashes all)",
        )
        left_out = listing.left_out
    else:
        command = f"python runner.py prepare --suite {suite.suite} --data {shown(folder)}"
        yield Finding(True, f"images not looked through yet; prepare them: {command}")
        left_out = left_out_of(place)
    if text := left_out_text(left_out):
        yield Finding(True, text)


def _contents(data: DataSpec, folder: Path | None) -> str:
    if folder is None:
        return ""
    if isinstance(data, ProceduralSpec):
        return f", {data.preset}, drawn on first use and kept in {folder}"
    if data.dataset != "imagefolder":
        return f" in {folder}"
    return f", {len(class_names(images_folder(folder, data.short_side)))} classes in {folder}"


def _plan(suite: Suite) -> Iterator[Finding]:
    try:
        yield Finding(True, f"suite {suite.suite}: {len(plan(suite).trials)} trials")
    except SuiteError as error:
        yield Finding(False, str(error))


def _weights(suite: Suite, data: Path | None, folder: Path | None) -> Iterator[Finding]:
    """torchvision's files for networks that start from published weights, and for the teacher."""
    try:
        starts = [start for start in plan(_fitted(suite, data)).starts if start.pretraining is None]
    except SuiteError:
        return  # said already
    if not starts:
        return
    from benchmarks.models import published_weights, require_weights, weights_file  # two seconds of torchvision

    for start in starts:
        what = f"weights of {start.model.name} {start.model.weights}"
        try:
            require_weights(start.model, start.data)
            if folder is None and not weights_file(start.model, None).exists():
                yield Finding(True, f"{what}: will be downloaded (offline: fetch them elsewhere and name --weights)")
            else:
                published_weights(start.model, start.data, folder)
                yield Finding(True, f"{what}: there, and whole")
        except SuiteError as error:
            yield Finding(False, str(error))


def _cores(suite: Suite) -> Iterator[Finding]:
    """A process uses at most the machine's cores; all processes of one trial must fit on them together."""
    cores, asked, workers = os.cpu_count() or 1, suite.resources.cpus, suite.resources.workers_per_trial
    taken = min(asked, cores) * workers
    fewer = f", of the {asked * workers} that it asks for" if taken < asked * workers else ""
    lower = f"resources.cpus to {cores // workers}" if workers <= cores else "resources.workers_per_trial"
    advice = "" if taken <= cores else f": lower {lower} with --set, or join a cluster with --address"
    yield Finding(taken <= cores, f"{cores} cores, a trial takes {taken}{fewer}{advice}")


def _gpus(suite: Suite) -> Iterator[Finding]:
    """Without a GPU trials run on the CPU; with GPUs there must be enough of them for a trial."""
    import torch

    gpus, wanted = torch.cuda.device_count(), suite.resources.gpus * suite.resources.workers_per_trial
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(gpus)}))
    if wanted and not gpus:
        yield Finding(True, f"no GPU, a trial asks for {wanted:g} and runs on the CPU, which is many times slower")
        return
    advice = ": lower resources.gpus or resources.workers_per_trial with --set, or join a cluster with --address"
    said = f"{gpus} GPUs{f' ({names})' if names else ''}, a trial takes {wanted:g}"
    yield Finding(gpus >= wanted, said if gpus >= wanted else said + advice)


def _device(suite: Suite) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and suite.resources.gpus else "cpu"


def _quantizers(suite: Suite) -> Iterator[Finding]:
    from methods.quantization.paths import path_on

    device = _device(suite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about what is reported here
        path = path_on(device)
    slow = path == "plain" and device == "cpu"
    advice = ": twice the time of kernels; reinstall numba by `make install`" if slow else ""
    yield Finding(not slow, f"quantizers run on the {path} path{advice}")


def _convolutions() -> Iterator[Finding]:
    """Whether the gradients that oneDNN gets wrong without AVX-512 are this project's own."""
    from methods.quantization import strided_pointwise

    if strided_pointwise.serves_the_cpu():
        yield Finding(True, "gradients of narrow strided 1x1 convolutions are right without AVX-512, too")
        return
    advice = "crash or be wrong on processors without AVX-512: reinstall torch by `make install`"
    yield Finding(False, f"gradients of narrow strided 1x1 convolutions are torch's own, which {advice}")


def _compiler(suite: Suite) -> Iterator[Finding]:
    if suite.resources.compile:
        try:
            require_compiler(_device(suite))
            yield Finding(True, "a compiler for resources.compile")
        except SuiteError as error:
            yield Finding(False, str(error))
