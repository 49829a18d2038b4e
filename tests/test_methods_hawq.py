"""HAWQ: what it weighs, and where more bits go. Traces themselves are tested with methods/sensitivity.py."""

from __future__ import annotations

import pytest

from benchmarks.suites.spec import Space
from benchmarks.trials.problem import Problem
from methods.allocation import groups_of
from methods.contract import InapplicableError
from methods.hawq import HESSIAN, MIN_SAMPLES, Hawq, Reversed, Shuffled
from methods.quantization.convert import QuantizerOptions
from methods.quantization.cost import bops
from methods.quantization.grid import Grid
from methods.quantization.policy import Policy
from methods.sensitivity import least_squares_step, squared_error
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
    taken = len(next(iter(probed.input_traces.values())).samples)
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


@pytest.mark.parametrize("narrow", [True, False])
def test_weights_are_rounded_on_the_grid_that_they_will_have(narrow):
    method = make_method("hawq", make_problem(space=JOINT, quantizer=QuantizerOptions(narrow=narrow)))
    assert isinstance(method, Hawq)
    grid = Grid(-1 if narrow else -2, 1)  # of two bits
    for name, errors in method._weight_errors().items():
        weight = method.layers[name].weight.detach()
        assert errors[2] == squared_error(weight, least_squares_step(weight, grid, per_channel=True), grid)


def test_negative_traces_count_as_zero_and_are_reported(probed):
    first, *others = probed.input_traces
    set_traces(probed, {}, {first: -5.0, **dict.fromkeys(others, 1.0)})
    searched = probed.result()
    assert searched.report["negative_traces"] == [f"input of {first}"]
    assert searched.report["objective"] >= 0


def test_an_input_counts_once_however_many_layers_read_it_and_by_the_mean_image(probed):
    assert any(len(names) > 1 for names in probed.sharing.values())
    traces = {names[0]: 1.0 + place for place, names in enumerate(probed.sharing.values())}
    set_traces(probed, {}, traces)
    searched = probed.result()
    assert searched.policy is not None
    errors = {name: probed.input_errors[name][searched.policy[name].activation] / probed.images for name in traces}
    expected = sum(traces[name] * errors[name] for name in traces)
    # Sums of some twenty float64 numbers in another order.
    assert searched.report["objective"] == pytest.approx(expected, rel=1e-12)


def test_the_variant_is_named_in_the_report():
    problem = make_problem(space=JOINT)
    method = make_method("hawq", problem, {"error": "mean", "activation_traces": False})
    run_search(search(problem, method), 2)
    report = method.result().report
    expected = {"error": "mean", "activation_traces": False, "assignment": "ilp", "tolerance": 0.05}
    assert report["variant"] == {**expected, "probes": "by-kind"}
    assert report["input_traces"] == {}


BOTH = {"weight", "activation"}


@pytest.mark.parametrize(
    ("weights", "activations", "options", "expected"),
    [
        ((4,), (3, 8), {}, {"activation"}),
        ((2, 4), (8,), {}, {"weight"}),
        ((2, 4), (3, 8), {}, BOTH),
        ((2, 4), (3, 8), {"activation_traces": False}, {"weight"}),
    ],
)
def test_what_has_one_width_is_not_probed(weights, activations, options, expected):
    problem = make_problem(space=Space(weights=weights, activations=activations))
    method = make_method("hawq", problem, options)
    assert isinstance(method, Hawq)
    run_search(search(problem, method), 1)
    traces = {"weight": method.weight_traces, "activation": method.input_traces}
    assert {kind for kind, estimates in traces.items() if estimates} == expected
    assert all(len(estimate.samples) == 1 for estimates in traces.values() for estimate in estimates.values())


@pytest.mark.parametrize(
    ("weights", "activations", "options", "weighed"),
    [((8,), (8,), {}, "activation, weight"), ((4,), (3, 8), {"activation_traces": False}, "weight")],
)
def test_it_is_refused_where_nothing_that_it_weighs_has_a_choice(weights, activations, options, weighed):
    problem = make_problem(space=Space(weights=weights, activations=activations))
    with pytest.raises(InapplicableError, match=rf"one width of what it weighs \({weighed}\)"):
        make_method("hawq", problem, options)


def ordered(policy: Policy, rank: dict[str, float], problem: Problem) -> bool:
    """Whether activation bits rise with the rank, by groups of layers that share an input."""
    groups = groups_of(problem.ledger, problem.candidates)
    by_rank = sorted(groups, key=lambda group: rank[group.layers[0]])
    bits = [policy[group.layers[0]].activation for group in by_rank]
    return bits == sorted(bits)


