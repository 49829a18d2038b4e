"""Seeds that a gap needs: against simulated intervals, and where the spread comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.findings.comparison import gather
from reports.findings.power import POWER, advice, power_of, seeds_needed, spreads
from reports.numbers.statistics import mean_interval
from tests.fabricated import fail, make_plan, make_suite, write_records
from tests.harness import cli


@pytest.mark.parametrize(("gap", "seeds"), [(0.0, 4), (0.01, 4), (0.01, 10), (0.02, 5)])
def test_power_is_the_share_of_intervals_that_leave_out_nought(gap, seeds):
    generator, trials = np.random.default_rng(0), 4000
    found = [mean_interval([*generator.normal(gap, 0.01, seeds)]).interval for _ in range(trials)]
    share = sum(0 not in interval for interval in found if interval) / trials
    expected = power_of(gap, 0.01, seeds)
    # Four standard errors of a binomial share.
    assert abs(share - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5
    if gap == 0:
        assert expected == pytest.approx(0.05)


@given(st.floats(0.05, 5), st.floats(0.05, 5))
def test_the_fewest_seeds_are_the_fewest(gap, deviation):
    needed = seeds_needed(gap, deviation)
    assert needed is not None
    assert needed >= 3
    assert power_of(gap, deviation, needed) >= POWER
    assert needed == 3 or power_of(gap, deviation, needed - 1) < POWER


def test_more_seeds_for_smaller_gaps_and_none_for_hopeless_ones():
    needed = [seeds_needed(gap, 1.0) for gap in (2.0, 1.0, 0.5, 0.1)]
    assert needed == sorted(needed)
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 3


def spread_out(trial, result, _observed):
    """hawq is ahead by 0, 1 and 2 points: a deviation of 1."""
    ahead = 0.01 * trial.spec.seed if trial.row == "hawq" else 0.0
    result["metrics"]["test_accuracy"] = 0.5 + ahead


def test_the_spread_is_that_of_paired_differences(tmp_path):
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq", "random"], seeds=(0, 1, 2)))
    comparison = gather(plan, write_records(plan, tmp_path, spread_out))
    found = {spread.label.split(" · ")[1]: spread.deviation for spread in spreads(comparison)}
    assert found == pytest.approx({"hawq": 0.01, "random": 0.0})
    first, second = advice(comparison, 0.01, "records here")
    assert "0.71 points (records here: 2 cells, 4 degrees of freedom)" in first  # the root of the mean of 1 and 0
    assert "10 seeds at the largest, 1.00 points (mobilenet_v2 · hawq" in second


def test_what_has_no_difference_from_uniform_lsq_has_no_spread(tmp_path):
    def odd(trial, result, observed):
        if trial.row == "hawq":
            observed["weights_digest"] = "other"
        if trial.row == "random" and trial.spec.seed == 3:
            fail(result, observed)

    plan = make_plan(make_suite(["uniform-lsq", "hawq", "random", "metamix"], seeds=(0, 1, 2, 3)))
    found = spreads(gather(plan, write_records(plan, tmp_path, odd)))
    assert [spread.label.split(" · ")[1] for spread in found] == ["metamix"]


def test_without_three_seeds_nothing_is_known(tmp_path):
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1)))
    (line,) = advice(gather(plan, write_records(plan, tmp_path)), 0.01, "records here")
    assert "nothing is known" in line


def test_the_plan_tells_the_seeds_of_a_gap(tmp_path):
    ran = cli("plan", "--suite", "metamix-ablation", "--out", tmp_path, "--gap", "1")
    assert ran.code == 0, ran.err
    assert "a gap of 1 points from uniform LSQ" in ran.out
    assert "shipped records: 7 cells" in ran.out
    assert cli("plan", "--suite", "smoke", "--out", tmp_path, "--gap", "-1").code == 2
