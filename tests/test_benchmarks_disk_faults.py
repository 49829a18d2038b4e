"""A disk that fails, or a process that ends, at every single write, sync and rename of what is written.

As SQLite tests itself: a layer under the writers counts their calls; the k-th one fails, or ends the process with half
of it done, for every k. After each the same command is given again and ends with the undisturbed files.

Figures, each call once failing and once ending the process: a trial that is stubbed, 62 faults; a merge of two records,
20. After all of them the command given again ended well, and no record was lost. The complete tests do the same with
the smallest real trial, saved after every step, and with the preparation of a folder of images (42 faults).
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from benchmarks import files
from benchmarks.commands.merge import merge
from benchmarks.engines import run_jobs
from benchmarks.engines.jobs import jobs_of
from benchmarks.engines.local import LocalEngine
from benchmarks.planning import plan
from benchmarks.records.archive import pack
from benchmarks.records.record import Records
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.trials.checkpoint import (
    discard_checkpoint,
    load_checkpoint,
    load_network,
    save_checkpoint,
    save_network,
)
from tests.fabricated import make_plan, make_record, make_suite, write_records
from tests.harness import Silent, cli, comparable, copy_float_starts, start, tiny_suite
from tests.test_data_preparing import make_tree

ENDED, FAILED = 9, 3
"""Exit codes: of a process that the layer has ended, and of one whose command failed."""

PLAN = make_plan(make_suite(["float", "uniform-lsq"]))
RECORD = make_record(PLAN.trials[0])


class Disk:
    """Counts what reaches the disk; the `at`-th call fails with half of it done, or ends the process there."""

    def __init__(self, at: int = 0, *, ends: bool = False) -> None:
        self.calls, self.at, self.ends = 0, at, ends

    def call(self, half: Callable[[], object] = int) -> None:
        self.calls += 1
        if self.calls == self.at:
            half()
            if self.ends:
                os._exit(ENDED)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    @contextmanager
    def below(self) -> Iterator[Disk]:
        """Inside, writers write through this disk."""
        disk, sync, rename = self, files._sync, files._rename

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.call(lambda: io.FileIO.write(self, bytes(data)[: len(data) // 2]))
                return io.FileIO.write(self, data)

        def begin(path: Path) -> Any:
            return io.BufferedWriter(Raw(path, "xb"))  # type: ignore[arg-type]

        def synced(number: int) -> None:
            disk.call()
            sync(number)

        def renamed(old: Path, new: Path) -> None:
            disk.call()
            rename(old, new)

        with mock.patch.multiple(files, _begin=begin, _sync=synced, _rename=renamed):
            yield self


class Figures(NamedTuple):
    """Calls that failed or ended the process; after how many the same command ended well; records that were lost."""

    calls: int
    survived: int
    lost: int


def stubbed_trial(out: Path) -> None:
    """What a trial writes, of numbers instead of training: float start, checkpoints, network, record."""
    place = Workspace(out, "fabricated")
    if place.records.get(RECORD.id):
        return
    begun = place.start("start")
    if not begun.exists():
        save_network(begun, {"weight": torch.arange(3.0)})
    weight, path = load_network(begun)["weight"], place.checkpoint(RECORD.id)
    saved = load_checkpoint(path, RECORD.id)
    step, weight = (saved["step"], saved["weight"]) if saved else (0, weight)
    for number in range(step, 3):
        weight = weight * 2
        save_checkpoint(path, RECORD.id, {"step": number + 1, "weight": weight})
    save_network(place.network(RECORD.id), {"weight": weight})
    place.records.put(RECORD)
    discard_checkpoint(path)


def merged(out: Path) -> None:
    """Two records from an archive, into a folder."""
    merge([out.parent / "fabricated.tar.xz"], "fabricated", Records(out / "records"), {t.id: t for t in PLAN.trials})


def prepared(out: Path) -> None:
    """An image folder looked at, with its copies made: manifests and small images."""
    if not out.exists():
        make_tree(out, train=2, val=1)
    ran = cli("prepare", "--data", out, "--cache", 28)
    if ran.code:
        raise OSError(errno.EIO, ran.err)


def short_trial(out: Path) -> None:
    """The smallest trial, saved after every step."""
    suite = tiny_suite({"compute.epochs": 0.05}, methods=["uniform-lsq"])
    run_jobs(
        LocalEngine(suite.resources),
        jobs_of(plan(suite)),
        Workspace(out, "tiny"),
        Runtime(checkpoint_seconds=0),
        Silent(),
    )


def attempt(command: Callable[[Path], None], out: Path, at: int, ends: bool, log: Path) -> None:
    """The target of a process: the command, on a disk that fails at the `at`-th call; how many there were, to `log`."""
    code = 0
    with Disk(at, ends=ends).below() as disk, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            command(out)
        except (OSError, AssertionError):  # the latter Silent's, of a lost trial
            code = FAILED
    log.write_text(str(disk.calls))
    os._exit(code)


def outcome(command: Callable[[Path], None], out: Path, log: Path, at: int = 0, *, ends: bool = False) -> int | None:
    out.parent.mkdir(exist_ok=True)
    process = start(attempt, command, out, at, ends, log)
    process.join(300)
    return process.exitcode


def everywhere(
    command: Callable[[Path], None], tmp_path: Path, content: Callable[[Path], object], fresh: Callable[[Path], Path]
) -> Figures:
    """Give the command on a disk that fails at its first, second, ... call, then again on a sound one."""
    log, whole = tmp_path / "log", fresh(tmp_path / "undisturbed")
    assert outcome(command, whole, log) == 0
    calls, expected = int(log.read_text()), content(whole)
    assert calls > 0
    survived = lost = 0
    for ends in (False, True):
        for at in range(1, calls + 1):
            out = fresh(tmp_path / f"{at}-{ends}")
            first = outcome(command, out, log, at, ends=ends)
            assert first in ((ENDED,) if ends else (0, FAILED)), f"call {at}: {first}"
            again = outcome(command, out, log)
            left = [path for path in out.rglob(".*") if files._UNFINISHED.fullmatch(path.name)]
            survived += again == 0 and not left
            lost += content(out) != expected
    return Figures(2 * calls, survived, lost)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.json")}


def of_records(out: Path) -> object:
    return comparable(out / "fabricated" / "records")


def test_a_trial_that_is_stubbed_survives_every_fault(tmp_path):
    found = everywhere(stubbed_trial, tmp_path, of_records, lambda folder: folder / "out")
    assert found == Figures(found.calls, found.calls, 0)
    assert found.calls >= 2 * 6 * 4  # six files, each written, synced, renamed and its folder synced


def test_a_merge_survives_every_fault(tmp_path):
    source = pack(write_records(PLAN, tmp_path / "a" / "records").folder, tmp_path, "fabricated")
    assert source is not None

    def fresh(folder: Path) -> Path:
        folder.mkdir()
        (folder / source.name).write_bytes(source.read_bytes())
        return folder / "out"

    found = everywhere(merged, tmp_path, contents, fresh)
    assert found == Figures(found.calls, found.calls, 0)
    assert found.calls >= 2 * 2 * 4


@pytest.mark.complete
def test_a_short_trial_survives_every_fault(tmp_path):
    found = everywhere(
        short_trial, tmp_path, lambda out: comparable(out / "tiny" / "records"), lambda folder: copy_into(folder)
    )
    assert found == Figures(found.calls, found.calls, 0)


def copy_into(folder: Path) -> Path:
    folder.mkdir()
    return copy_float_starts(folder)


@pytest.mark.complete
def test_preparing_images_survives_every_fault(tmp_path):
    def of_images(out: Path) -> object:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.JPEG")}

    found = everywhere(prepared, tmp_path, of_images, lambda folder: folder / "out")
    assert found == Figures(found.calls, found.calls, 0)
