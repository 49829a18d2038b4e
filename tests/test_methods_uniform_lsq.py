"""Uniform LSQ: the pair of widths with the most BOPs that fits."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.suites.spec import Space
from methods.allocation import CeilingError
from methods.quantization.cost import bops, uniform_bits
from methods.quantization.policy import LayerBits
from tests.problems import make_method, make_problem

ONE_WIDTH = make_problem(space=Space(weights=(4,), activations=(3, 8)))
SEVERAL = make_problem(space=Space(weights=(2, 3, 4, 6), activations=(3, 8)))


def chosen(problem: object, ceiling: int) -> tuple[LayerBits, dict[str, object]]:
    problem.ceiling = ceiling
    searched = make_method("uniform-lsq", problem).result()
    (bits,) = set(searched.policy.values())
    return bits, dict(searched.report)


@settings(max_examples=30)
@given(st.floats(0, 1.5), st.booleans())
def test_it_takes_the_most_bops_that_fit(share, several):
    problem = SEVERAL if several else ONE_WIDTH
    weights = (2, 3, 4, 6) if several else (4,)
    pairs = [LayerBits(w, a) for w, a in product(weights, range(2, 9)) if not several or abs(w - a) <= 1]
    costs = {pair: bops(problem.ledger, uniform_bits(problem.ledger, *pair)) for pair in pairs}
    ceiling = min(costs.values()) + int(share * (max(costs.values()) - min(costs.values())))
    bits, report = chosen(problem, ceiling)
    fitting = {pair: cost for pair, cost in costs.items() if cost <= ceiling}
    assert bits == max(fitting, key=lambda pair: (fitting[pair], pair.activation))
    listed = {(row["weight_bits"], row["activation_bits"], row["bops"]) for row in report["fitting"]}
    assert listed == {(*pair, cost) for pair, cost in fitting.items()}


def test_on_a_tie_activations_get_the_higher_width():
    problem = make_problem(space=Space(weights=(3, 4), activations=(3, 8)))
    bits, _ = chosen(problem, bops(problem.ledger, uniform_bits(problem.ledger, 3, 4)))
    assert bits == LayerBits(3, 4)  # 4x3 costs the same


def test_activation_widths_between_the_candidates_are_used():
    bits, _ = chosen(ONE_WIDTH, bops(ONE_WIDTH.ledger, uniform_bits(ONE_WIDTH.ledger, 4, 5)))
    assert bits == LayerBits(4, 5)


def test_below_every_pair_it_says_so():
    ceiling = bops(ONE_WIDTH.ledger, uniform_bits(ONE_WIDTH.ledger, 4, 2)) - 1
    with pytest.raises(CeilingError, match=f"{ceiling} BOPs"):
        chosen(ONE_WIDTH, ceiling)
