"""A record's schema: records that we write or ship fit it, and what would break a report later does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.records.record import Record, RecordError, Records, parse_record, require_sound
from benchmarks.suites.spec import digest
from tests.fabricated import fail, make_plan, make_record, make_suite
from tests.harness import finished

PLAN = make_plan(make_suite(["float", "uniform-lsq", "hawq"]))
FLOAT, _, HAWQ = (make_record(trial) for trial in PLAN.trials)


def ended(status="failed"):
    return make_record(PLAN.trials[2], lambda _, result, observed: fail(result, observed, status=status))


def at(*path, value):
    """A change of one part of a record; `value` None with a name of `-` takes it away."""

    def change(body):
        *places, last = path
        for place in places:
            body = body[place]
        if value is GONE:
            del body[last]
        else:
            body[last] = value

    return change


GONE = object()


def written(record: Record, change) -> bytes:
    """A record's file with a part of it changed, and an id and checksums that fit."""
    body = json.loads(record.to_json())
    change(body)
    try:
        identity = digest(body["spec"]) if body["spec"] != record.spec else body["id"]
        changed = Record(identity, body["spec"], body["result"], body["observed"], record.schema)
        return changed.to_json().encode()
    except ValueError:  # a NaN has no checksum
        return json.dumps(body).encode()


@pytest.mark.parametrize("record", [FLOAT, HAWQ, ended(), ended("refused"), ended("over_ceiling")])
def test_what_ours_write_fits(record):
    assert parse_record(record.to_json().encode(), "r") == record


def test_what_trials_leave_fits_and_more_may_be_said():
    records = list(Records(finished().out / "tiny" / "records"))
    assert {record.schema for record in records} == {2}
    for record in records:
        require_sound(record.trial_spec, record.result)
    for place in ((), ("result",), ("observed",), ("observed", "environment"), ("spec", "data"), ("result", "metrics")):
        assert parse_record(written(HAWQ, at(*place, "of_a_later_version", value=1)), "r")


