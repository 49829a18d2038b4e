"""Allocation: equal to brute force on small instances, within its ceiling always, and to a published optimum."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.allocation import CeilingError, allocate, best_ordered_policy, best_policy, count_feasible, groups_of
from methods.quantization.cost import Layer, Ledger, bops, with_pins
from methods.quantization.policy import Candidates, LayerBits, Policy, PolicyError
from tests.strategies import candidates, ledgers, seeds

GOLDEN = Path(__file__).parent / "golden" / "hawq_v3_resnet18.json"

# Whole numbers keep sums exact, so that equal means equal; few of them make equal sums and equal values common.
WHOLE = st.integers(-4, 4).map(float)
# Any scale between layers that a float can hold with room for sums: traces times errors span ten orders.
REAL = st.floats(-1e12, 1e12)

Instance = tuple[list[list[int]], list[list[float]]]


@st.composite
def instances(draw: st.DrawFn, value: st.SearchStrategy[float] = WHOLE) -> Instance:
    """Up to 4 groups of up to 4 choices: 256 picks for brute force. Costs from 0 to 6 collide often."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    costs = [draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)) for size in sizes]
    values = [draw(st.lists(value, min_size=size, max_size=size)) for size in sizes]
    return costs, values


def picks_within(costs: list[list[int]], ceiling: int) -> Iterator[tuple[int, ...]]:
    every = product(*(range(len(row)) for row in costs))
    return (picks for picks in every if total(costs, picks) <= ceiling)


def total(rows: list[list[Any]], picks: tuple[int, ...] | list[int]) -> Any:
    return sum(row[pick] for row, pick in zip(rows, picks, strict=True))


def cheapest(costs: list[list[int]]) -> int:
    return sum(min(row) for row in costs)


# allocate


@st.composite
def ceilings(draw: st.DrawFn, costs: list[list[int]]) -> int:
    """What some picks cost, or one less: where a ceiling that is read one too high or too low shows."""
    exact = total(costs, [draw(st.integers(0, len(row) - 1)) for row in costs])
    return max(exact - draw(st.integers(0, 1)), cheapest(costs))


@settings(max_examples=200)  # a wrong pruning loses the optimum in one instance of a hundred
@given(instances(), st.data())
def test_value_then_cost_equal_brute_force(instance: Instance, data: st.DataObject) -> None:
    costs, values = instance
    ceiling = data.draw(ceilings(costs))
    picks = allocate(costs, values, ceiling)
    best = min((total(values, other), total(costs, other)) for other in picks_within(costs, ceiling))
    assert (total(values, picks), total(costs, picks)) == best


@settings(max_examples=200)
@given(instances(REAL), st.data())
def test_real_values_equal_brute_force_to_rounding(instance: Instance, data: st.DataObject) -> None:
    costs, values = instance
    ceiling = data.draw(ceilings(costs))
    picks = allocate(costs, values, ceiling)
    best = min(total(values, other) for other in picks_within(costs, ceiling))
    # Two sums of 4 terms, each rounded 3 times relative to the terms' sizes.
    scale = sum(max(abs(value) for value in row) for row in values)
    assert total(costs, picks) <= ceiling
    assert total(values, picks) <= best + 6 * 2.0**-53 * scale


@given(seeds())
def test_correlated_rows_equal_brute_force(seed: int) -> None:
    # As in networks: dearer choices are better and costs differ by orders, so that bounds prune and steps lie off
    # the hull. Five groups of four choices: 1024 picks.
    draw = random.Random(seed)
    costs = [sorted(draw.randrange(size) for _ in range(4)) for size in (3, 10, 30, 100, 300)]
    values = [sorted((float(draw.randrange(1 + row[-1])) for _ in row), reverse=True) for row in costs]
    ceiling = draw.randrange(cheapest(costs), sum(row[-1] for row in costs) + 1)
    best = min(total(values, other) for other in picks_within(costs, ceiling))
    picks = allocate(costs, values, ceiling)
    assert total(costs, picks) <= ceiling
    assert total(values, picks) == best


@given(instances(), st.lists(st.integers(0, 24), min_size=2, max_size=6))
def test_a_higher_ceiling_is_never_worse(instance: Instance, rooms: list[int]) -> None:
    costs, values = instance
    ceilings = [cheapest(costs) + room for room in sorted(rooms)]
    reached = [total(values, allocate(costs, values, ceiling)) for ceiling in ceilings]
    assert reached == sorted(reached, reverse=True)


