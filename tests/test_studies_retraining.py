"""Search variance against retraining variance: the split against simulation, and the suite that measures it."""

from __future__ import annotations

import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import yaml

from benchmarks.planning import plan
from benchmarks.records.record import Records
from benchmarks.suites.suite import Suite
from methods.quantization.cost import uniform_bits
from methods.quantization.policy import Policy
from reports.studies import retraining
from reports.studies.retraining import components, lines, suite_of
from tests.fabricated import make_plan, make_record, make_suite, set_policy, with_label, write_records
from tests.harness import finished


def simulated(policies, seeds, rest, generator, rows=6, columns=5):
    effects = generator.normal(0, policies, rows)[:, None] + generator.normal(0, seeds, columns)[None, :]
    table = effects + generator.normal(0, rest, (rows, columns))
    return {str(i): dict(enumerate(map(float, row))) for i, row in enumerate(table)}


def test_the_split_is_right_on_average():
    generator = np.random.default_rng(0)
    found = [components(simulated(0.02, 0.01, 0.005, generator)) for _ in range(3000)]
    # A variance's estimate on k degrees of freedom has a relative deviation of about sqrt(2 / k); five standard errors.
    for name, truth, freedom in (("policies", 0.02, 5), ("seeds", 0.01, 4), ("rest", 0.005, 20)):
        mean = np.mean([getattr(each, name) for each in found])
        assert mean == pytest.approx(truth**2, rel=5 * (2 / freedom) ** 0.5 * 1.2 / 3000**0.5)


def test_a_policy_that_several_searches_chose_counts_as_often():
    """Five searches choose among three policies, so often that some choose alike: the variance is over searches."""
    generator, found, truth = np.random.default_rng(1), [], []
    for _ in range(3000):
        effects, chosen = generator.normal(0, 0.02, 3), generator.choice(3, 5, p=(0.6, 0.2, 0.2))
        names, counts = np.unique(chosen, return_counts=True)
        if len(names) < 2:
            continue
        noise = generator.normal(0, 0.01, (3, 5)) + generator.normal(0, 0.01, 5)
        table = {str(k): dict(enumerate(map(float, effects[k] + noise[k]))) for k in names}
        times = {str(k): int(n) for k, n in zip(names, counts, strict=True)}
        assert components(table, times).searches == 5
        found.append(components(table, times).policies)
        truth.append(np.var(effects[chosen], ddof=1))
    # Means over some 2,900 tables; negative estimates, cut at 0, are rare: noise of 0.01 / sqrt(5) beside 0.02.
    assert np.mean(found) == pytest.approx(np.mean(truth), rel=0.05)
    even = {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.7, 1: 0.8}}
    assert components(even, {"a": 4, "b": 1}).policies == pytest.approx(0.008)  # 0.5 four times and 0.7: Σ (x - m)² / 4
    assert components(even).policies == pytest.approx(0.02)


def test_policies_that_do_not_matter_have_no_variance():
    table = {name: {0: 0.5, 1: 0.6, 2: 0.7} for name in "abc"}
    found = components(table)
    assert (found.policies, found.rest) == pytest.approx((0, 0), abs=1e-30)  # squares of a rounding of 1e-16
    assert found.seeds == pytest.approx(0.01)


