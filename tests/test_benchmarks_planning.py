"""What suites expand to: ceilings in BOPs, shares, candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.messages import SuiteError
from benchmarks.planning import candidates_of, plan
from benchmarks.suites.suite import ceiling_name, select
from methods.quantization.cost import bops, uniform_bits
from methods.quantization.policy import LayerBits
from tests.harness import tiny_suite


def test_ceilings_become_bops():
    suite = tiny_suite(ceilings=["uniform:w4a5", 2_500_000.0, {"resnet18": 2_600_000}], methods=["random"])
    trials = plan(suite).trials
    ledger = trials[0].ledger
    assert [trial.spec.ceiling_bops for trial in trials] == [
        bops(ledger, uniform_bits(ledger, 4, 5)),
        2_500_000,
        2_600_000,
    ]
    assert [ceiling_name(ceiling) for ceiling in suite.ceilings] == ["uniform:w4a5", "0.0025 GBOPs", "0.0026 GBOPs"]


def test_a_ceiling_that_binds_nothing_is_a_warning():
    (warning,) = plan(tiny_suite(ceilings=["uniform:w8a8"], methods=["random"])).warnings
    assert "binds nothing" in warning


def test_a_ceiling_that_few_policies_fit_is_a_warning_with_their_number():
    trials = plan(tiny_suite(ceilings=["uniform:w4a3"], methods=["random"])).trials
    ledger, cheapest = trials[0].ledger, trials[0].spec.ceiling_bops
    assert cheapest is not None
    (warning,) = plan(tiny_suite(ceilings=["uniform:w4a3"], methods=["random"])).warnings
    assert "only 1 policy fits" in warning
    # One layer, or one pair of tied ones, can be raised to 4 bits if its increment of 4 x MACs fits.
    sizes: dict[str, int] = {}
    for layer in ledger:
        if not layer.pinned:
            sizes[layer.tie or layer.name] = sizes.get(layer.tie or layer.name, 0) + layer.macs
    least = min(sizes.values())
    (warning,) = plan(tiny_suite(ceilings=[cheapest + 4 * least], methods=["random"])).warnings
    assert f"only {1 + sum(size == least for size in sizes.values())} policies fit" in warning


@pytest.mark.parametrize("ceiling", ["uniform:w4a3", "uniform:w8a8"], ids=["few", "unbound"])
def test_how_many_policies_fit_is_no_warning_where_nothing_chooses_among_them(ceiling):
    assert plan(tiny_suite(ceilings=[ceiling], methods=["float", "uniform-lsq"])).warnings == ()


def test_a_layer_that_reads_what_a_pinned_one_reads_is_refused_before_anything_runs(monkeypatch):
    first, second, *rest = plan(tiny_suite(methods=["random"])).trials[0].ledger
    assert first.pinned
    assert not second.pinned
    tied = (replace(first, tie="image"), replace(second, tie="image"), *rest)
    monkeypatch.setattr("benchmarks.planning.ledger_for", lambda *_: tied)
    with pytest.raises(SuiteError, match=f"resnet18: {second.name} reads the same input as {first.name}"):
        plan(tiny_suite(methods=["random"]))


def test_a_search_share_is_for_those_who_search():
    suite = tiny_suite(compute={"epochs": 2, "search_share": {"hawq": 0.02, "default": 0.3}})
    shares = {trial.row: trial.spec.compute.search_share for trial in plan(suite).trials}
    assert shares == {"float": 0, "uniform-lsq": 0, "random": 0, "hawq": 0.02, "metamix": 0.3, "differentiable": 0.3}


def test_a_row_may_have_a_share_of_its_own():
    rows = ["hawq", {"name": "hawq", "label": "hawq mean", "options": {"error": "mean"}}]
    suite = tiny_suite(methods=rows, compute={"epochs": 2, "search_share": {"hawq": 0.02, "hawq mean": 0.3}})
    assert [trial.spec.compute.search_share for trial in plan(suite).trials] == [0.02, 0.3]


def test_a_search_without_a_share_is_refused():
    suite = tiny_suite(methods=["random", "hawq"], compute={"epochs": 2, "search_share": {"metamix": 0.05}})
    with pytest.raises(SuiteError, match="search_share has no share for hawq; name hawq in it, or `default`"):
        plan(suite)
    assert plan(select(suite, methods=["random"], models=[], seeds=[])).trials


def test_the_float_control_is_one_trial_for_all_ceilings():
    trials = plan(tiny_suite(ceilings=["uniform:w4a4", "uniform:w4a5"], methods=["float", "random"])).trials
    assert [trial.row for trial in trials] == ["float", "random", "random"]
    assert trials[0].spec.ceiling_bops is None


def test_candidates_are_the_space_for_every_searchable_layer():
    suite = tiny_suite(space={"weights": [4, 2], "activations": [8, 3]})
    ledger = plan(tiny_suite(methods=["random"])).trials[0].ledger
    candidates = candidates_of(suite.space, ledger)
    assert set(candidates) == {layer.name for layer in ledger if not layer.pinned}
    pairs = [LayerBits(2, 3), LayerBits(4, 3), LayerBits(2, 8), LayerBits(4, 8)]
    assert all(list(bits) == pairs for bits in candidates.values())
