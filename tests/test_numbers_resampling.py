"""Sign flips, Holm, interquartile means and their intervals against scipy, closed forms and their promised rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from reports.numbers.resampling import (
    FEWEST_BLOCKS,
    _jackknife,
    holm,
    improvement,
    improvement_interval,
    interquartile_mean,
    profile,
    sign_flip_p,
)

differences = st.lists(st.integers(-20, 20).map(float), min_size=FEWEST_BLOCKS, max_size=11)
ps = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_the_jackknife_of_two_means_is_their_t_interval():
    """Variances s²/n of either add up: 5/12 + 1, with 3 + 1 degrees of freedom."""
    scores = {("a",): np.array([0.0, 1.0, 2.0, 3.0]), ("b",): np.array([0.0, 2.0])}
    found = _jackknife(scores, lambda left: sum(float(values.mean()) for values in left.values()), 0.95)
    half = scipy.stats.t.ppf(0.975, 4) * math.sqrt(5 / 12 + 1)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-12)


@given(differences)
def test_exact_flips_are_scipys(values):
    def total(x, axis):
        return np.abs(x.sum(axis))

    found = scipy.stats.permutation_test(
        (np.array(values),),
        total,
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
        vectorized=True,
    )
    assert sign_flip_p(values) == pytest.approx(found.pvalue, abs=1e-12)


def test_drawn_flips_come_close_to_exact_ones():
    values = np.random.default_rng(1).normal(0.3, 1.0, 16)
    exact, drawn = sign_flip_p([*values]), sign_flip_p([*values, 0.0])  # a zero changes no sum
    assert exact is not None
    assert drawn is not None
    assert 0 < exact < 1
    # A share of 100,000 draws: five standard errors.
    assert abs(exact - drawn) < 5 * math.sqrt(exact * (1 - exact) / 100_000) + 1e-4


def test_no_p_value_below_six_blocks():
    assert sign_flip_p([1.0] * 5) is None
    assert sign_flip_p([1.0] * 6) == 2 / 2**6
    assert sign_flip_p([0.0] * 6) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_flips_refuse_what_is_not_finite(value):
    with pytest.raises(ValueError, match="finite"):
        sign_flip_p([1.0] * 6 + [value])


def test_flips_keep_their_level_under_the_null():
    generator, trials = np.random.default_rng(2), 1500
    for draw in (
        generator.standard_normal,
        lambda size: generator.standard_t(2, size),
        lambda size: generator.uniform(-1, 1, size),
    ):
        found = sum((sign_flip_p(draw(9)) or 1) <= 0.05 for _ in range(trials))
        # Exact: at most 5 %, and 2^9 flips allow 25 / 512 = 4.88 %. Four standard errors of a binomial share.
        assert abs(found / trials - 0.0488) < 4 * math.sqrt(0.0488 * 0.9512 / trials)


@given(ps, st.randoms())
def test_holm_steps_down(values, dice):
    adjusted = holm(values)
    assert all(p <= a <= min(1.0, len(values) * p) for p, a in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)
    permuted = list(range(len(values)))
    dice.shuffle(permuted)
    again = holm([values[i] for i in permuted])
    assert all(again[place] == adjusted[i] for place, i in enumerate(permuted))


def test_holm_by_hand():
    # sorted 0.005, 0.011, 0.02, 0.4 times 4, 3, 2, 1
    assert holm([0.02, 0.005, 0.4, 0.011]) == pytest.approx([0.04, 0.02, 0.4, 0.033])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_interquartile_mean_is_scipys_trimmed_mean(values):
    assert interquartile_mean(np.array(values)) == pytest.approx(scipy.stats.trim_mean(values, 0.25), abs=1e-12)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_improvement_is_mann_whitneys_u(ours, theirs):
    x, y = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    u = scipy.stats.mannwhitneyu(x, y).statistic
    assert improvement({0: x[:, None]}, {0: y[:, None]}) == pytest.approx(u / (len(x) * len(y)))
    assert improvement({0: y[:, None]}, {0: x[:, None]}) == pytest.approx(1 - u / (len(x) * len(y)))


def test_improvement_weighs_cells_alike():
    one, two = np.array([[1.0]]), np.array([[0.0, 0.0, 0.0]])
    assert improvement({"a": one, "b": two}, {"a": two[:, :1], "b": two}) == pytest.approx((1 + 3 * 0.5) / 4)


@pytest.mark.parametrize("shift", [0.7, 1.5])
@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_the_interval_of_the_chance_to_be_better_covers_it(shift, shared):
    """Three networks, five seeds, three ceilings, of whose variance the given share is a block's own."""
    generator, hits, given_at_all, trials = np.random.default_rng(5), 0, 0, 600

    def scores(mean):
        own, rest = shared**0.5, (1 - shared) ** 0.5
        return {m: mean + own * generator.normal(size=(5, 1)) + rest * generator.normal(size=(5, 3)) for m in "abc"}

    for _ in range(trials):
        if interval := improvement_interval(scores(shift), scores(0.0)):
            given_at_all += 1
            hits += scipy.stats.norm.cdf(shift / 2**0.5) in interval
    assert given_at_all > 0.98 * trials
    # Three standard errors of a binomial share below 95 %, and not so wide that it covers always.
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials) < hits / given_at_all < 0.99


def test_there_is_no_interval_where_nothing_is_known_of_the_spread():
    one = {"a": np.array([[0.5, 0.6]])}
    assert improvement_interval(one, one) is None
    low = {"a": np.arange(4.0)[:, None]}
    assert improvement_interval({"a": low["a"] + 10}, low) is None  # wholly apart
    assert 0.5 in improvement_interval(low, low)


def test_a_profile_falls_from_one_to_nought():
    values = np.array([[-3.0, -1.0], [-2.0, 0.0]])
    assert profile(values, np.array([-4.0, -3.0, -1.5, 0.0])).tolist() == [1.0, 0.75, 0.5, 0.0]