@given(instances())
def test_the_cheapest_ceiling_fits_and_one_below_it_does_not(instance: Instance) -> None:
    costs, values = instance
    least = cheapest(costs)
    assert total(costs, allocate(costs, values, least)) == least
    with pytest.raises(CeilingError, match=f"costs {least}, above the ceiling {least - 1}"):
        allocate(costs, values, least - 1)


@given(instances())
def test_without_a_ceiling_every_group_takes_its_best(instance: Instance) -> None:
    costs, values = instance
    picks = allocate(costs, values, sum(max(row) for row in costs))
    assert total(values, picks) == sum(min(row) for row in values)


@given(instances(), st.integers(0, 24), st.integers(1, 10**9))
def test_the_unit_of_costs_does_not_matter(instance: Instance, room: int, unit: int) -> None:
    # Up to 1e9 x 24: BOPs of real networks are 1e9..1e11.
    costs, values = instance
    ceiling = cheapest(costs) + room
    scaled = [[cost * unit for cost in row] for row in costs]
    assert allocate(scaled, values, ceiling * unit) == allocate(costs, values, ceiling)


@given(instances(), st.integers(0, 24), st.data())
def test_a_constant_added_to_a_group_does_not_matter(instance: Instance, room: int, data: st.DataObject) -> None:
    costs, values = instance
    ceiling = cheapest(costs) + room
    raised = [[value + offset for value in row] for row in values for offset in [data.draw(WHOLE)]]
    assert total(values, allocate(costs, raised, ceiling)) == total(values, allocate(costs, values, ceiling))


def test_no_groups_need_no_choice() -> None:
    assert allocate([], [], 0) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        allocate([[1, 2]], [[0.0, bad]], 2)


def test_rows_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        allocate([[1, 2]], [], 2)


@given(seeds())
def test_a_network_s_size_is_solved_at_once_and_within_the_ceiling(seed: int) -> None:
    # 52 groups of 3 choices with random values: 6e24 picks, so brute force cannot help here; the greedy picks can.
    draw = random.Random(seed)
    costs = [[macs * bits for bits in (12, 16, 32)] for macs in (draw.randrange(10**6, 10**8) for _ in range(52))]
    values = [sorted((draw.random() for _ in range(3)), reverse=True) for _ in range(52)]
    ceiling = sum(row[1] for row in costs)
    picks = allocate(costs, values, ceiling)
    assert total(costs, picks) <= ceiling
    assert total(values, picks) <= total(values, [1] * 52)


# Ties, policies and counts


def every_policy(ledger: Ledger, choices: Candidates) -> Iterator[dict[str, LayerBits]]:
    """All policies whose layers, pinned ones included, have one activation width per tie."""
    for bits in product(*choices.values()):
        policy = dict(zip(choices, bits, strict=True))
        pinned = with_pins(ledger, policy)
        grids = {(layer.tie, pinned[layer.name].activation) for layer in ledger if layer.tie}
        if len(grids) == len({tie for tie, _ in grids}):
            yield policy


@st.composite
def searches(draw: st.DrawFn) -> tuple[Ledger, Candidates]:
    ledger = draw(ledgers())
    return ledger, draw(candidates(ledger))


@given(searches(), st.data())
def test_best_policy_equals_brute_force_over_tied_policies(
    search: tuple[Ledger, Candidates], data: st.DataObject
) -> None:
    ledger, choices = search
    table = {(name, bits): data.draw(WHOLE) for name, row in choices.items() for bits in row}
    policies = list(every_policy(ledger, choices))
    ceiling = data.draw(st.sampled_from([bops(ledger, policy) for policy in policies])) + data.draw(st.integers(0, 3))
    best = best_policy(ledger, choices, ceiling, lambda name, bits: table[name, bits])

    def penalty(policy: Any) -> float:
        return sum(table[item] for item in policy.items())

    assert dict(best) in policies
    assert bops(ledger, best) <= ceiling
    assert penalty(best) == min(penalty(policy) for policy in policies if bops(ledger, policy) <= ceiling)


@given(searches())
def test_groups_hold_every_searchable_layer_once_and_offer_exactly_the_tied_policies(
    search: tuple[Ledger, Candidates],
) -> None:
    ledger, choices = search
    groups = groups_of(ledger, choices)
    assert sorted(name for group in groups for name in group.layers) == sorted(choices)
    offered = [
        {
            name: bits
            for group, pick in zip(groups, picks, strict=True)
            for name, bits in zip(group.layers, pick, strict=True)
        }
        for picks in product(*(group.choices for group in groups))
    ]
    policies = list(every_policy(ledger, choices))
    assert len(offered) == len(policies)
    assert all(policy in offered for policy in policies)


