"""Joining records of several people: what is added, what is refused, and that hostile archives do no harm."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.commands.merge import merge
from benchmarks.messages import SuiteError
from benchmarks.planning import plan
from benchmarks.records.archive import pack
from benchmarks.records.record import Record, RecordError, Records, differences
from benchmarks.suites.spec import digest
from benchmarks.suites.suite import load_suite, select
from methods.quantization.policy import Policy
from reports.build import build_report
from reports.findings.comparison import gather
from reports.findings.disputes import disputes_table
from tests.fabricated import make_plan, make_record, make_suite, set_policy, write_records
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


def special(path, name, kind):
    """An archive with one more member that is no regular file, called as a record is."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
    else:
        with tarfile.open(path, "w:gz") as file:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_record_that_is_a_link_or_a_device_is_refused(tmp_path, kind):
    with pytest.raises(SuiteError, match=r"them.tar.gz:records/x.json: is a link or a device"):
        joined(tmp_path, special(tmp_path / "them.tar.gz", "records/x.json", kind))
    with pytest.raises(SuiteError, match=r"them.zip:records/x.json: is a link or a device"):
        joined(tmp_path, special(tmp_path / "them.zip", "records/x.json", kind))


@pytest.mark.parametrize("name", [".", "..", "/", "./", "records/.", "a//b"])
def test_members_of_odd_names_are_no_records(tmp_path, name):
    folder = write_records(PLAN, tmp_path / "records").folder
    files = {name: b"{}"} | {f"records/{file}": text for file, text in content(folder).items()}
    assert joined(tmp_path, archive(tmp_path / "them.tar.gz", files))[1].added == 6
    assert joined(tmp_path, archive(tmp_path / "them.zip", files))[1].alike == 6


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_a_pipe_a_folder_and_a_link_among_records_are_refused(tmp_path, make):
    """A pipe, opened as a file is, waits for somebody to write into it for good."""
    folder = write_records(PLAN, tmp_path / "records").folder
    make(folder / "0.json")
    with pytest.raises(SuiteError, match=r"0.json: cannot be read: it is (no regular file|a link)"):
        joined(tmp_path, folder)
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize("where", ["fabricated", "fabricated/records", "records"])
def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path, where):
    folder = write_records(PLAN, tmp_path / "elsewhere").folder
    if where == "fabricated":
        folder = write_records(PLAN, tmp_path / "elsewhere" / "records").folder.parent
    link = tmp_path / "theirs" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)
    with pytest.raises(SuiteError, match=f"{link}: is a link, which merge does not follow"):
        joined(tmp_path, tmp_path / "theirs")
    assert joined(tmp_path, folder)[1].added == 6


def test_what_is_no_file_at_all_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar.xz")
    for source in (tmp_path / "pipe.tar.xz", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(SuiteError, match="neither a folder nor"):
            joined(tmp_path, source)


def test_a_folder_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    folder = write_records(PLAN, tmp_path / "records").folder
    real = os.listdir

    def listdir(path="."):
        if os.fspath(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(SuiteError, match=f"{folder}: cannot be read: Permission denied"):
        joined(tmp_path, folder)


@pytest.mark.parametrize("name", ["them.tar.gz", "them.zip"])
def test_a_bomb_is_refused_in_little_memory(tmp_path, name):
    """Two megabytes that come to two gigabytes, here a sixteenth of it: as one record, and as many large ones."""
    one = archive(tmp_path / f"one-{name}", {"records/x.json": bytes(2**27)})
    many = archive(tmp_path / f"many-{name}", dict.fromkeys((f"records/{n}.json" for n in range(40)), bytes(2**22)))
    for source, message in ((one, "134,217,728 bytes; a record has at most"), (many, "truncated or not JSON")):
        tracemalloc.start()
        with pytest.raises((SuiteError, RecordError), match=message):
            joined(tmp_path, source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 2**22  # one record's bytes, a few times over


def test_many_whole_records_are_read_one_at_a_time(tmp_path):
    def large(trial, result, observed):
        result["search"] = {"note": "x" * 2**20}

    many = make_plan(make_suite(["float", "uniform-lsq"], seeds=tuple(range(16))))
    source = pack(write_records(many, tmp_path / "large", large).folder, tmp_path)
    trials = {trial.id: trial for trial in many.trials}
    tracemalloc.start()
    assert merge([source], "fabricated", Records(tmp_path / "joined"), trials).added == len(trials)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20  # of 32 MB: a record as bytes, as text, as JSON again, and what packs it


def test_a_gzip_with_a_wrong_trailer_is_refused(tmp_path):
    folder = write_records(PLAN, tmp_path / "records").folder
    source = archive(tmp_path / "them.tar.gz", {f"records/{name}": text for name, text in content(folder).items()})
    text = bytearray(source.read_bytes())
    text[-1] ^= 1
    source.write_bytes(text)
    with pytest.raises(SuiteError, match="damaged archive"):
        joined(tmp_path, source)
    assert not (tmp_path / "joined").exists()


def test_a_shipped_archive_is_merged_with_its_parts(tmp_path):
    folder = write_records(PLAN, tmp_path / "records").folder
    held = next(folder.glob("*.json"))
    content = held.read_bytes()
    held.unlink()
    source = pack(folder, tmp_path / "to", "them")
    held.write_bytes(content)
    pack(folder, tmp_path / "to", "them")
    assert joined(tmp_path, source)[1].added == 6
    assert joined(tmp_path / "again", tmp_path / "to" / "them.part-1.tar.xz")[1].added == 1


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
    for name, message in (
        ("../../../evil", "not a sound record .id: "),
        ("e" * 16, "id: it is not that of the record's specification"),
    ):
        hostile = Record(name, record.spec, record.result, record.observed)
        source = archive(tmp_path / "them.zip", {"records/x.json": hostile.to_json().encode()})
        with pytest.raises(RecordError, match=message):
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


def test_costs_of_a_smaller_network_are_refused_before_anything_is_written(tmp_path):
    """A record that agrees with itself: of every layer half the MACs, and bit-operations as they come to."""
    trial = PLAN.trials[-1]
    half = replace(trial, ledger=tuple(replace(layer, macs=layer.macs // 2) for layer in trial.ledger))
    bits = dict(Policy.from_dict(make_record(trial).result["policy"]))
    cheaper = make_record(half, lambda _, result, __: set_policy(half, result, bits))
    records = Records(tmp_path / "b")
    records.put(cheaper)
    with pytest.raises(SuiteError, match=f"record {trial.id} counts other layers, MACs or weights than mobilenet_v2"):
        joined(tmp_path, records.folder)
    assert not (tmp_path / "joined").exists()


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
