"""Results kept at a URL: another machine fetches them and does not run them again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import runner
from benchmarks import engines
from benchmarks.commands.exits import Exit
from benchmarks.commands.progress import View
from benchmarks.engines import Observer, keeping, run_jobs
from benchmarks.engines.execute import execute
from benchmarks.engines.jobs import Job, jobs_of
from benchmarks.engines.storage import Storage, StorageError
from benchmarks.events import Outcome, Progress
from benchmarks.planning import plan
from benchmarks.records.record import Records
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.suite import load_suite
from tests.harness import Silent, cli, comparable, copy_float_starts, finished, start, tiny_suite, write_suite

METHODS = "uniform-lsq,random"
METHOD = "metamix"
"""Its search has two phases with two optimizers, and its weights go on into fine-tuning: most that can be lost."""

PRETRAINING, STEPS = 15, 14
"""Steps of a float start, and of the method's search and fine-tuning."""

DEADLINE_SECONDS = 600.0


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """Trials set torch up for themselves."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


def flipped(whole: bytes) -> bytes:
    """One bit of the weights is another; the size is the same."""
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


def run(suite, out, url, *more):
    return cli("--suite", suite, "--out", out, "--engine", "local", "--methods", METHODS, "--storage", url, *more)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_one_machine_ran_another_has(tmp_path, kind):
    url = f"{kind}://{tmp_path}/kept"
    first = run(finished().suite, tmp_path / "one", url)
    assert first.code == 0, first.err
    assert "0 results fetched" in first.out
    second = run(finished().suite, tmp_path / "two", url)
    assert second.code == 0, second.err
    assert "3 results fetched" in second.out  # a float start and two records
    assert "test accuracy" not in second.out  # nothing was run
    assert comparable(tmp_path / "two" / "tiny" / "records") == comparable(tmp_path / "one" / "tiny" / "records")


def test_what_was_there_before_the_storage_or_did_not_reach_it_is_sent_by_the_next_run(tmp_path):
    url = f"file://{tmp_path}/kept"
    arguments = ("--suite", finished().suite, "--out", tmp_path / "one", "--engine", "local", "--methods", METHODS)
    assert cli(*arguments).code == 0
    assert run(finished().suite, tmp_path / "one", url).code == 0  # nothing is left to run
    assert len(list((tmp_path / "kept" / "tiny" / "records").glob("*.json"))) == 2
    assert len(list((tmp_path / "kept" / "float").glob("*.pt"))) == 1


def test_a_record_that_was_made_again_takes_the_place_of_the_old_one(tmp_path):
    url = f"file://{tmp_path}/kept"
    assert run(finished().suite, tmp_path / "one", url).code == 0
    there = next((tmp_path / "kept" / "tiny" / "records").glob("*.json"))
    made = there.read_bytes()
    there.write_bytes(b"of a trial that failed")
    assert run(finished().suite, tmp_path / "one", url).code == 0
    assert there.read_bytes() == made


def test_a_trial_of_a_job_array_fetches_its_start_and_leaves_its_record(tmp_path):
    url = f"file://{tmp_path}/kept"
    assert run(finished().suite, tmp_path / "one", url).code == 0
    chosen = ("--suite", finished().suite, "--out", tmp_path / "two")
    first = cli("plan", *chosen, "--methods", METHODS, "--ids").out.split()[0]
    record = tmp_path / "kept" / "tiny" / "records" / f"{first}.json"
    made = record.read_bytes()
    record.unlink()
    ran = cli("trial", first, *chosen, "--storage", url)
    assert ran.code == 0, ran.err
    starts = [[path.read_bytes() for path in (tmp_path / name / "float").glob("*.pt")] for name in ("one", "two")]
    assert starts[0] == starts[1]  # fetched: trained again, it would have other seconds in it
    assert [json.loads(text)["result"] for text in (record.read_bytes(), made)] == [json.loads(made)["result"]] * 2


def test_a_record_that_was_altered_on_the_way_is_named_left_out_and_run_again(tmp_path):
    url = f"file://{tmp_path}/kept"
    assert run(finished().suite, tmp_path / "one", url).code == 0
    path = next((tmp_path / "kept" / "tiny" / "records").glob("*.json"))
    body = json.loads(path.read_text())
    body["result"]["metrics"]["test_accuracy"] = 1.0
    path.write_text(json.dumps(body))
    ran = run(finished().suite, tmp_path / "two", url)
    assert ran.code == 0, ran.err
    assert f"{path.name}: altered after it was written" in ran.err
    assert "2 results fetched" in ran.out  # a float start and the other record
    whole = comparable(tmp_path / "one" / "tiny" / "records")
    assert comparable(tmp_path / "two" / "tiny" / "records") == whole
    assert comparable(tmp_path / "kept" / "tiny" / "records") == whole  # the new one took its place


@pytest.mark.parametrize("harm", [lambda whole: whole[: len(whole) // 2], lambda _: b"", flipped])
def test_a_float_start_that_did_not_get_there_whole_is_passed_over_and_sent_again(tmp_path, harm):
    kept, jobs = Storage.at(f"file://{tmp_path}/kept"), jobs_of(plan(load_suite(str(finished().suite))))
    here, other = Workspace(finished().out, "tiny"), Workspace(tmp_path / "other", "tiny")
    kept.keep(jobs, here)
    (path,) = (tmp_path / "kept" / "float").glob("*.pt")
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert kept.fetch(jobs, other) == len(jobs) - 1
    assert not (other.out / "float").exists()
    kept.keep(jobs, here)
    assert path.read_bytes() == whole
    assert kept.fetch(jobs, other) == 1
    assert (other.out / "float" / path.name).read_bytes() == whole


def test_an_upload_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
    kept = Storage.at(f"file://{tmp_path}/kept")
    kept._send(b"whole", f"{kept.root}/start.pt")
    write = type(kept.files).pipe_file

    def half(files: Any, path: str, content: bytes) -> None:
        write(files, path, content[:2])
        raise ConnectionError("gone")

    monkeypatch.setattr(type(kept.files), "pipe_file", half)
    with pytest.raises(StorageError, match="gone"):
        kept._send(b"other", f"{kept.root}/start.pt")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "kept").iterdir()] == [("start.pt", b"whole")]


def test_a_url_that_nothing_opens_says_so_before_anything_runs(tmp_path):
    ran = run(write_suite(tmp_path), tmp_path / "out", "nowhere://bucket/folder")
    assert ran.code == 2
    assert "--storage nowhere://bucket/folder" in ran.err
    assert not (tmp_path / "out" / "tiny").exists()


def test_storage_that_fails_on_the_way_is_named(tmp_path):
    kept = Storage.at(f"file://{tmp_path}/kept")
    with pytest.raises(StorageError, match=r"kept: cat_file of .*missing failed"):
        kept._run("cat_file", f"{kept.root}/missing")


def trial_on(suite: Path, out: Path, url: str, trial_id: str, ticks: Path) -> None:
    """`trial` on a machine whose trials save themselves when they are asked to, and only then; a byte per step."""

    def note(_view: View, _job: Job, progress: Sequence[Progress]) -> None:
        with ticks.open("ab") as file:
            file.write(b"." * len(progress))

    unsaved = partial(Runtime, checkpoint_seconds=1e9)
    with mock.patch("benchmarks.commands.session.Runtime", unsaved), mock.patch.object(View, "progress", note):
        code = runner.main(["trial", trial_id, "--suite", str(suite), "--out", str(out), "--storage", url])
    os._exit(code)


@pytest.mark.parametrize("step", [5, PRETRAINING + 4])
def test_a_trial_stopped_on_one_machine_goes_on_on_another(tmp_path, step):
    url, ticks = f"file://{tmp_path}/kept", tmp_path / "ticks"
    (chosen,) = plan(tiny_suite(methods=[METHOD])).trials
    first = start(trial_on, finished().suite, tmp_path / "one", url, chosen.id, ticks)
    until = time.monotonic() + DEADLINE_SECONDS
    while not ticks.exists() or ticks.stat().st_size < step:
        assert first.is_alive()
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(first.pid or 0, signal.SIGTERM)
    first.join(DEADLINE_SECONDS)
    assert first.exitcode == Exit.STOPPED
    assert len(list((tmp_path / "kept" / "tiny" / "checkpoints").iterdir())) == 1
    second = start(trial_on, finished().suite, tmp_path / "two", url, chosen.id, ticks)
    second.join(DEADLINE_SECONDS)
    assert second.exitcode == 0
    records = tmp_path / "two" / "tiny" / "records"
    assert comparable(records) == {f"{METHOD} 0": undisturbed()}
    assert [record.observed["restarts"] for record in Records(records)] == [int(step > PRETRAINING)]
    # The step after which it saved itself was not told, and not taken again.
    assert ticks.stat().st_size == PRETRAINING + STEPS - 1
    assert list((tmp_path / "kept" / "tiny" / "checkpoints").iterdir()) == []
    assert comparable(tmp_path / "kept" / "tiny" / "records") == comparable(records)


def undisturbed() -> Any:
    return comparable(finished().out / "tiny" / "records")[f"{METHOD} 0"]


def job_on(folder: Path) -> tuple[Job, Workspace, Runtime]:
    """A trial, and a machine that has its float start and saves it after every step."""
    job = next(job for job in jobs_of(plan(tiny_suite(methods=[METHOD]))) if job.is_trial)
    runtime = Runtime(checkpoint_seconds=0, storage=f"file://{folder}/kept")
    return job, Workspace(copy_float_starts(folder), "tiny"), runtime


def test_a_trial_that_is_killed_goes_on_elsewhere_from_what_was_kept_while_it_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.0)
    job, first, runtime = job_on(tmp_path)
    kept = tmp_path / "kept" / "tiny"
    life = execute(job, first, runtime)
    for _ in range(9):
        next(life)
    assert len(list((kept / "checkpoints").iterdir())) == 1
    life.close()
    second = replace(first, out=tmp_path / "two")
    (*steps, last) = execute(job, second, runtime)
    assert last == Outcome("done")
    # Eight steps were kept when the ninth was told.
    assert len(steps) == STEPS - 8
    assert comparable(second.records.folder) == {f"{METHOD} 0": undisturbed()}
    assert [path.name for path in kept.rglob("*") if path.is_file()] == [f"{job.key}.pt", f"{job.key}.json"]
    assert (kept / "networks" / f"{job.key}.pt").read_bytes() == second.network(job.key).read_bytes()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("harm", ["truncated", "empty", "flipped", "pickled"])
def test_a_checkpoint_that_cannot_be_trusted_is_passed_over(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.0)
    job, first, runtime = job_on(tmp_path)
    life = execute(job, first, runtime)
    for _ in range(3):
        next(life)
    life.close()
    (path,) = (tmp_path / "kept" / "tiny" / "checkpoints").iterdir()
    whole, code = path.read_bytes(), pickle.dumps(Touch(tmp_path / "ran"), protocol=2)
    harmed = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "flipped": flipped(whole),
        "pickled": hashlib.sha256(code).digest() + code,
    }
    path.write_bytes(harmed[harm])
    second, kept = replace(first, out=tmp_path / "two"), Storage.at(runtime.storage or "")
    kept.fetch_checkpoint(job, second)
    assert not (tmp_path / "ran").exists()
    assert not second.checkpoint(job.key).exists()
    path.write_bytes(whole)
    kept.fetch_checkpoint(job, second)
    assert second.checkpoint(job.key).read_bytes() == whole


def test_a_storage_that_fails_while_a_trial_trains_does_not_end_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.0)
    job, workspace, runtime = job_on(tmp_path)

    def fail(*_what: object, **_more: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.pipe_file", fail)
    *_, last = execute(job, workspace, runtime)
    assert last.status == "done"
    assert "gone" in last.message
    assert "gone; run the same command again" in capsys.readouterr().err
    assert comparable(workspace.records.folder) == {f"{METHOD} 0": undisturbed()}
    monkeypatch.undo()
    assert list(execute(job, workspace, runtime)) == [Outcome("done")]  # there already, and now kept
    assert comparable(tmp_path / "kept" / "tiny" / "records") == comparable(workspace.records.folder)


def test_a_storage_that_cannot_be_asked_before_a_job_costs_it(tmp_path):
    job, workspace, runtime = job_on(tmp_path)
    (tmp_path / "kept").write_text("no folder")
    (last,) = execute(job, workspace, runtime)
    assert last.status == "lost"
    assert "--storage file://" in last.message


class Elsewhere:
    """An engine whose worker has an output folder of its own."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, jobs: Sequence[Job], workspace: Workspace, runtime: Runtime, observer: Observer) -> None:
        for job in jobs:
            for event in execute(job, replace(workspace, out=self.out), runtime):
                if isinstance(event, Outcome):
                    observer.ended(job, event)


