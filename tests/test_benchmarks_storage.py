"""Results kept at a URL: another machine fetches them and does not run them again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.engines import jobs_of
from benchmarks.storage import Storage, StorageError
from benchmarks.suite import load_suite, plan
from benchmarks.workspace import Workspace
from tests.harness import cli, comparable, finished, write_suite

METHODS = "uniform-lsq,random"


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


def test_a_record_that_was_altered_on_the_way_is_refused(tmp_path):
    url = f"file://{tmp_path}/kept"
    assert run(finished().suite, tmp_path / "one", url).code == 0
    path = next((tmp_path / "kept" / "tiny" / "records").glob("*.json"))
    body = json.loads(path.read_text())
    body["result"]["metrics"]["test_accuracy"] = 1.0
    path.write_text(json.dumps(body))
    ran = run(finished().suite, tmp_path / "two", url)
    assert ran.code == 2
    assert path.name in ran.err


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
