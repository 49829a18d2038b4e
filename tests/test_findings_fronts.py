"""Hypervolume, accuracy at equal BOPs, what is attained, and curves of loss over compute, against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.quantization.cost import bops, uniform_bits
from reports.figures.curves import spent_and_loss
from reports.findings.comparison import gather
from reports.findings.fronts import at_bops, attained, curves, fronts_table, rectangle
from reports.numbers.display import gbops
from reports.numbers.pareto import Point, hypervolume
from tests.fabricated import Shelf, fail, make_plan, make_suite, write_records

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


def test_accuracy_at_equal_bops_is_not_the_better_of_two_test_accuracies():
    twice = [Point(2.0, 0.5), Point(2.0, 0.7), Point(8.0, 0.8)]
    assert at_bops(twice, 2.0) == pytest.approx(0.6)
    assert at_bops(twice, 4.0) == pytest.approx(0.7)


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


def compared(tmp_path, change=None, methods=("float", "uniform-lsq", "hawq"), leave_out=lambda trial: False, **suite):
    chosen = {"ceilings": CEILINGS, "seeds": (0, 1, 2)} | suite
    plan = make_plan(make_suite(methods, **chosen))
    return gather(plan, write_records(plan, tmp_path, change, leave_out=leave_out))


def test_the_rectangle_depends_on_the_suite_and_the_network_alone(tmp_path):
    """A row that is far cheaper than the others moves no edge and no other row's hypervolume."""

    def cheap(trial, result, _observed):
        if trial.row == "hawq":
            result["cost"]["bops"]["edges8"] //= 10

    few = compared(tmp_path / "few", methods=("uniform-lsq",))
    plan = make_plan(make_suite(("float", "uniform-lsq", "hawq"), ceilings=CEILINGS, seeds=(0, 1, 2)))
    all_rows = gather(plan, Shelf(plan, cheap))  # in memory: no folder takes costs that are not the policy's
    layers = few.plan.trials[0].ledger
    # The lowest widths of the space are w4a3; ceilings w4a2, w4a3, w4a4.
    lowest, ceilings = (
        bops(layers, uniform_bits(layers, 4, 3)),
        [bops(layers, uniform_bits(layers, 4, a)) for a in (2, 4)],
    )
    edges = lowest, ceilings[1] * (ceilings[1] / ceilings[0]) ** 0.5
    assert rectangle(few, "mobilenet_v2") == rectangle(all_rows, "mobilenet_v2") == pytest.approx(edges)
    alone, beside = fronts_table(few).rows[0].cells, fronts_table(all_rows).rows[0].cells
    assert alone == beside
    assert alone[-1] == f"rectangle from {gbops(edges[0])} to {gbops(edges[1])} GBOPs and from 10.00 to 100 %"


def test_one_ceiling_written_twice_is_no_curve(tmp_path):
    def alike(outcome):
        spec = outcome.trial.spec.model_copy(update={"ceiling_bops": 10**9})
        return replace(outcome, trial=replace(outcome.trial, spec=spec))

    comparison = compared(tmp_path, methods=["uniform-lsq"])
    cells = tuple(replace(cell, outcomes=tuple(map(alike, cell.outcomes))) for cell in comparison.cells)
    assert fronts_table(comparison).rows
    assert fronts_table(replace(comparison, cells=cells)).rows == ()


def test_the_table_sets_rows_beside_uniform_and_counts_failures_as_worst(tmp_path):
    def better(trial, result, _observed):
        result["metrics"]["test_accuracy"] = 0.8 + 0.05 * (trial.row == "hawq") + 0.001 * trial.spec.seed

    table = fronts_table(compared(tmp_path, better))
    assert [row.cells[1] for row in table.rows] == ["uniform-lsq", "hawq"]
    assert "3\u00a0pairs" in table.rows[1].cells[4]
    assert table.rows[1].cells[4].startswith("+")
    assert table.header[5:8] == tuple(f"At {name}, %" for name in CEILINGS)
    assert all(row.cells[7].startswith(f"{85.1 if row.cells[1] == 'hawq' else 80.1:.2f}\u00a0[") for row in table.rows)

    def failing(trial, result, observed):
        if trial.row == "hawq" and trial.spec.seed == 1 and trial.ceiling in CEILINGS[:2]:
            fail(result, observed)

    broken = compared(tmp_path / "broken", failing)
    whole = fronts_table(compared(tmp_path / "whole", lambda *_: None))
    (failed,) = (curve for curve in curves(broken, "mobilenet_v2") if curve.row == "hawq")
    ceiling = next(t.spec.ceiling_bops for t in broken.plan.trials if t.ceiling == CEILINGS[0] and t.row == "hawq")
    assert Point(ceiling, 0.0, "hawq") in failed.points[1]
    assert (failed.failed, failed.trials) == (2, 9)
    cells = fronts_table(broken).rows[1].cells
    assert cells[-1].endswith("2 of 9 trials failed or over the ceiling")
    assert float(cells[3].split("\u00a0")[0]) < float(whole.rows[1].cells[3].split("\u00a0")[0]) - 1

    missing = compared(tmp_path / "missing", leave_out=lambda trial: trial.row == "hawq" and trial.spec.seed == 1)
    assert [curve.row for curve in curves(missing, "mobilenet_v2")] == ["uniform-lsq"]
    assert fronts_table(compared(tmp_path / "one", ceilings=CEILINGS[:1])).rows == ()


def test_hypervolumes_are_paired_by_seed_where_the_float_weights_are_the_same(tmp_path):
    def elsewhere(trial, _result, observed):
        if trial.row == "hawq" and trial.spec.seed == 0 and trial.ceiling == CEILINGS[1]:
            observed["weights_digest"] = "other"

    paired = [
        fronts_table(compared(tmp_path / name, change)).rows[1].cells
        for name, change in (("alike", lambda *_: None), ("other", elsewhere))
    ]
    assert ["3\u00a0pairs" in cells[4] for cells in paired] == [True, False]
    assert "2\u00a0pairs" in paired[1][4]
    assert [cells[2] for cells in paired] == ["3", "3"]


def test_a_searchs_loss_begins_where_its_search_ended(tmp_path):
    def curve(_trial, result, _observed):
        result["curves"]["finetune"] = [{"step": 17, "loss": 2.0}, {"step": 170, "loss": 1.0}]

    comparison = compared(tmp_path, curve)
    cells = {cell.row: cell for cell in comparison.cells}
    # Fabricated accounts grant 8 epochs, of which a search takes a quarter; fine-tuning has 170 steps.
    for row, first in (("uniform-lsq", 0.8), ("hawq", 2.6)):
        assert np.array(spent_and_loss(cells[row].ok[0])) == pytest.approx(np.array([(first, 2.0), (8.0, 1.0)]))