HOLED = [{}, {"a": {0: 1.0, 1: 1.0}}, {"a": {0: 1.0}, "b": {0: 1.0}}, {"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0, 2: 1.0}}]


@pytest.mark.parametrize("table", HOLED)
def test_holes_are_refused(table):
    with pytest.raises(ValueError, match="two policies"):
        components(table)


def test_of_several_ceilings_one_is_chosen(tmp_path):
    shelf = write_records(
        make_plan(make_suite(["metamix"], ceilings=["uniform:w4a4", "uniform:w4a5"], seeds=(0, 1))), tmp_path
    )
    records = list(shelf)
    several = sorted({record.spec["ceiling_bops"] for record in records})
    with pytest.raises(ValueError, match=f"--ceiling {several[0]} or {several[1]}"):
        suite_of(records, "metamix", "mobilenet_v2")
    assert suite_of(records, "metamix", "mobilenet_v2", several[1])["ceilings"] == [several[1]]
    with pytest.raises(ValueError, match="0 ok records"):
        suite_of(records, "metamix", "mobilenet_v2", 1)


def test_the_suite_of_a_searchs_policies_can_be_planned(capsys):
    folder = finished().out / "tiny" / "records"
    arguments = ["retraining", "suite", str(folder), "--method", "metamix", "--model", "resnet18"]
    with mock.patch.object(sys, "argv", arguments):
        retraining.main()
    suite = Suite.model_validate(yaml.safe_load(capsys.readouterr().out))
    assert [entry.row for entry in suite.methods] == ["float", "policy of seed 0"]
    trials = {trial.row: trial.spec for trial in plan(suite).trials}
    record = next(r for r in Records(folder) if r.spec["method"]["name"] == "metamix")
    again = trials["policy of seed 0"]
    assert again.method.options["policy"] == record.result["policy"]
    searched = record.trial_spec
    assert (again.recipe, again.data, again.start) == (searched.recipe, searched.data, searched.start)
    tuned = record.result["account"]["phases"][-1]["macs"] / record.result["account"]["epoch_macs"]
    assert again.compute.epochs == pytest.approx(tuned) != searched.compute.epochs


def test_a_method_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="0 ok records of nobody on resnet18, of 0 kinds"):
        suite_of(list(Records(finished().out / "tiny" / "records")), "nobody", "resnet18")


def searched(tmp_path, change=None, **suite):
    plan = make_plan(make_suite(["hawq"], seeds=(0, 1, 2), **suite))
    return list(write_records(plan, tmp_path, change))


def test_policies_that_are_alike_are_trained_once(tmp_path):
    first = searched(tmp_path / "a")[0].result["policy"]

    def alike(trial, result, _observed):
        if trial.spec.seed < 2:
            set_policy(trial, result, dict(Policy.from_dict(first)))
        else:
            set_policy(trial, result, uniform_bits(trial.ledger, 4, 3))

    rows = suite_of(searched(tmp_path / "b", alike), "hawq", "mobilenet_v2")["methods"]
    assert [row if row == "float" else row["label"] for row in rows] == [
        "float",
        "policy of seed 0, seed 1",
        "policy of seed 2",
    ]


def test_several_kinds_of_records_are_refused(tmp_path):
    first, *others = searched(tmp_path)
    longer = replace(first, spec={**first.spec, "compute": {**first.spec["compute"], "epochs": 99.0}})
    with pytest.raises(ValueError, match="3 ok records of hawq on mobilenet_v2, of 2 kinds"):
        suite_of([longer, *others], "hawq", "mobilenet_v2")


def test_the_table_of_retrained_policies(tmp_path):
    policies = [with_label("given", f"policy {k}", options={"policy": k}) for k in range(3)]
    plan = make_plan(make_suite(policies, seeds=(0, 1)))

    def accuracy(trial, result, _observed):
        result["metrics"]["test_accuracy"] = 0.8 + 0.02 * trial.spec.method.options["policy"] + 0.01 * trial.spec.seed

    head, of_policies, of_seeds, rest = lines(list(write_records(plan, tmp_path, accuracy)))
    assert head.startswith("3 policies x 2 seeds")
    assert of_policies == "policies (the search): 2.00 points, 89 %"  # variances 4 and 1/2
    assert of_seeds == "seeds (start and data order): 0.71 points, 11 %"
    assert rest == "the rest: 0.00 points, 0 %"
    # Three searches of seeds 0 to 2 chose policies 0, 0 and 1 and a fourth the last: variance of 0, 0, 2 and 4 points.
    choice = (0, 0, 1, 2)

    def choose(trial, result, _observed):
        result["policy"] = choice[trial.spec.seed]

    searches = [make_record(trial, choose) for trial in make_plan(make_suite(["hawq"], seeds=range(4))).trials]
    head, of_policies, *_ = lines(list(write_records(plan, tmp_path, accuracy)), searches, "hawq")
    assert head.startswith("3 policies that 4 searches chose x 2 seeds")
    assert of_policies.startswith(f"policies (the search): {np.std([0, 0, 2, 4], ddof=1):.2f} points")
    with pytest.raises(ValueError, match="no ok run of metamix"):
        lines(list(write_records(plan, tmp_path, accuracy)), searches, "metamix")