def two_tied(*, pinned: bool = False) -> Ledger:
    first = Layer("a", "conv", macs=10, weights=10, kind="unsigned", tie="a", pinned=pinned)
    return (first, Layer("b", "conv", macs=1, weights=1, kind="unsigned", tie="a"))


def test_ties_bind_activations_and_leave_weights_free() -> None:
    choices = {name: [LayerBits(w, a) for w in (4, 8) for a in (4, 8)] for name in ("a", "b")}
    (group,) = groups_of(two_tied(), choices)
    assert set(group.choices) == {(LayerBits(v, a), LayerBits(w, a)) for v in (4, 8) for w in (4, 8) for a in (4, 8)}


def test_every_tied_layer_s_penalty_and_cost_count() -> None:
    # "a" would rather have 4 bits and "b" 8; the stronger wish wins, and "a" costs ten times what "b" costs.
    choices = {name: [LayerBits(4, 4), LayerBits(4, 8)] for name in ("a", "b")}
    wishes = {("a", 4): 0.0, ("a", 8): 1.0, ("b", 4): 2.0, ("b", 8): 0.0}
    for ceiling, activation in ((11 * 32, 8), (11 * 32 - 1, 4)):
        policy = best_policy(two_tied(), choices, ceiling, lambda name, bits: wishes[name, bits.activation])
        assert {bits.activation for bits in policy.values()} == {activation}


def test_a_layer_tied_to_a_pinned_one_gets_its_activation_bits() -> None:
    choices = {"b": [LayerBits(w, a) for w in (4, 8) for a in (4, 8)]}
    (group,) = groups_of(two_tied(pinned=True), choices)
    assert group.choices == ((LayerBits(4, 8),), (LayerBits(8, 8),))


@pytest.mark.parametrize("pinned", [True, False])
def test_tied_layers_without_common_activation_bits_are_named(pinned: bool) -> None:
    choices = {"b": [LayerBits(4, 4)]} | ({} if pinned else {"a": [LayerBits(4, 8)]})
    with pytest.raises(PolicyError, match="no activation bits in common: "):
        groups_of(two_tied(pinned=pinned), choices)


@given(searches())
def test_the_policy_lists_the_searchable_layers_in_graph_order(search: tuple[Ledger, Candidates]) -> None:
    ledger, choices = search
    policy = best_policy(ledger, choices, 64 * sum(layer.macs for layer in ledger), lambda name, bits: 0.0)
    assert list(policy) == [layer.name for layer in ledger if not layer.pinned]


@given(searches())
def test_a_ceiling_below_the_cheapest_policy_is_refused_with_both_figures(search: tuple[Ledger, Candidates]) -> None:
    ledger, choices = search
    least = min(bops(ledger, policy) for policy in every_policy(ledger, choices))
    assert bops(ledger, best_policy(ledger, choices, least, lambda name, bits: 0.0)) == least
    with pytest.raises(CeilingError, match=f"costs {least} BOPs, above the ceiling of {least - 1} BOPs"):
        best_policy(ledger, choices, least - 1, lambda name, bits: 0.0)


@given(searches(), st.data())
def test_feasible_policies_are_counted_as_brute_force_does(
    search: tuple[Ledger, Candidates], data: st.DataObject
) -> None:
    ledger, choices = search
    costs = sorted(bops(ledger, policy) for policy in every_policy(ledger, choices))
    ceiling = data.draw(st.sampled_from(costs)) + data.draw(st.integers(-1, 1))
    fitting = sum(cost <= ceiling for cost in costs)
    assert count_feasible(ledger, choices, ceiling, limit=10**6) == fitting
    limit = data.draw(st.integers(1, 300))
    assert count_feasible(ledger, choices, ceiling, limit=limit) == min(fitting, limit)


def test_counting_stops_at_the_limit() -> None:
    # 3^60 policies: counting them all would not end.
    ledger = tuple(Layer(f"{index}", "conv", macs=1, weights=1, kind="unsigned") for index in range(60))
    choices = {layer.name: [LayerBits(4, 3), LayerBits(4, 4), LayerBits(4, 8)] for layer in ledger}
    assert count_feasible(ledger, choices, 60 * 32, limit=100) == 100


@st.composite
def ordered_searches(draw: st.DrawFn) -> tuple[Ledger, Candidates, dict[str, int], dict[tuple[str, LayerBits], float]]:
    """A network whose layers may all have the same three widths, their ranks (equal ones are common) and penalties."""
    ledger = draw(ledgers())
    widths = [LayerBits(4, 3), LayerBits(4, 4), LayerBits(4, 8)]
    names = [layer.name for layer in ledger if not layer.pinned]
    rank = {name: draw(st.integers(0, 3)) for name in names}
    return ledger, dict.fromkeys(names, widths), rank, {(n, b): draw(WHOLE) for n in names for b in widths}


