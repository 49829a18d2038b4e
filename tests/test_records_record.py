"""Records: whole or absent, and never mistaken for what they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning import plan
from benchmarks.records.record import SCHEMA, Record, RecordError, Records, read_record
from benchmarks.suites.suite import load_suite
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


@pytest.mark.parametrize("part", ["spec", "result"])
def test_the_checksum_covers_spec_and_result(part, record, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(record.to_json())
    data[part]["added"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"r\.json: altered"):
        read_record(path)


def test_what_was_observed_may_be_edited_and_keys_reordered(record, tmp_path):
    path = tmp_path / "r.json"
    data = json.loads(record.to_json())
    data["observed"]["note"] = "kept on another disk"
    path.write_text(json.dumps(data, sort_keys=True, indent=7))
    assert read_record(path).checksum == record.checksum


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
