"""The front against its definition, and what must not change it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.numbers.pareto import COST_TOLERANCE, Point, front

# Few distinct values, so that ties in one coordinate and in both are common.
points = st.builds(Point, st.integers(1, 6), st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.text("abc", max_size=2))
clouds = st.lists(points, max_size=15)
# Steps of 0.4 %: two apart are equal at 1 %, four are not, so that costs equal pair by pair form chains.
near = st.builds(
    Point,
    st.integers(0, 8).map(lambda k: 1000 * 1.004**k),
    st.sampled_from([0.1, 0.2, 0.3]),
    st.text("abc", max_size=2),
)


@given(clouds)
def test_the_front_is_its_definition(cloud):
    kept = front(cloud)
    expected = [point for point in cloud if not any(other.dominates(point) for other in cloud)]
    assert sorted(kept) == sorted(expected)


@given(clouds, st.randoms())
def test_order_does_not_matter(cloud, dice):
    permuted = list(cloud)
    dice.shuffle(permuted)
    assert front(permuted) == front(cloud)


@given(clouds, points)
def test_a_dominated_point_changes_no_front(cloud, point):
    before = front(cloud)
    after = front([*cloud, point])
    if any(other.dominates(point) for other in cloud):
        assert after == before
    else:
        assert point in after


@given(clouds)
def test_the_front_rises(cloud):
    kept = front(cloud)
    pairs = sorted({(point.bops, point.accuracy) for point in kept})
    assert len({bops for bops, _ in pairs}) == len(pairs)
    assert all(right[1] > left[1] for left, right in pairwise(pairs))


@given(st.lists(near, max_size=12), near)
def test_with_a_tolerance_what_the_front_dominates_changes_no_front(cloud, point):
    before = front(cloud, COST_TOLERANCE)
    after = front([*cloud, point], COST_TOLERANCE)
    if any(kept.dominates(point, COST_TOLERANCE) for kept in before):
        assert after == before
    else:
        assert point in after


@given(st.lists(near, max_size=12))
def test_with_a_tolerance_the_front_is_what_none_of_it_dominates(cloud):
    kept = front(cloud, COST_TOLERANCE)
    for point in cloud:
        assert (point in kept) != any(other.dominates(point, COST_TOLERANCE) for other in kept)
    assert all(left.accuracy <= right.accuracy for left, right in pairwise(kept) if left.bops < right.bops)


def test_a_hair_less_cost_is_no_excuse_for_less_accuracy():
    uniform, random = Point(1_000_000, 0.90, "uniform-lsq"), Point(999_980, 0.79, "random")
    assert front([uniform, random]) == [random, uniform]
    assert front([uniform, random], COST_TOLERANCE) == [uniform]
    assert front([uniform, Point(980_000, 0.79, "cheaper")], COST_TOLERANCE)[0].name == "cheaper"


def test_equal_points_are_both_on_the_front():
    tie = [Point(5, 0.9, "hawq"), Point(5, 0.9, "metamix")]
    assert front([*tie, Point(6, 0.9, "dearer"), Point(5, 0.8, "worse")]) == tie


@pytest.mark.parametrize("point", [Point(math.nan, 0.5), Point(1, math.nan), Point(math.inf, 0.5)])
def test_what_is_not_finite_is_refused(point):
    with pytest.raises(ValueError, match="finite"):
        front([Point(1, 0.5), point])
