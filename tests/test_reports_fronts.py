"""Hypervolume, accuracy at equal BOPs, what is attained, and curves of loss over compute, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.comparison import gather
from reports.curves_figure import spent_and_loss
from reports.fronts import at_bops, attained, curves, fronts_table
from reports.pareto import Point, hypervolume
from tests.fabricated import fail, make_plan, make_suite, write_records

BOX = (1.0, 16.0)
points = st.builds(Point, st.integers(1, 16).map(float), st.integers(0, 20).map(lambda k: k / 20))
many = st.lists(points, min_size=1, max_size=8)


@given(many, st.integers(0, 2**32 - 1))
def test_the_hypervolume_is_the_share_of_the_rectangle_that_is_dominated(found, seed):
    draws = 4000
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(0, math.log(BOX[1]), draws), generator.uniform(0.1, 1, draws)
    hit = np.zeros(draws, dtype=bool)
    for point in found:
        hit |= (math.log(point.bops) <= x) & (point.accuracy >= y)
    share = hypervolume(found, BOX, 0.1)
    # Five standard errors of a binomial share, and one draw.
    assert abs(share - hit.mean()) <= 5 * math.sqrt(max(share * (1 - share), 1e-9) / draws) + 1 / draws


@given(many, points)
def test_a_dominated_point_adds_nothing_and_any_point_takes_nothing_away(found, extra):
    before, after = hypervolume(found, BOX, 0.1), hypervolume([*found, extra], BOX, 0.1)
    if any(point.dominates(extra) or point == extra for point in found):
        assert after == before
    assert after >= before - 1e-12
    assert 0 <= after <= 1


def test_points_outside_the_rectangle():
    assert hypervolume([Point(32.0, 0.9), Point(2.0, 0.05)], BOX, 0.1) == 0
    assert hypervolume([Point(0.5, 1.0)], BOX, 0.1) == pytest.approx(1)
    with pytest.raises(ValueError, match="empty"):
        hypervolume([], (2.0, 2.0), 0.1)


def test_accuracy_at_equal_bops_is_linear_in_their_logarithm():
    found = [Point(8.0, 0.8), Point(2.0, 0.6)]
    assert at_bops(found, 4.0) == pytest.approx(0.7)
    assert [at_bops(found, bops) for bops in (2.0, 8.0)] == pytest.approx([0.6, 0.8])
    assert at_bops(found, 8.07) == pytest.approx(0.8)  # within 1 % of the dearest
    assert at_bops(found, 8.1) is None
    assert at_bops(found, 1.9) is None


@given(many)
def test_what_is_attained_never_falls(found):
    grid = np.array([0.5, *range(1, 20)])
    best = attained(found, grid)
    cheapest = min(point.bops for point in found)
    assert np.isnan(best[grid < cheapest]).all()
    reached = best[grid >= cheapest]
    assert (np.diff(reached) >= 0).all()
    assert reached[-1] == max(point.accuracy for point in found)


CEILINGS = ("uniform:w4a2", "uniform:w4a3", "uniform:w4a4")


def compared(tmp_path, change=None, **suite):
    chosen = {"ceilings": CEILINGS, "seeds": (0, 1, 2)} | suite
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"], **chosen))
    return gather(plan, write_records(plan, tmp_path, change))


def test_the_table_sets_rows_beside_uniform_and_leaves_out_what_failed(tmp_path):
    def better(trial, result, _observed):
        result["metrics"]["test_accuracy"] = 0.8 + 0.05 * (trial.row == "hawq") + 0.001 * trial.spec.seed

    table = fronts_table(compared(tmp_path, better))
    assert [row.cells[1] for row in table.rows] == ["uniform-lsq", "hawq"]
    assert "3\u00a0pairs" in table.rows[1].cells[4]
    assert table.rows[1].cells[4].startswith("+")
    assert table.rows[0].cells[5].count("GBOPs") == 3

    def failing(trial, result, observed):
        if trial.row == "hawq" and trial.spec.seed == 1 and trial.ceiling == CEILINGS[0]:
            fail(result, observed)

    broken = compared(tmp_path / "broken", failing)
    assert [curve.row for curve in curves(broken, "mobilenet_v2")] == ["uniform-lsq"]
    assert fronts_table(compared(tmp_path / "one", ceilings=CEILINGS[:1])).rows == ()


def test_a_searchs_loss_begins_where_its_search_ended(tmp_path):
    def curve(_trial, result, _observed):
        result["curves"]["finetune"] = [{"step": 17, "loss": 2.0}, {"step": 170, "loss": 1.0}]

    comparison = compared(tmp_path, curve)
    cells = {cell.row: cell for cell in comparison.cells}
    # Fabricated accounts grant 8 epochs, of which a search takes a quarter; fine-tuning has 170 steps.
    for row, first in (("uniform-lsq", 0.8), ("hawq", 2.6)):
        assert np.array(spent_and_loss(cells[row].ok[0])) == pytest.approx(np.array([(first, 2.0), (8.0, 1.0)]))
