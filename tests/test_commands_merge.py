"""Joining records of several people: what is added, what is refused, and that hostile archives stay text."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from dataclasses import replace

import pytest

from benchmarks.commands.merge import merge
from benchmarks.messages import SuiteError
from benchmarks.planning import plan
from benchmarks.records.record import Record, RecordError, Records, differences
from benchmarks.suites.spec import digest
from benchmarks.suites.suite import load_suite, select
from reports.build import build_report
from reports.findings.comparison import gather
from reports.findings.disputes import disputes_table
from tests.fabricated import make_plan, make_record, make_suite, write_records
from tests.harness import cli, copy_finished, finished

PLAN = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1)))
TRIALS = {trial.id: trial for trial in PLAN.trials}


def seed(number):
    return lambda trial: trial.spec.seed != number


def joined(tmp_path, *sources):
    records = Records(tmp_path / "joined" / "fabricated" / "records")
    return records, merge(sources, "fabricated", records, TRIALS)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


def test_two_halves_make_a_whole(tmp_path):
    places = [tmp_path / name / "fabricated" / "records" for name in "ab"]
    halves = [write_records(PLAN, place, leave_out=seed(number)).folder for number, place in enumerate(places)]
    records, merged = joined(tmp_path, tmp_path / "a", tmp_path / "b")
    assert (merged.added, merged.alike, merged.conflicts) == (6, 0, [])
    assert content(records.folder) == content(halves[0]) | content(halves[1])
    _, again = joined(tmp_path, halves[0], tmp_path / "b")
    assert (again.added, again.alike) == (0, 6)


def archive(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, text in files.items():
                file.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as file:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                file.addfile(info, io.BytesIO(text))
    return path


@pytest.mark.parametrize("name", ["them.tar.gz", "them.zip"])
def test_archives_are_read_and_never_unpacked(tmp_path, name):
    folder = write_records(PLAN, tmp_path / "records").folder
    files = {f"runs/fabricated/records/{name}": text for name, text in content(folder).items()}
    outside = {f"../../../{name}": text for name, text in list(content(folder).items())[:1]}
    other = {"runs/other/records/nonsense.json": b"{}", "runs/fabricated/report/index.html": b"<b>"}
    other["runs/fabricated/records/._x.json"] = b"what an archiver adds"
    records, merged = joined(tmp_path, archive(tmp_path / name, files | outside | other))
    assert merged.added == 6
    assert content(records.folder) == content(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"records", "joined", name}


@pytest.mark.parametrize("name", ["them.tar.gz", "them.zip"])
def test_a_folder_of_records_may_have_any_name_in_an_archive(tmp_path, name):
    folder = write_records(PLAN, tmp_path / "records").folder
    files = {f"quick/{name}": text for name, text in content(folder).items()}
    assert joined(tmp_path, archive(tmp_path / name, files))[1].added == 6


@pytest.mark.parametrize("name", ["them.tar.gz", "them.zip"])
def test_damaged_archives_are_refused(tmp_path, name):
    whole = archive(tmp_path / name, {"records/x.json": bytes(range(256)) * 400})
    text = whole.read_bytes()
    whole.write_bytes(text[: len(text) // 2] if name.endswith("gz") else text[:60] + b"!" + text[61:])
    with pytest.raises((SuiteError, RecordError), match=r"damaged archive|truncated or not JSON|neither"):
        joined(tmp_path, whole)


def test_a_corrupt_xz_archive_is_refused(tmp_path):
    source, noise = tmp_path / "them.tar.xz", random.Random(0)
    with tarfile.open(source, "w:xz") as file:
        info = tarfile.TarInfo("records/x.json")
        info.size = 100_000
        file.addfile(info, io.BytesIO(noise.randbytes(info.size)))
    text = source.read_bytes()
    source.write_bytes(text[:50_000] + noise.randbytes(300) + text[50_300:])
    with pytest.raises(SuiteError, match="damaged archive"):
        joined(tmp_path, source)


@pytest.mark.parametrize(("place", "value", "why"), [(8, 1, "encrypted"), (10, 99, "compression method")])
def test_a_zip_that_cannot_be_opened_is_refused(tmp_path, place, value, why):
    source = archive(tmp_path / "them.zip", {"records/x.json": b"{}"})
    text = bytearray(source.read_bytes())
    text[text.index(b"PK\x01\x02") + place] = value  # flags and method, in the directory at the end
    source.write_bytes(text)
    with pytest.raises(SuiteError, match=rf"them.zip: .*{why}.*; make the archive without a password"):
        joined(tmp_path, source)


def test_a_source_without_records_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", archive(tmp_path / "them.zip", {"readme.txt": b"no"})):
        with pytest.raises(SuiteError, match="holds no records of fabricated"):
            joined(tmp_path, source)
    deep = archive(tmp_path / "deep.zip", {"x.json": b"[" * 200_000})
    with pytest.raises(RecordError, match="not JSON"):
        joined(tmp_path, deep)


def test_an_id_that_is_a_path_is_refused(tmp_path):
    record = make_record(PLAN.trials[0])
    hostile = Record("../../../evil", record.spec, record.result, record.observed)
    source = archive(tmp_path / "them.zip", {"records/x.json": hostile.to_json().encode()})
    with pytest.raises(SuiteError, match="not that of its specification"):
        joined(tmp_path, source)
    assert not list(tmp_path.rglob("evil*"))


def test_two_results_are_kept_apart_and_shown_with_their_environments(tmp_path):
    write_records(PLAN, tmp_path / "a")

    def elsewhere(trial, result, observed):
        if trial.row == "hawq":
            result["metrics"]["test_accuracy"] = 0.5
            observed["environment"]["processor"] = "another"

    write_records(PLAN, tmp_path / "b", elsewhere)
    records, merged = joined(tmp_path, tmp_path / "a", tmp_path / "b")
    assert (merged.added, merged.alike, len(merged.conflicts)) == (6, 4, 2)
    assert content(records.folder) == content(tmp_path / "a")
    conflict = merged.conflicts[0]
    shown = {what: (first, second) for what, first, second in differences(conflict.first, conflict.second)}
    assert shown["processor"] == ("x86_64", "another")
    assert shown["test accuracy"][1] == "50.00 %"
    assert set(shown) == {"test accuracy", "processor"}
    assert [record.id for record in records.disputed()] == sorted(conflict.second.id for conflict in merged.conflicts)
    # Merged again, no result is kept twice; and the page has both, side by side.
    joined(tmp_path, tmp_path / "b")
    assert len(list(records.disputed())) == 2
    report = build_report(PLAN, records, tmp_path / "report")
    assert "trials here have two results: 2 other ones shown, not used" in report.warnings
    for name in ("index.html", "report.md"):
        shown_there = (tmp_path / "report" / name).read_text()
        assert "Two results of one trial" in shown_there
        assert "another" in shown_there
    rows = disputes_table(gather(PLAN, records)).rows
    assert [row.cells[1] for row in rows] == ["test accuracy", "processor"] * 2
    assert rows[0].cells[2] == f"{100 * conflict.first.result['metrics']['test_accuracy']:.2f} %"
    assert rows[0].cells[3] == "50.00 %"
    # The other made to count, and one file damaged: nothing is shown that is not there any more.
    first, second = sorted((records.folder / "disputed").glob("*.json"))
    records.put(conflict.second)
    assert len(gather(PLAN, records).disputed) == 1
    for path in (first, second):
        path.write_text("{")
    assert gather(PLAN, records).disputed == ()


def refused(tmp_path, change, message):
    trial = PLAN.trials[0]
    write_records(PLAN, tmp_path / "a", leave_out=lambda other: other.id == trial.id)
    bad = Records(tmp_path / "b")
    record = change(make_record(trial))
    bad.folder.mkdir()
    bad.put(record)
    with pytest.raises(SuiteError, match=message):
        joined(tmp_path, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "joined").exists()


def test_other_data_are_refused_before_anything_is_written(tmp_path):
    refused(tmp_path, lambda record: replace(record, observed={**record.observed, "data_digest": "x"}), "other data")


def test_other_protocols_are_refused_before_anything_is_written(tmp_path):
    def older(record):
        spec = {**record.spec, "protocol": 0}
        return replace(record, id=digest(spec), spec=spec)

    refused(tmp_path, older, "is of protocol 0, this version is 1")


def test_trials_of_another_suite_are_refused_before_anything_is_written(tmp_path):
    def of_another(record):
        spec = {**record.spec, "seed": 7, "compute": {**record.spec["compute"], "epochs": 3.0}}
        return replace(record, id=digest(spec), spec=spec)

    refused(tmp_path, of_another, "1 of 6 records are of no trial of fabricated.* differs in compute, seed;")


def test_what_is_no_source_and_what_was_altered_is_refused(tmp_path):
    with pytest.raises(SuiteError, match="neither a folder nor"):
        joined(tmp_path, tmp_path / "nothing")
    folder = write_records(PLAN, tmp_path / "a").folder
    path = next(folder.glob("*.json"))
    altered = json.loads(path.read_text())
    altered["result"]["search_stopped"] = True
    path.write_text(json.dumps(altered))
    with pytest.raises(RecordError, match="altered"):
        joined(tmp_path, folder)


def test_merge_as_a_command(tmp_path):
    suite, out = finished().suite, copy_finished(tmp_path / "theirs")
    ran = cli("merge", out, "--suite", suite, "--out", tmp_path / "ours")
    assert ran.code == 0, ran.err
    assert "6 records added, 0 there already, 0 with two results; 0 of 6 trials are missing" in ran.out
    assert (tmp_path / "ours" / "tiny" / "report" / "index.html").exists()
    assert "mlflow" not in ran.out  # nothing has been mirrored yet
    # Another result of a trial alone changes no record, and is on the page all the same.
    other = next(iter(Records(tmp_path / "ours" / "tiny" / "records")))
    folder = Records(tmp_path / "other" / "records")
    folder.put(replace(other, result={**other.result, "search_stopped": True}))
    ran = cli("merge", folder.folder, "--suite", suite, "--out", tmp_path / "ours")
    assert "0 records added, 0 there already, 1 with two results" in ran.out
    assert "Two results of one trial" in (tmp_path / "ours" / "tiny" / "report" / "index.html").read_text()
    assert cli("merge", tmp_path / "gone", "--suite", suite, "--out", tmp_path / "ours").code == 2
    other = cli("merge", out / "tiny" / "records", "--suite", "smoke", "--out", tmp_path / "strange")
    assert (other.code, "6 of 6 records are of no trial of smoke" in other.err) == (2, True)
    assert not (tmp_path / "strange" / "smoke").exists()


def test_records_of_a_suite_cut_down_are_merged_by_the_same_cut(tmp_path):
    cut = select(load_suite("smoke"), methods=["float", "mac-greedy"], models=["mobilenet_v3_small"], seeds=[7])
    folder = write_records(plan(cut), tmp_path / "theirs").folder
    command = ["merge", folder, "--suite", "smoke", "--out", tmp_path / "ours"]
    ran = cli(*command)
    assert (ran.code, "--seeds, --methods and --models that they were run with" in ran.err) == (2, True)
    ran = cli(*command, "--seeds", "7", "--methods", "float,mac-greedy", "--models", "mobilenet_v3_small")
    assert ran.code == 0, ran.err
    assert f"{len(plan(cut).trials)} records added" in ran.out
