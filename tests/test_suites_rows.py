"""Rows of a suite: settings of their own, grids of them, and what is refused."""

from __future__ import annotations

import pytest

from benchmarks.messages import SuiteError
from benchmarks.planning import plan
from benchmarks.suites.suite import load_suite
from tests.harness import tiny_suite

GRID = {
    "name": "uniform-lsq",
    "grid": {
        "quantizer": ["lsq", {"parameterisation": "beta-gamma", "sigmoid": True}],
        "recipe.optimizer.lr": [0.001, 0.003],
    },
}


def test_a_grid_is_a_row_for_each_combination():
    suite = tiny_suite(methods=["float", GRID])
    assert [entry.row for entry in suite.methods] == [
        "float",
        "uniform-lsq, lsq, lr 0.001",
        "uniform-lsq, lsq, lr 0.003",
        "uniform-lsq, beta-gamma sigmoid, lr 0.001",
        "uniform-lsq, beta-gamma sigmoid, lr 0.003",
    ]
    found = {trial.row: trial.spec for trial in plan(suite).trials}
    assert found["uniform-lsq, beta-gamma sigmoid, lr 0.003"].quantizer.sigmoid
    rates = {row: spec.recipe.optimizer.lr for row, spec in found.items()}
    assert list(rates.values()) == [0.001, 0.001, 0.003, 0.001, 0.003]
    assert len({spec.id for spec in found.values()}) == 5


def test_a_row_with_the_suite_s_own_settings_is_the_suite_s_own_trial():
    with_settings = plan(tiny_suite(methods=["float", GRID])).trials
    plain = plan(tiny_suite(methods=["float", "uniform-lsq"])).trials
    assert {trial.id for trial in plain} <= {trial.id for trial in with_settings}


def test_what_a_row_does_not_set_is_the_suite_s():
    suite = tiny_suite(
        quantizer="min-max",
        methods=[{"name": "float", "settings": {"recipe.batch_size": 16, "recipe.micro_batch": 16}}],
    )
    (trial,) = plan(suite).trials
    assert (trial.spec.recipe.batch_size, trial.spec.recipe.optimizer.lr) == (16, 0.001)
    assert trial.spec.quantizer.parameterisation == "min-max"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "float", "settings": {"compute.epochs": 9}}, "'compute.epochs' is no key of quantizer or recipe"),
        ({"name": "float", "settings": {"recipe.optimizer.rate": 9}}, "unknown key 'rate'"),
        ({"name": "float", "settings": {"recipe.batch_size.deep": 9}}, "'batch_size' holds no keys"),
        ({"name": "float", "settings": {"quantizer": "lsqq"}}, "lsq"),
        ({"name": "float", "grid": {"quantizer": "lsq"}}, "give lists of values by key"),
        ({"name": "float", "grid": {"quantizer": []}}, "give lists of values by key"),
        ({"name": "float", "grid": {"quantizer": ["lsq", "lsq"]}}, "must differ"),
    ],
)
def test_settings_that_cannot_be_are_refused(entry, message):
    with pytest.raises(SuiteError, match=message):
        tiny_suite(methods=[entry])


def test_the_shipped_grid_has_its_figure_s_axes():
    suite = load_suite("asymmetric-ranges")
    specs = [trial.spec for trial in plan(suite).trials if trial.spec.method.name == "uniform-lsq"]
    kinds = {(s.quantizer.parameterisation, s.quantizer.sigmoid) for s in specs}
    assert len(kinds) == 5
    assert len({s.recipe.optimizer.lr for s in specs}) == 3
    assert len({s.ceiling_bops for s in specs}) == 3
    assert len(specs) == 5 * 3 * 3 * 5