@settings(max_examples=200)
@given(ordered_searches(), st.data())
def test_an_ordered_policy_is_the_best_of_those_whose_bits_rise_with_the_rank(search, data) -> None:
    ledger, choices, rank, penalties = search
    groups = groups_of(ledger, choices)
    place = {group: (sum(rank[n] for n in group.layers) / len(group.layers), k) for k, group in enumerate(groups)}
    free = sorted((group for group in groups if len(group.choices) > 1), key=lambda group: place[group])

    def ordered(policy: Policy) -> bool:
        rising = [policy[group.layers[0]].activation for group in free]
        return rising == sorted(rising)

    def value(policy: Policy) -> float:
        return sum(penalties[item] for item in policy.items())

    fitting = [policy for policy in every_policy(ledger, choices) if ordered(policy)]
    ceiling = data.draw(st.sampled_from([bops(ledger, policy) for policy in fitting]))
    found = best_ordered_policy(ledger, choices, ceiling, lambda name, bits: penalties[name, bits], rank)
    best = min((value(p), bops(ledger, p)) for p in fitting if bops(ledger, p) <= ceiling)
    assert ordered(found)
    assert (value(found), bops(ledger, found)) == best


def test_an_order_of_many_layers_and_widths_is_found_in_time() -> None:
    # Seven widths in 60 layers: C(66, 6) = 91 million ordered policies.
    ledger = tuple(Layer(f"{index}", "conv", macs=1 + index % 7, weights=1, kind="unsigned") for index in range(60))
    choices = {layer.name: [LayerBits(4, bits) for bits in range(2, 9)] for layer in ledger}
    ceiling = 20 * sum(layer.macs for layer in ledger)
    rank = {layer.name: float(index) for index, layer in enumerate(ledger)}
    policy = best_ordered_policy(ledger, choices, ceiling, lambda name, bits: rank[name] / bits.activation**2, rank)
    assert bops(ledger, policy) <= ceiling
    assert len({bits.activation for bits in policy.values()}) > 1


# HAWQ-v3's published ResNet-18 example


def hawq_example() -> tuple[Ledger, Candidates, int, dict[str, Any]]:
    facts: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    tie_of = {index: f"layer{pair[0]}" for pair in facts["ties"] for index in pair}
    ledger = tuple(
        Layer(f"layer{index}", "conv", macs, weights, "unsigned", tie=tie_of.get(index))
        for index, (macs, weights) in enumerate(zip(facts["macs"], facts["weights"], strict=True))
    )
    low, high = (sum(facts["macs"]) * bits * bits for bits in facts["bits"])
    choices = {layer.name: [LayerBits(bits, bits) for bits in facts["bits"]] for layer in ledger}
    return ledger, choices, low + (high - low) // 2, facts


def hawq_objective(facts: dict[str, Any], policy: Policy) -> float:
    rows = zip(policy.values(), facts["trace"], facts["error_8"], facts["error_4"], strict=True)
    return math.fsum(trace * (error_8 - error_4) for bits, trace, error_8, error_4 in rows if bits.weight == 8)


def hawq_policy() -> tuple[Policy, Ledger, int, dict[str, Any]]:
    ledger, choices, ceiling, facts = hawq_example()
    gain = {
        layer.name: trace * (error_8 - error_4)
        for layer, trace, error_8, error_4 in zip(
            ledger, facts["trace"], facts["error_8"], facts["error_4"], strict=True
        )
    }

    def penalty(name: str, bits: LayerBits) -> float:
        return gain[name] if bits.weight == 8 else 0.0

    return best_policy(ledger, choices, ceiling, penalty), ledger, ceiling, facts


def test_hawq_v3_s_optimum_is_found() -> None:
    policy, ledger, ceiling, facts = hawq_policy()
    assert [bits.weight for bits in policy.values()] == facts["optimum"]
    assert bops(ledger, policy) <= ceiling


def test_hawq_v3_s_objective_is_reached() -> None:
    policy, _, _, facts = hawq_policy()
    assert hawq_objective(facts, policy) == pytest.approx(facts["objective"], abs=5e-7)  # printed to six decimals


def test_hawq_v3_s_ties_hold() -> None:
    policy, _, _, facts = hawq_policy()
    assert all(policy[f"layer{a}"].activation == policy[f"layer{b}"].activation for a, b in facts["ties"])


@given(searches())
def test_candidates_can_always_agree(search: tuple[Ledger, Candidates]) -> None:
    """Holds the strategy: a search without any policy would make the tests above empty."""
    assert any(True for _ in every_policy(*search))
