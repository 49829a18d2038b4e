"""Records: whole or absent; damaged and altered ones are refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning import plan
from benchmarks.records.archive import open_records
from benchmarks.records.record import SCHEMA, Record, RecordError, Records, parse_record, read_record
from benchmarks.suites.suite import load_suite
from reports.verification.reference import REFERENCE
from tests.fabricated import make_record


@pytest.fixture
def record() -> Record:
    return make_record(plan(load_suite("smoke")).trials[1])


def test_a_record_survives_its_file(record, tmp_path):
    records = Records(tmp_path)
    assert records.get(record.id) is None
    records.put(record)
    assert records.get(record.id) == record
    assert list(records) == [record]
    assert record.trial_spec.id == record.id


@pytest.fixture
def older(record) -> Record:
    """As records were written before the checksum was of everything."""
    return replace(record, schema=1)


@pytest.mark.parametrize("part", ["spec", "result", "observed"])
def test_the_checksum_covers_everything(part, record, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(record.to_json())
    data[part]["added"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"r\.json: altered"):
        read_record(path)


@pytest.mark.parametrize("part", ["spec", "result"])
def test_the_checksum_of_older_records_covers_spec_and_result(part, older, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(older.to_json())
    data[part]["added"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"r\.json: altered"):
        read_record(path)


def test_what_was_observed_may_be_edited_in_older_records(older, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(older.to_json())
    data["observed"]["note"] = "kept on another disk"
    path.write_text(json.dumps(data, sort_keys=True, indent=7))
    assert read_record(path).checksum == older.checksum == older.result_digest


def test_keys_may_be_reordered(record, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(json.loads(record.to_json()), sort_keys=True, indent=7))
    assert read_record(path) == record


def test_older_records_stay_as_they_are(record, older, tmp_path):
    records = Records(tmp_path)
    records.put(older)
    assert records.get(older.id) == older
    assert json.loads(records.path(older.id).read_text()).keys() == {
        "schema",
        "id",
        "checksum",
        "spec",
        "result",
        "observed",
    }
    shipped = next(iter(open_records(REFERENCE / "w8a8.tar.xz")))
    assert (shipped.schema, shipped.checksum) == (1, shipped.result_digest)


def test_what_is_compared_leaves_out_what_was_observed(record):
    other = replace(record, observed={**record.observed, "restarts": 3})
    assert other.result_digest == record.result_digest
    assert other.checksum != record.checksum
    assert json.loads(other.to_json())["result_digest"] == record.result_digest
    third = replace(record, result={**record.result, "search_stopped": True})
    assert third.result_digest != record.result_digest


@pytest.mark.parametrize("key", ["checksum", "result_digest"])
def test_both_digests_are_looked_at(key, record, tmp_path):
    data = json.loads(record.to_json())
    data[key] = "0" * 64
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"r\.json: altered"):
        read_record(tmp_path / "r.json")


def test_a_record_is_one_line(record):
    assert record.to_json().count("\n") == 1


def without(key: str) -> Any:
    return lambda data: data.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=SCHEMA + 1), f"schema {SCHEMA + 1}, this version reads {SCHEMA}"),
        (without("schema"), "schema None"),
        (without("result"), "not a whole record"),
        (without("checksum"), "not a whole record"),
        (lambda data: data.update(observed=None), "not a whole record"),
        (lambda data: data.update(observed=[]), "not a whole record"),
        (lambda data: data.update(result=[]), "not a whole record"),
        (lambda data: data["result"].update(status="fine"), "altered"),
    ],
)
def test_what_is_no_record_is_refused(change, message, record, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(record.to_json())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=message):
        read_record(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"record"', "\x00\x00"])
def test_what_is_no_json_object_is_refused(text, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RecordError, match=r"r\.json"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_file_is_set_aside_by_name(make, record, tmp_path):
    path = Records(tmp_path).path(record.id)
    make(path)
    with pytest.raises(RecordError, match=f"{path}: cannot be read .*; move it away and run the suite again"):
        Records(tmp_path).get(record.id)
    (said,) = Records(tmp_path).set_aside([record.id])
    assert said.startswith(f"{path}: cannot be read (")
    assert said.endswith(f"it is now {record.id}.damaged, its trial runs again")
    Records(tmp_path).put(record)
    assert Records(tmp_path).get(record.id) == record


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "utf-8-sig"])
def test_other_encodings_than_utf_8_are_refused(encoding, record):
    """Whole numbers without end and halves of surrogate pairs are looked for in UTF-8."""
    with pytest.raises(RecordError, match=r"r\.json: truncated or not JSON"):
        parse_record(record.to_json().encode(encoding), "r.json")


def test_a_record_of_another_specification_than_its_id_says_is_refused(record, tmp_path):
    other = replace(record, spec={**record.spec, "seed": record.spec["seed"] + 1})
    with pytest.raises(RecordError, match="id: it is not that of the record's specification"):
        Records(tmp_path).put(other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["schema", "status", "name"])
def test_a_message_repeats_little_of_a_damaged_record(place, record):
    long = "x" * 100_000
    if place == "schema":
        text = json.dumps({"schema": long}).encode()
    elif place == "status":
        text = replace(record, result={**record.result, "status": long}).to_json().encode()
    else:
        layers = {**record.result["policy"]["layers"], long: [4, 4]}
        text = replace(record, result={**record.result, "policy": {"layers": layers}}).to_json().encode()
    with pytest.raises(RecordError) as caught:
        parse_record(text, "r.json")
    assert len(str(caught.value)) < 600


def test_a_record_under_another_name_is_refused(record, tmp_path):
    Records(tmp_path).put(record)
    Records(tmp_path).path(record.id).rename(tmp_path / "other.json")
    with pytest.raises(RecordError, match=record.id):
        Records(tmp_path).get("other")


def test_half_written_files_are_no_records(record, tmp_path: Path):
    Records(tmp_path).put(record)
    (tmp_path / f".{record.id}.json.x7").write_text("{")  # as a kill during a write leaves it
    (tmp_path / f"{record.id}.failed").write_text("{")
    assert list(Records(tmp_path)) == [record]