ODD = {
    "environment: a text": at("observed", "environment", value="x"),
    "environment: nested": at("observed", "environment", "torch", value={"a": 1}),
    "environment: gone": at("observed", "environment", value=GONE),
    "commit: a command": at("observed", "environment", "commit", value="$(touch x)"),
    "commit: two lines": at("observed", "environment", "commit", value="101778b\n```"),
    "commit: a number": at("observed", "environment", "commit", value=101778),
    "dirty: a text": at("observed", "environment", "dirty", value="no"),
    "seconds: below zero": at("observed", "seconds", "total", value=-1.0),
    "seconds: a text": at("observed", "seconds", "total", value="63"),
    "seconds: gone": at("observed", "seconds", value=GONE),
    "restarts: half": at("observed", "restarts", value=0.5),
    "restarts: a truth": at("observed", "restarts", value=True),
    "memory: huge": at("observed", "peak_memory_bytes", value=10**30),
    "digest: a list": at("observed", "data_digest", value=["x"]),
    "observed: NaN": at("observed", "start_seconds", value=float("nan")),
    "observed: NaN where nobody looks": at("observed", "more", value=float("inf")),
    "accuracy: above one": at("result", "metrics", "test_accuracy", value=7.5),
    "accuracy: below zero": at("result", "metrics", "validation_accuracy", value=-0.01),
    "accuracy: huge": at("result", "metrics", "test_accuracy", value=10**400),
    "accuracy: NaN": at("result", "metrics", "start_test_accuracy", value=float("nan")),
    "accuracy: a truth": at("result", "metrics", "test_accuracy", value=True),
    "accuracy: a text": at("result", "metrics", "test_accuracy", value="0.5"),
    "accuracy: gone": at("result", "metrics", "test_accuracy", value=GONE),
    "top 5: above one": at("result", "metrics", "test_top5_accuracy", value=1.01),
    "best: above one": at("result", "metrics", "best_validation_accuracy", value=2),
    "loss: infinite": at("result", "metrics", "test_loss", value=float("inf")),
    "images: none": at("result", "metrics", "test_images", value=0),
    "metrics: gone": at("result", "metrics", value=GONE),
    "curves: a list": at("result", "curves", value=[]),
    "curves: nested": at("result", "curves", "finetune", value=[{"step": [1]}]),
    "curves: huge": at("result", "curves", "finetune", value=[{"step": 1, "loss": 10**400}]),
    "search: huge": at("result", "search", value={"bops": 10**400}),
    "search: a list": at("result", "search", value=[]),
    "account: gone": at("result", "account", value=None),
    "account: an epoch of nothing": at("result", "account", "epoch_macs", value=0),
    "phases: a text": at("result", "account", "phases", value="search"),
    "audit: a text": at("result", "audit", value=["fine"]),
    "reason: of an ok trial": at("result", "reason", value={"type": "Error", "message": "no"}),
    "status: another": at("result", "status", value="fine"),
    "policy: of another schema": at("result", "policy", "schema", value=2),
    "policy: a list": at("result", "policy", value=[[4, 4]]),
    "policy: layers by number": at("result", "policy", "layers", value=[[4, 4]]),
    "policy: one width": at("result", "policy", "layers", "features.1.conv", value=4),
    "policy: nine bits": at("result", "policy", "layers", "features.1.conv", value=[9, 4]),
    "policy: half a bit": at("result", "policy", "layers", "features.1.conv", value=[4, 3.5]),
    "policy: a layer more": at("result", "policy", "layers", "head", value=[4, 4]),
    "policy: a layer less": at("result", "policy", "layers", "features.1.conv", value=GONE),
    "policy: none under a ceiling": at("result", "policy", value=None),
    "layers: none": at("result", "layers", value=[]),
    "layers: a text": at("result", "layers", 1, "weight_bits", value="four"),
    "cost: none": at("result", "cost", value=None),
    "cost: cheaper": at("result", "cost", "bops", "edges8", value=1000),
    "cost: a convention less": at("result", "cost", "bops", "inner", value=GONE),
    "cost: lighter": at("result", "cost", "weight_bytes", value=1),
    "cost: more unused": at("result", "cost", "unused_share", value=0.5),
    "cost: another ceiling": at("result", "cost", "ceiling_bops", value=10**9),
    "layers: other bits than the policy's": at("result", "layers", 1, "weight_bits", value=8),
    "layers: cheaper": at("result", "layers", 1, "bops", value=1),
    "layers: fewer MACs": at("result", "layers", 1, "macs", value=1),
    "id: a path": at("id", value="../../../evil"),
    "spec: no model": at("spec", "model", value=GONE),
    "spec: a seed of text": at("spec", "seed", value="0"),
    "spec: options of text": at("spec", "method", "options", value="none"),
    "spec: an infinite width": at("spec", "model", "width", value=float("inf")),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("schema", [1, 2])
def test_what_would_break_a_report_is_refused_and_named(odd, schema):
    text = written(replace(HAWQ, schema=schema), ODD[odd])
    with pytest.raises(RecordError, match=r"^it\.json: (not a sound|not a whole|truncated or)") as refused:
        parse_record(text, "it.json")
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("status", ["failed", "refused", "over_ceiling"])
@pytest.mark.parametrize("reason", [None, GONE, "no", {"type": "Error"}, {"type": "Error", "message": 3}])
def test_a_trial_that_ended_early_says_why(status, reason):
    with pytest.raises(RecordError, match=r"result\.reason"):
        parse_record(written(ended(status), at("result", "reason", value=reason)), "r")


def test_a_float_network_has_neither_policy_nor_cost():
    for name in ("policy", "cost"):
        with pytest.raises(RecordError, match=rf"result\.{name}"):
            parse_record(written(FLOAT, at("result", name, value=HAWQ.result[name])), "r")


@pytest.mark.parametrize("odd", ["accuracy: above one", "environment: a text", "cost: cheaper"])
def test_an_unsound_record_is_not_written(odd, tmp_path):
    body = json.loads(HAWQ.to_json())
    ODD[odd](body)
    with pytest.raises(RecordError, match=f"the record of trial {HAWQ.id}: not a sound record"):
        Records(tmp_path).put(Record(body["id"], body["spec"], body["result"], body["observed"]))
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_no_record_can_hold_is_known_before_it_is_written():
    spec = PLAN.trials[2].spec
    require_sound(spec, HAWQ.result)
    require_sound(spec, {**HAWQ.result, "search": {"bits": (4, 4)}})  # JSON has no tuples
    for search in ({"trace": float("nan")}, {"layers": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            require_sound(spec, {**HAWQ.result, "search": search})
    with pytest.raises(ValueError, match=r"no record can hold: result\.curves"):
        require_sound(spec, {**HAWQ.result, "curves": {"search": [{"step": [1]}]}})


def test_half_a_surrogate_pair_in_a_message_keeps_no_record_from_being_read(tmp_path):
    """As names of files have that are not UTF-8, which messages repeat."""
    record = ended()
    record.result["reason"]["message"] = "cannot read 'x\udcff.png' \U0001f600"
    Records(tmp_path).put(record)
    assert Records(tmp_path).get(record.id) == record
