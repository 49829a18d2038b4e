"""Cells, verdicts, and what may not stand in one table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.records.record import Records
from benchmarks.suites.spec import digest
from reports.findings.across import row_scores
from reports.findings.comparison import Comparison, ComparisonError, gather
from reports.findings.summary import Summary, comparisons_called, summarise
from tests.fabricated import Shelf, fail, make_plan, make_record, make_suite, shuffled, with_label, write_records


def accuracies(table):
    """A change that sets test accuracies by (row, seed)."""

    def change(trial, result, observed):
        if (value := table.get((trial.row, trial.spec.seed))) is not None:
            result["metrics"]["test_accuracy"] = value

    return change


def only(comparison: Comparison, row: str) -> Summary:
    (found,) = [summary for summary in summarise(comparison) if summary.cell.row == row]
    return found


def test_cells_stand_in_the_suites_order_with_the_float_control_once():
    suite = make_suite(["metamix", "float", "uniform-lsq"], ceilings=("uniform:w4a8", "uniform:w4a4"))
    cells = gather(make_plan(suite), Shelf(make_plan(suite))).cells
    assert [(cell.ceiling, cell.row) for cell in cells] == [
        ("float", "float"),
        ("uniform:w4a8", "metamix"),
        ("uniform:w4a8", "uniform-lsq"),
        ("uniform:w4a4", "metamix"),
        ("uniform:w4a4", "uniform-lsq"),
    ]


@given(st.integers(0, 1000))
def test_permuting_trials_changes_nothing(seed):
    suite = make_suite(["float", "uniform-lsq", with_label("random", "chance", draws=2)], seeds=(0, 1, 2))
    plan = make_plan(suite)
    shelf = Shelf(plan)
    assert gather(shuffled(plan, seed), shelf).cells == gather(plan, shelf).cells


def test_draws_are_averaged_within_their_seed_first():
    # Seed 0 has a failed draw. By trial the mean would be (0.9 + 0.8 + 1.0) / 3 = 0.9; by seed it is 0.875.
    plan = make_plan(make_suite([with_label("random", "random", draws=2)], seeds=(0, 1)))
    values = {(0, 0): 0.8, (1, 0): 0.9, (1, 1): 1.0}

    def change(trial, result, observed):
        key = (trial.spec.seed, trial.spec.draw)
        if key in values:
            result["metrics"]["test_accuracy"] = values[key]
        else:
            fail(result, observed)

    summary = only(gather(plan, Shelf(plan, change)), "random")
    assert summary.cell.accuracies == {0: 0.8, 1: pytest.approx(0.95)}
    assert summary.accuracy.value == pytest.approx(0.875)
    assert summary.accuracy.n == 2


def test_one_seed_gets_no_interval_no_difference_and_no_ranking():
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"]))
    best = accuracies({("hawq", 0): 0.99, ("uniform-lsq", 0): 0.5})
    summary = only(gather(plan, Shelf(plan, best)), "hawq")
    assert summary.accuracy.interval is None
    assert (summary.verdict.text, summary.verdict.call) == ("one seed: no ranking", "")


def test_two_seeds_get_an_interval_but_no_call():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"], seeds=(0, 1)))
    values = {("hawq", 0): 0.99, ("hawq", 1): 0.9901, ("uniform-lsq", 0): 0.5, ("uniform-lsq", 1): 0.5}
    summary = only(gather(plan, Shelf(plan, accuracies(values))), "hawq")
    assert summary.to_uniform.n == 2
    assert 0 not in summary.to_uniform.interval
    assert (summary.verdict.text, summary.verdict.call) == ("2 paired seeds: no ranking", "")


@pytest.mark.parametrize(
    ("hawq", "text", "call"),
    [
        ((0.94, 0.95, 0.97), "higher than uniform-lsq", "higher"),
        ((0.83, 0.85, 0.86), "lower than uniform-lsq", "lower"),
        ((0.89, 0.93, 0.90), "no difference shown", ""),
        ((0.92, 0.92, 0.92), "all differences equal: not judged", ""),
    ],
)
def test_three_seeds_are_judged_by_their_paired_interval(hawq, text, call):
    plan = make_plan(make_suite(["uniform-lsq", "hawq"], seeds=(0, 1, 2)))
    values = {("hawq", seed): value for seed, value in enumerate(hawq)}
    values |= {("uniform-lsq", seed): 0.9 for seed in range(3)}
    verdict = only(gather(plan, Shelf(plan, accuracies(values))), "hawq").verdict
    assert (verdict.text, verdict.call) == (text, call)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("failed", "last: 1 of 3 failed"),
        ("over_ceiling", "last: 1 of 3 over the ceiling"),
        ("refused", "refused: not ranked"),
    ],
)
def test_survivors_of_a_failure_win_nothing(status, verdict):
    plan = make_plan(make_suite(["uniform-lsq", "hawq"], seeds=(0, 1, 2)))

    def change(trial, result, observed):
        result["metrics"]["test_accuracy"] = 0.99 if trial.row == "hawq" else 0.5
        if trial.row == "hawq" and trial.spec.seed == 1:
            fail(result, observed, status=status)

    found = gather(plan, Shelf(plan, change))
    summary = only(found, "hawq")
    assert (summary.verdict.text, summary.verdict.call) == (verdict, "")
    assert summary.counted.replace("\u00a0", " ") == "2 of 3"
    assert (summary.to_uniform is None) == (status != "refused")
    assert comparisons_called(summarise(found)) == 0


def test_no_difference_is_given_to_the_survivors_of_a_failure():
    plan = make_plan(make_suite(["uniform-lsq", "hawq", "random"], seeds=(0, 1, 2, 3)))

    def change(trial, result, observed):
        result["metrics"]["test_accuracy"] = 0.5 + 0.1 * (trial.row == "hawq") + 0.01 * (trial.spec.seed % 3)
        if trial.row == "random" and trial.spec.seed == 1:
            fail(result, observed, status="over_ceiling")

    found = gather(plan, Shelf(plan, change))
    hawq, random = only(found, "hawq"), only(found, "random")
    assert (hawq.to_uniform.n, hawq.to_random) == (4, None)
    assert random.to_uniform is None
    assert comparisons_called(summarise(found)) == 0  # all differences of HAWQ are equal, and random has none


def test_other_float_weights_are_not_paired():
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1, 2, 3)))

    def change(moved):
        def to_another_machine(trial, result, observed):
            result["metrics"]["test_accuracy"] = 0.5 + 0.1 * (trial.row == "hawq") + 0.01 * trial.spec.seed
            if trial.row == "hawq" and trial.spec.seed in moved:
                observed["weights_digest"] = "other"

        return to_another_machine

    found = gather(plan, Shelf(plan, change({3})))
    assert (only(found, "hawq").to_uniform.n, only(found, "uniform-lsq").to_float.n) == (3, 4)
    absent = {row.row: row.absent for row in row_scores(found)}
    assert absent == {"uniform-lsq": "", "hawq": "other float weights than the float control's: not judged"}
    summary = only(gather(plan, Shelf(plan, change({0, 1, 2, 3}))), "hawq")
    assert (summary.to_uniform, summary.verdict.text) == (None, "no seed from the baseline's float weights")


def test_an_incomplete_row_and_an_incomplete_baseline_are_called_nothing():
    plan = make_plan(make_suite(["uniform-lsq", "hawq", "metamix"], seeds=(0, 1, 2, 3)))
    shelf = Shelf(plan)
    lost = {trial.row: trial.id for trial in plan.trials if trial.spec.seed == 3}
    del shelf.records[lost["hawq"]]
    assert only(gather(plan, shelf), "hawq").verdict.text == "incomplete: 3 of 4"
    del shelf.records[lost["uniform-lsq"]]
    assert only(gather(plan, shelf), "metamix").verdict.text == "no complete baseline"


def test_differences_to_uniform_lsq_use_the_same_ceiling():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"], ceilings=("uniform:w4a4", "uniform:w4a8"), seeds=(0, 1)))

    def change(trial, result, observed):
        base = 0.7 if trial.ceiling == "uniform:w4a4" else 0.9
        result["metrics"]["test_accuracy"] = base + (0.01 if trial.row == "hawq" else 0.0)

    summaries = [s for s in summarise(gather(plan, Shelf(plan, change))) if s.cell.row == "hawq"]
    assert [s.to_uniform.value for s in summaries] == [pytest.approx(0.01)] * 2


def test_differences_to_random_average_its_draws_within_their_seed():
    suite = make_suite(
        ["hawq", with_label("random", "", draws=2)], ceilings=("uniform:w4a4", "uniform:w4a8"), seeds=(0, 1)
    )
    plan = make_plan(suite)

    def change(trial, result, observed):
        base = 0.7 if trial.ceiling == "uniform:w4a4" else 0.9
        result["metrics"]["test_accuracy"] = base + (0.01 if trial.row == "hawq" else 0.02 * trial.spec.draw)

    summaries = [s for s in summarise(gather(plan, Shelf(plan, change))) if s.cell.row == "hawq"]
    assert [s.to_random.value for s in summaries] == [pytest.approx(0.0)] * 2
    assert [s.to_random.n for s in summaries] == [2, 2]


def test_differences_to_float_use_the_control_of_the_same_network():
    plan = make_plan(make_suite(["float", "uniform-lsq"], models=("mobilenet_v2", "resnet18"), seeds=(0, 1)))

    def change(trial, result, observed):
        by_model = {"mobilenet_v2": 0.9, "resnet18": 0.7}
        drop = 0.0 if trial.row == "float" else 0.1 + 0.01 * trial.spec.seed
        result["metrics"]["test_accuracy"] = by_model[trial.model] - drop

    summaries = [s for s in summarise(gather(plan, Shelf(plan, change))) if s.cell.row == "uniform-lsq"]
    assert [s.to_float.value for s in summaries] == [pytest.approx(-0.105)] * 2


def test_unused_ceilings_and_stopped_searches_are_said():
    plan = make_plan(make_suite(["hawq", "metamix"]))

    def change(trial, result, observed):
        result["cost"]["unused_share"] = 0.011 if trial.row == "hawq" else 0.009
        result["search_stopped"] = trial.row == "metamix"

    comparison = gather(plan, Shelf(plan, change))
    assert only(comparison, "hawq").notes == ("leaves 1.1 % of the ceiling unused",)
    assert only(comparison, "metamix").notes == ("search stopped: its share ran out",)


def test_traces_that_drown_in_their_error_are_counted():
    plan = make_plan(make_suite(["hawq", "reversed"]))

    def change(trial, result, observed):
        sure, unsure = ({"mean": mean, "standard_error": 0.5} for mean in (-1.1, 0.9))
        result["search"] = {"weight_traces": {"a": sure}, "input_traces": {"a": sure}}
        if trial.row == "hawq":
            result["search"] = {"weight_traces": {}, "input_traces": {"a": sure, "b": unsure, "c": unsure}}

    comparison = gather(plan, Shelf(plan, change))
    assert only(comparison, "hawq").notes == ("67 % of its traces are within two standard errors of 0",)
    assert only(comparison, "reversed").notes == ()


def test_what_a_method_says_of_itself_stands_in_its_row_once():
    plan = make_plan(make_suite(["hawq", "metamix"], seeds=[0, 1]))

    def change(trial, result, observed):
        result["search"] = {"note": "searches a part of the space"} if trial.row == "metamix" else {}

    comparison = gather(plan, Shelf(plan, change))
    assert only(comparison, "metamix").notes == ("searches a part of the space",)
    assert only(comparison, "hawq").notes == ()


def test_protocols_do_not_mix():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))
    shelf = Shelf(plan)
    trial = plan.trials[1]
    record = shelf.records[trial.id]
    shelf.records[trial.id] = replace(record, spec={**record.spec, "protocol": 0})
    with pytest.raises(ComparisonError, match=r"protocol.*hawq"):
        gather(plan, shelf)


def test_records_of_another_protocol_are_told_from_records_that_are_not_there(tmp_path):
    plan = make_plan(make_suite(["uniform-lsq", "hawq", "random"]))
    records = write_records(plan, tmp_path, leave_out=lambda trial: trial.row != "random")
    old = make_record(plan.trials[1])
    spec = {**old.spec, "protocol": 0}
    records.put(replace(old, id=digest(spec), spec=spec))
    comparison = gather(plan, records)
    reasons = {outcome.trial.row: (outcome.state, outcome.reason) for outcome in comparison.outcomes}
    assert reasons["hawq"] == ("missing", "there is only a record of protocol 0; this version is 1")
    assert reasons["uniform-lsq"] == ("missing", "no record yet")
    assert comparison.warnings == ("1 record of protocol 0 not used: this version is 1",)


def test_records_of_another_version_of_a_method_are_told_from_records_that_are_not_there(tmp_path):
    plan = make_plan(make_suite(["uniform-lsq", "hawq", "random"]))
    records = write_records(plan, tmp_path, leave_out=lambda trial: trial.row != "random")
    old = make_record(plan.trials[1])
    method = {**old.spec["method"], "version": 0}
    for change in ({"method": method}, {"method": method, "seed": 77}):
        spec = {**old.spec, **change}
        records.put(replace(old, id=digest(spec), spec=spec))
    comparison = gather(plan, records)
    reasons = {outcome.trial.row: outcome.reason for outcome in comparison.outcomes if outcome.state == "missing"}
    now = plan.trials[1].spec.method.version
    assert reasons["hawq"] == f"there is only a record of hawq's version 0; this version is {now}"
    assert reasons["uniform-lsq"] == "no record yet"
    assert comparison.warnings == (f"1 record of hawq's version 0 not used: this version is {now}",)


def test_data_digests_do_not_mix():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))

    def change(trial, result, observed):
        if trial.row == "hawq":
            observed["data_digest"] = "other"

    with pytest.raises(ComparisonError, match=r"different data.*hawq"):
        gather(plan, Shelf(plan, change))


def test_mixed_commits_uncommitted_changes_and_other_float_weights_are_warned_of():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))

    def change(trial, result, observed):
        if trial.row == "hawq":
            observed["environment"].update(commit="0ther56789" + 30 * "a", dirty=True)
            observed["weights_digest"] = "other"

    commits, dirty, weights = gather(plan, Shelf(plan, change)).warnings
    assert "several commits" in commits
    assert "0ther56789 (1 record" in commits
    assert dirty.startswith("1 of 2 records")
    assert "those are not paired" in weights


def test_records_that_were_quantized_by_several_paths_are_warned_of():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))

    def change(trial, result, observed):
        observed["environment"].update(quantizer="fused", compile=trial.row == "hawq")

    (warning,) = gather(plan, Shelf(plan, change)).warnings
    assert "several quantizer paths" in warning
    assert "fused (" in warning
    assert "fused, compiled (" in warning


def test_clean_records_warn_of_nothing():
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1)))
    assert gather(plan, Shelf(plan)).warnings == ()


def test_overspent_accounts_and_wide_codes_are_warned_of():
    plan = make_plan(make_suite(["hawq"]))

    def change(trial, result, observed):
        result["account"]["phases"][0]["macs"] += 1
        result["audit"][0]["levels"] = 257

    spent, codes = gather(plan, Shelf(plan, change)).warnings
    assert "more compute than it was granted" in spent
    assert "more codes than their bits allow" in codes


def test_a_missing_trial_is_missing(tmp_path):
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))
    records = write_records(plan, tmp_path, leave_out=lambda trial: trial.row == "hawq")
    assert only(gather(plan, records), "hawq").verdict.text == "missing"


def test_a_damaged_record_is_named_and_not_used(tmp_path):
    plan = make_plan(make_suite(["uniform-lsq"]))
    records = write_records(plan, tmp_path)
    path = records.path(plan.trials[0].id)
    data = json.loads(path.read_text())
    data["result"]["metrics"]["test_accuracy"] = 0.999
    path.write_text(json.dumps(data))
    (outcome,) = gather(plan, records).outcomes
    assert outcome.state == "damaged"
    assert path.name in outcome.reason
    assert "altered" in outcome.reason


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1, None])
def test_a_metric_that_is_no_accuracy_is_refused(value):
    plan = make_plan(make_suite(["uniform-lsq"]))
    comparison = gather(
        plan, Shelf(plan, lambda trial, result, observed: result["metrics"].update(test_accuracy=value))
    )
    (outcome,) = comparison.outcomes
    assert outcome.state == "damaged"
    assert summarise(comparison)[0].accuracy is None


@pytest.mark.parametrize("bits", ["four", 4.5, -1, True, [4]])
@pytest.mark.parametrize("status", ["ok", "over_ceiling"])
def test_bits_that_are_no_bits_are_one_clear_line(bits, status):
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))

    def change(trial, result, observed):
        if trial.row == "hawq":
            result["status"] = status
            result["layers"][1]["weight_bits"] = bits

    good, bad = gather(plan, Shelf(plan, change)).outcomes
    assert (good.state, bad.state) == ("ok", "damaged")
    assert f"weight_bits of features.1.conv is {bits!r}, expected a whole number" in bad.reason


def test_a_nan_in_a_file_is_a_damaged_record(tmp_path):
    plan = make_plan(make_suite(["uniform-lsq"]))
    records = write_records(plan, tmp_path)
    path = records.path(plan.trials[0].id)
    accuracy = str(make_record(plan.trials[0]).result["metrics"]["test_accuracy"])
    assert accuracy in path.read_text()
    path.write_text(path.read_text().replace(accuracy, "NaN"))
    assert gather(plan, records).outcomes[0].state == "damaged"


def test_a_record_of_another_trial_is_not_used():
    plan = make_plan(make_suite(["uniform-lsq", "hawq"]))
    shelf = Shelf(plan)
    first, second = plan.trials
    shelf.records[second.id] = replace(shelf.records[first.id], id=second.id)
    assert [outcome.state for outcome in gather(plan, shelf).outcomes] == ["ok", "damaged"]


def test_no_folder_of_records_means_everything_is_missing(tmp_path):
    plan = make_plan(make_suite(["float", "uniform-lsq"]))
    comparison = gather(plan, Records(tmp_path / "nowhere"))
    assert {outcome.state for outcome in comparison.outcomes} == {"missing"}
