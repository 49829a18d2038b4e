"""Records matched to the rows of a suite, whatever versions they carry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from benchmarks.planning import plan
from benchmarks.records.record import Record
from benchmarks.suites.spec import digest
from benchmarks.suites.suite import load_suite
from methods import load_method
from reports.results import page as pages
from reports.results.making import Maker
from reports.results.measured import GRIDS, ResultsError, as_measured
from reports.results.sections import sections_of
from tests.fabricated import make_plan, make_record, make_suite, with_label


def changed(record: Record, **method: Any) -> Record:
    """The record with another method's version or options, under the id that this gives."""
    spec = {**record.spec, "method": {**record.spec["method"], **method}}
    return replace(record, id=digest(spec), spec=spec)


def made(entries, **more):
    planned = make_plan(make_suite(entries, **more))
    return planned, [make_record(trial) for trial in planned.trials]


def test_a_page_of_earlier_versions_has_the_same_numbers_and_says_so():
    maker, quick = Maker(), Maker.named("quick")
    before = maker.page(quick)
    hawq = load_method("hawq")
    (version,) = {r.spec["method"]["version"] for r in maker.records("quick") if r.spec["method"]["name"] == "hawq"}
    with mock.patch.object(hawq, "version", hawq.version + 3):
        raised = Maker()
        after = raised.page(quick)
        assert not {t.id for t in quick.plans([])[0].trials if t.row == "hawq"} & {
            r.id for r in raised.records("quick")
        }
    said = f"hawq at version {version} (today {hawq.version + 3})"
    assert said not in before
    assert "Some rows are of an earlier version" in after
    assert said in " ".join(after.split())
    assert before.split("<!-- ours: reading -->")[1] == after.split("<!-- ours: reading -->")[1]


def test_an_option_that_came_later_has_its_default_in_records_that_lack_it():
    planned = plan(load_suite("metamix-ablation"))
    old = [make_record(trial) for trial in planned.trials]
    for record in old:
        record.spec["method"]["options"].pop("branches", None)
    old = [changed(record) for record in old if "plain" not in _row_of(planned, record)]
    measured = as_measured(planned, [record for record in old if record.spec["method"]["name"] == "metamix"])
    found = {outcome.trial.row for outcome in measured.comparison.outcomes if outcome.record}
    assert found == {entry.row for entry in planned.suite.methods if entry.name == "metamix"} - {"metamix plain"}
    assert {change.what for change in measured.changes} == {"branches"}


def _row_of(planned, record: Record) -> str:
    return next((trial.row for trial in planned.trials if trial.id == record.id), "")


def test_of_several_versions_the_newest_counts_and_the_others_are_left_out():
    planned, records = made(["float", "hawq"])
    old = [changed(record, version=0) for record in records if record.spec["method"]["name"] == "hawq"]
    for order in (records + old, old + records):
        measured = as_measured(planned, order)
        assert {record.spec["method"]["version"] for record in measured.left_out} == {0}
        assert measured.changes == ()


def test_records_from_before_a_network_s_grids_changed_still_answer_and_are_named():
    planned, records = made(["float", "hawq"])
    trials = tuple(
        replace(trial, spec=trial.spec.model_copy(update={"kinds": "0123456789abcdef"})) for trial in planned.trials
    )
    changed_since = replace(planned, trials=trials)
    measured = as_measured(changed_since, records)
    assert {outcome.state for outcome in measured.comparison.outcomes} == {"ok"}
    assert {(change.row, change.what) for change in measured.changes} == {("mobilenet_v2", GRIDS)}
    today = [make_record(trial) for trial in trials]
    for order in (records + today, today + records):
        again = as_measured(changed_since, order)
        assert again.changes == ()
        assert {record.id for record in again.left_out} == {record.id for record in records}


def test_a_record_of_another_question_answers_nothing():
    planned, records = made(["hawq"])
    (record,) = records
    for part in ({"seed": 7}, {"compute": {**record.spec["compute"], "epochs": 4.0}}, {"draw": 1}):
        other = replace(record, spec={**record.spec, **part}, id=digest({**record.spec, **part}))
        measured = as_measured(planned, [other])
        assert [outcome.state for outcome in measured.comparison.outcomes] == ["missing"]
        assert measured.left_out == (other,)


def test_an_option_that_the_suite_names_has_to_be_the_record_s():
    entries = [with_label("metamix", "slow"), with_label("metamix", "fast", options={"lr_scale": 1.0})]
    planned, records = made(entries)
    slow = [record for record in records if not record.spec["method"]["options"]]
    measured = as_measured(planned, slow)
    assert {(o.trial.row, o.state) for o in measured.comparison.outcomes} == {("slow", "ok"), ("fast", "missing")}


def test_a_record_that_fits_two_rows_is_refused():
    planned, records = made([with_label("hawq", "one"), with_label("hawq", "two")])
    twice = replace(planned, trials=(records and planned.trials[0], replace(planned.trials[0], row="two")))
    with pytest.raises(ResultsError, match="fits one and two equally well"):
        as_measured(twice, records)


def test_records_that_answer_no_trial_are_counted_on_the_page():
    maker, quick = Maker(), Maker.named("quick")
    records = maker.records("quick")
    spec = {**records[0].spec, "seed": 99}
    more = [*records, replace(records[0], spec=spec, id=digest(spec))]
    measured = [as_measured(planned, more) for planned in quick.plans(more)]
    text = pages.page(quick, measured, sections_of("comparison", measured, records), {})
    assert "1 more record of reports/reference/quick answer no trial" in " ".join(text.split())
