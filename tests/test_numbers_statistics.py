"""Means, intervals and sampling errors against closed forms, scipy, and their own promised coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from reports.numbers.statistics import Interval, mean_interval, paired_difference, sampling_error, wilson_interval

accuracies = st.floats(0, 1)
samples = st.lists(accuracies, min_size=2, max_size=30)

ROUNDING = 1e-12
"""Sums of at most 30 numbers in 0..1 round by at most 30 * 2^-53 each; scipy orders them differently."""


def test_two_values_have_the_interval_of_the_closed_form():
    # n = 2: t(1, 0.975) = tan(pi (0.975 - 1/2)), s / sqrt(2) = |x - y| / 2.
    found = mean_interval([0.90, 0.94])
    half = math.tan(math.pi * 0.475) * 0.02
    assert found.value == pytest.approx(0.92)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(0.92 - half)
    assert found.interval.high == pytest.approx(0.92 + half)


@given(samples, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_scipys(values, confidence):
    found = mean_interval(values, confidence)
    error = scipy.stats.sem(values)
    assert found.interval is not None
    if error < 1e-9:  # the values are equal but for rounding, which scipy and we sum differently
        assert found.interval.width < 1e-6
        return
    low, high = scipy.stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=error)
    # Cancellation in x - m leaves s a relative error of about 2^-53 / s; t(1, 0.995) = 63.7 multiplies it.
    assert found.interval.low == pytest.approx(low, abs=1e-6 * (high - low) + ROUNDING)
    assert found.interval.high == pytest.approx(high, abs=1e-6 * (high - low) + ROUNDING)


@given(samples, st.randoms())
def test_order_does_not_matter(values, dice):
    permuted = list(values)
    dice.shuffle(permuted)
    assert mean_interval(permuted) == mean_interval(values)  # fsum is exact: bit for bit


@given(accuracies)
def test_one_value_has_no_interval(value):
    found = mean_interval([value])
    assert (found.value, found.n, found.interval, found.degenerate) == (value, 1, None, False)


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf], [0.5, math.nan, 0.6]])
def test_nothing_and_what_is_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_covers_the_mean_as_often_as_it_says(seeds):
    # Each of N runs covers with probability 0.95, so the count is Binomial(N, 0.95): its standard deviation is
    # sqrt(N * 0.95 * 0.05) and 4 of them leave a chance of 6e-5 a case for a correct interval to fail here. The seed
    # is fixed, so it fails always or never. A z-interval covers 70 % at n = 2 and fails by a wide margin.
    runs = 4000
    draws = np.random.default_rng(seeds).normal(0.93, 0.01, size=(runs, seeds))
    covered = sum(0.93 in mean_interval(list(row)).interval for row in draws)
    assert abs(covered - 0.95 * runs) <= 4 * math.sqrt(runs * 0.95 * 0.05)


def test_a_paired_difference_uses_the_seeds_that_both_have():
    found = paired_difference({0: 0.9, 1: 0.8, 7: 0.1}, {1: 0.7, 0: 0.85, 3: 0.2})
    alone = mean_interval([0.9 - 0.85, 0.8 - 0.7])
    assert found == alone
    assert found.n == 2


def test_without_common_seeds_there_is_no_difference():
    assert paired_difference({0: 0.9}, {1: 0.9}) is None


@given(st.dictionaries(st.integers(0, 9), accuracies, min_size=2, max_size=9), accuracies)
def test_what_all_seeds_share_falls_out_of_a_paired_difference(ours, shift):
    found = paired_difference({seed: value + shift for seed, value in ours.items()}, ours)
    assert found is not None
    assert found.value == pytest.approx(shift, abs=ROUNDING)
    assert found.degenerate  # no spread but rounding


@given(accuracies, st.integers(1, 60_000), st.sampled_from([1.0, 1.96]))
def test_the_sampling_interval_is_scipys_wilson(accuracy, images, z):
    right = round(accuracy * images)
    confidence = 1 - 2 * scipy.stats.norm.sf(z)
    theirs = scipy.stats.binomtest(right, images).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(right / images, images, z)
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)  # z came back through sf and isf: relative 1e-12
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)


@given(accuracies, st.integers(1, 60_000))
def test_the_sampling_interval_holds_its_accuracy_and_stays_in_bounds(accuracy, images):
    bounds = wilson_interval(accuracy, images)
    assert 0 <= bounds.low <= accuracy + ROUNDING
    assert accuracy - ROUNDING <= bounds.high <= 1
    assert bounds.width > 0


def test_the_sampling_error_is_walds_for_many_images():
    # Wilson over Wald at z = 1 is sqrt(1 + 1 / (4 n p (1 - p))) / (1 + 1/n): 1 + 1.3e-5 here.
    assert sampling_error(0.72, 50_000) == pytest.approx(math.sqrt(0.72 * 0.28 / 50_000), rel=2e-5)


def test_a_perfect_score_still_has_a_sampling_error():
    assert sampling_error(1.0, 360) == pytest.approx(0.5 / 361)


@pytest.mark.parametrize(("accuracy", "images"), [(math.nan, 10), (1.01, 10), (-0.1, 10), (0.5, 0)])
def test_what_is_no_accuracy_is_refused(accuracy, images):
    with pytest.raises(ValueError, match=r"accuracy in 0\.\.1"):
        wilson_interval(accuracy, images)


def test_an_interval_holds_its_ends():
    assert 0.25 in Interval(0.25, 0.5)
    assert 0.5 in Interval(0.25, 0.5)
    assert 0.51 not in Interval(0.25, 0.5)