def test_what_ends_on_another_node_is_brought_from_the_storage(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_ARRIVAL_SECONDS", 0.0)
    jobs = jobs_of(plan(tiny_suite(methods=[METHOD])))
    here, runtime = Workspace(tmp_path / "out", "tiny"), Runtime(storage=f"file://{tmp_path}/kept")
    assert run_jobs(Elsewhere(tmp_path / "node"), jobs, here, runtime, Silent()) == {}
    assert comparable(here.records.folder) == {f"{METHOD} 0": undisturbed()}
    names = [sorted(path.name for path in (tmp_path / name).rglob("*.pt")) for name in ("out", "node")]
    assert names[0] == names[1]  # the float start and the network


def test_what_is_neither_here_nor_at_the_storage_is_lost_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_ARRIVAL_SECONDS", 0.0)
    job, here, runtime = job_on(tmp_path)
    with mock.patch.object(Storage, "keep"):
        lost = engine_loses(job, here, runtime, tmp_path)
    assert lost == f"it ended, but its result is not in {here.out}; nor is it at {runtime.storage}"
    with mock.patch.object(Storage, "keep", side_effect=StorageError("no room at all")):
        assert (
            engine_loses(job, here, runtime, tmp_path)
            == f"it ended, but its result is not in {here.out}; no room at all"
        )


def engine_loses(job: Job, here: Workspace, runtime: Runtime, folder: Path) -> str:
    class Seen(Silent):
        def ended(self, job: Job, outcome: Outcome) -> None: ...

    return run_jobs(Elsewhere(folder / "node"), [job], here, runtime, Seen())[job.key].message


def test_a_job_array_without_a_shared_disk_is_gathered_and_resumed(tmp_path):
    url, chosen = f"file://{tmp_path}/kept", ("--suite", finished().suite, "--methods", METHODS)
    assert run(finished().suite, tmp_path / "one", url).code == 0
    records = tmp_path / "one" / "tiny" / "records"
    assert cli("report", *chosen, "--out", tmp_path / "two", "--storage", url).code == 0
    assert comparable(tmp_path / "two" / "tiny" / "records") == comparable(records)
    missing = next((tmp_path / "kept" / "tiny" / "records").glob("*.json"))
    missing.unlink()
    ids = cli("plan", *chosen, "--out", tmp_path / "three", "--storage", url, "--ids")
    assert (ids.code, ids.out.split()) == (0, [missing.stem])
    for command in ("report", "plan"):
        ran = cli(command, *chosen, "--out", tmp_path / "four", "--storage", "nowhere://bucket/folder")
        assert ran.code == 2
        assert "--storage nowhere://bucket/folder" in ran.err


def test_failed_trials_run_again_though_their_records_are_kept(tmp_path):
    url, out = f"file://{tmp_path}/kept", copy_float_starts(tmp_path)
    steep = {"name": "uniform-lsq", "settings": {"recipe.optimizer.lr": 1e30}}
    suite = write_suite(tmp_path, methods=[steep])
    arguments = ("--suite", suite, "--out", out, "--engine", "local", "--storage", url)
    assert cli(*arguments).code == 1
    (record,) = (tmp_path / "kept" / "tiny" / "records").glob("*.json")
    first = record.read_bytes()
    ran = cli(*arguments, "--retry", "failed")
    assert ran.code == 1
    assert "[1/1]" in ran.out
    assert record.read_bytes() != first  # of another time
    assert record.with_suffix(".failed").read_bytes() == first


def test_nodes_find_a_float_start_from_before_there_was_a_storage(tmp_path):
    url, out = f"file://{tmp_path}/kept", copy_float_starts(tmp_path)
    found: list[Path] = []

    def look(*_what: object, **_how: object) -> dict[str, str]:
        found.extend((tmp_path / "kept" / "float").glob("*.pt"))
        return {}

    with mock.patch("benchmarks.commands.run.run_missing", look):
        run(finished().suite, out, url)
    assert len(found) == 1


def test_a_folder_named_from_here_is_the_same_one_for_workers_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage.at("kept").url == f"file://{tmp_path}/kept"
    assert Storage.at("memory://kept").url == "memory://kept"