def test_trace_ordered_policies_follow_the_input_traces():
    problem = make_problem(ceiling=0.4)
    method = make_method("hawq", problem, {"assignment": "trace-ordered"})
    assert isinstance(method, Hawq)
    run_search(search(problem, method), 2)
    for falling in (False, True):
        names = sorted(method.input_traces, reverse=falling)
        traces = {name: float(1 + place) for place, name in enumerate(names)}
        set_traces(method, {}, traces)
        policy = method.result().policy
        assert policy is not None
        rank = {name: traces[names[0]] for names in method.sharing.values() for name in names}
        assert ordered(policy, rank, problem)
        assert len({bits.activation for bits in policy.values()}) > 1
        assert bops(problem.ledger, policy) <= problem.ceiling


def test_trace_ordered_weights_follow_the_weight_traces():
    problem = make_problem(space=Space(weights=(2, 4, 8), activations=(8,)), ceiling=0.6)
    method = make_method("hawq", problem, {"assignment": "trace-ordered"})
    assert isinstance(method, Hawq)
    run_search(search(problem, method), 2)
    traces = {name: float(1 + place) for place, name in enumerate(method.weight_traces)}
    set_traces(method, traces, {})
    policy = method.result().policy
    assert policy is not None
    groups = sorted(method.sharing.values(), key=lambda names: sum(traces[name] for name in names) / len(names))
    bits = [policy[names[0]].weight for names in groups]
    assert bits == sorted(bits)
    assert len(set(bits)) > 1


def test_trace_ordered_is_refused_where_both_widths_are_free():
    problem = make_problem(space=JOINT)
    method = make_method("hawq", problem, {"assignment": "trace-ordered"})
    run_search(search(problem, method), 2)
    with pytest.raises(InapplicableError, match="frees weights and activations"):
        method.result()


def test_reversed_gives_the_most_sensitive_the_least_trace():
    method = make_method("reversed", make_problem())
    assert isinstance(method, Reversed)
    assert method.assigned("weight", {"a": 3.0, "b": 1.0, "c": 2.0, "d": 9.0}) == {
        "a": 2.0,
        "b": 9.0,
        "c": 3.0,
        "d": 1.0,
    }


def test_reversed_takes_bits_from_the_layer_that_hawq_gives_them_to():
    policies = []
    for name in ("hawq", "reversed"):
        problem = make_problem(ceiling=0.4)
        method = make_method(name, problem)
        assert isinstance(method, Hawq)
        run_search(search(problem, method), 2)
        sources = list(method.input_traces)
        set_traces(method, {}, {source: 10.0**place for place, source in enumerate(sources)})
        policy = method.result().policy
        assert policy is not None
        policies.append([policy[source].activation for source in (sources[0], sources[-1])])
    (first, last), (reversed_first, reversed_last) = policies
    assert first < last
    assert reversed_first > reversed_last


def test_shuffled_permutes_the_traces_alike_for_a_seed_and_otherwise_for_another():
    traces = {f"layer{index}": float(index) for index in range(12)}
    permuted = []
    for seed in (0, 0, 1):
        method = make_method("shuffled", make_problem(seed=seed))
        assert isinstance(method, Shuffled)
        permuted.append(method.assigned("weight", traces))
    other = method.assigned("input", traces)
    assert all(list(p) == list(traces) and sorted(p.values()) == sorted(traces.values()) for p in permuted)
    assert permuted[0] == permuted[1] != permuted[2]
    assert permuted[0] != traces
    assert sorted(other.values()) == sorted(traces.values())
    assert other != permuted[2]


def test_controls_of_the_sensitivity_probe_as_hawq_does_and_pay_as_much():
    spent = []
    for name in ("hawq", "reversed", "shuffled"):
        problem = make_problem()
        method = make_method(name, problem)
        assert isinstance(method, Hawq)
        run_search(search(problem, method))
        spent.append((problem.account.spent_macs, {n: t.samples for n, t in method.input_traces.items()}))
    assert spent[0] == spent[1] == spent[2]


def test_separate_probes_cost_a_product_for_each_block():
    prices = []
    for probes in ("by-kind", "separate"):
        problem = make_problem()
        make_method("hawq", problem, {"probes": probes})
        prices.append(problem.price(HESSIAN))
    assert prices[1] > 2 * prices[0]  # each of ten products runs through part of the network
