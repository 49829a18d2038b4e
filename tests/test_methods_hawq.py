"""HAWQ: what it weighs, and where more bits go. Traces themselves are tested with methods/sensitivity.py."""

from __future__ import annotations

import pytest

from methods.allocation import groups_of
from methods.hawq import HESSIAN, MIN_SAMPLES, Hawq
from methods.quantization.cost import bops
from tests.problems import JOINT, differing, make_method, make_problem, run_search, search, snapshot


@pytest.fixture(scope="module")
def probed() -> Hawq:
    problem = make_problem(ceiling=0.4)
    method = make_method("hawq", problem)
    assert isinstance(method, Hawq)
    run_search(search(problem, method))
    return method


def set_traces(method: Hawq, of_weights: dict[str, float], of_inputs: dict[str, float]) -> None:
    for name, estimate in method.weight_traces.items():
        estimate.samples = [of_weights.get(name, 0.0)] * 2
    for name, estimate in method.input_traces.items():
        estimate.samples = [of_inputs.get(name, 0.0)] * 2


def test_it_takes_its_least_samples_and_stops_when_sure_or_broke(probed):
    taken = len(next(iter(probed.weight_traces.values())).samples)
    assert taken >= MIN_SAMPLES
    account = probed.problem.account
    broke = account.search_macs - account.spent_macs < probed.problem.price(HESSIAN)
    assert broke or probed.phase() is None
    assert probed.result().report["samples"] == taken


def test_the_network_is_left_as_it_was():
    problem = make_problem()
    method = make_method("hawq", problem)
    before = snapshot(problem)
    run_search(search(problem, method), 2)
    assert differing(before, snapshot(problem)) == []
    assert method.result().state is None


def test_the_sensitive_input_gets_the_bits(probed):
    problem = probed.problem
    for group in groups_of(problem.ledger, problem.candidates):
        set_traces(probed, {}, {group.layers[0]: 1.0})
        policy = probed.result().policy
        assert policy is not None
        # Nothing else matters, so the group gets the most that any policy within the ceiling gives it.
        cheapest = {name: choices[0] for name, choices in problem.candidates.items()}
        fitting = [
            choice[0].activation
            for choice in group.choices
            if bops(problem.ledger, {**cheapest, **dict(zip(group.layers, choice, strict=True))}) <= problem.ceiling
        ]
        assert policy[group.layers[0]].activation == max(fitting)


def test_the_sensitive_weight_gets_the_bits():
    problem = make_problem(space=JOINT, ceiling=0.3)
    method = make_method("hawq", problem)
    assert isinstance(method, Hawq)
    run_search(search(problem, method), 1)
    name = list(problem.candidates)[1]
    set_traces(method, {name: 1.0}, {})
    policy = method.result().policy
    assert policy is not None
    assert policy[name].weight == 4
    assert {bits.weight for other, bits in policy.items() if other != name} == {2}  # ties go to the lower cost


def test_errors_fall_with_the_width(probed):
    for errors in probed.input_errors.values():
        assert errors[3] > errors[4] > errors[8] >= 0


def test_negative_traces_count_as_zero_and_are_reported(probed):
    first, *others = probed.input_traces
    set_traces(probed, {}, {first: -5.0, **dict.fromkeys(others, 1.0)})
    searched = probed.result()
    assert searched.report["negative_traces"] == [f"input of {first}"]
    assert searched.report["objective"] >= 0


def test_layers_that_share_an_input_share_its_term(probed):
    shared = [names for names in probed.sharing.values() if len(names) > 1]
    assert shared
    assert set(probed.input_traces) == {names[0] for names in probed.sharing.values()}


def test_the_variant_is_named_in_the_report():
    problem = make_problem()
    method = make_method("hawq", problem, {"error": "mean", "activation_traces": False})
    run_search(search(problem, method), 2)
    report = method.result().report
    assert report["variant"] == {"error": "mean", "activation_traces": False, "tolerance": 0.05}
    assert report["input_traces"] == {}
