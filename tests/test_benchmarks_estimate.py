"""What a plan will take: the arithmetic, on a clock of ours, and the command."""

import itertools

import pytest

from benchmarks import estimate as estimating
from benchmarks.estimate import Compiling, Estimate, compiling, estimate
from benchmarks.session import open_session
from tests.harness import TINY, cli, write_suite

STEPS = 1437 * 0.6 // 8
"""Steps of a recipe epoch at least: validation and test leave more than this share of the digits to training."""


@pytest.fixture
def opened(tmp_path):
    """A session of the tiny suite with these methods."""
    suite = write_suite(tmp_path, methods=["float", "uniform-lsq", "metamix"], seeds=[0, 1])
    return lambda methods: open_session(str(suite), tmp_path / "out", None, methods=methods)


def measured(session, monkeypatch, seconds) -> Estimate:
    """An estimate on a clock that says `seconds` for every piece of work, which is done."""

    def timed(_device, work):
        work()
        return next(seconds)

    monkeypatch.setattr(estimating, "_timed", timed)
    return estimate(session.plan, session.missing(), session.placed())


def test_every_row_takes_its_steps_times_a_step(opened, monkeypatch):
    found = measured(opened("float,uniform-lsq,metamix"), monkeypatch, itertools.repeat(1.0))
    by_row = {row.trial.row: row for row in found.rows}
    assert set(by_row) == {"float", "uniform-lsq", "metamix"}
    assert all(row.count == 2 for row in found.rows)
    epochs, share = TINY["compute"]["epochs"], TINY["compute"]["search_share"]
    whole = by_row["uniform-lsq"].time.finetune
    assert whole > epochs * STEPS
    assert by_row["float"].time.finetune == whole
    assert by_row["metamix"].time.finetune == pytest.approx((1 - share) * whole)
    # A selection step of MetaMix costs several fine-tuning steps' MACs: at a second each its share takes fewer seconds.
    assert 0 < by_row["metamix"].time.search < share * whole
    assert by_row["uniform-lsq"].time.search == 0
    pretraining = TINY["pretraining"]["epochs"] * whole / epochs * 8 / 64
    assert found.starts_seconds == pytest.approx(2 * (pretraining + by_row["float"].time.evaluation), rel=0.02)
    assert found.seconds == found.starts_seconds + sum(2 * row.time.total for row in found.rows)
    assert found.kept_bytes > 6 * 4 * 1000


def test_the_first_step_of_each_kind_is_not_counted(opened, monkeypatch):
    steady = measured(opened("uniform-lsq"), monkeypatch, itertools.repeat(1.0))
    slow_start = itertools.chain([3600.0], itertools.repeat(1.0))
    assert measured(opened("uniform-lsq"), monkeypatch, slow_start) == steady


@pytest.mark.parametrize(("seconds", "compiler", "answer"), [(0.01, "", "cannot repay"), (1e3, "none", "needs a comp")])
def test_compiling_is_not_tried_where_it_cannot_help(opened, monkeypatch, seconds, compiler, answer):
    session = opened("uniform-lsq")
    row = measured(session, monkeypatch, itertools.repeat(seconds)).rows[0]
    monkeypatch.setenv("CXX", compiler)
    found = compiling(row, session.workspace)
    assert isinstance(found, str)
    assert answer in found


def test_what_compiling_saves_is_less_by_the_wait():
    assert Compiling(eager=100.0, compiled=60.0, wait=30.0).saved == pytest.approx(10.0)
    assert Compiling(eager=100.0, compiled=60.0, wait=50.0).saved < 0


def test_the_plan_measures_on_request(tmp_path):
    suite = write_suite(tmp_path, methods=["uniform-lsq", "hawq"])
    plain = cli("plan", "--suite", suite, "--out", tmp_path / "out")
    assert "core-hours" not in plain.out
    ran = cli("plan", "--suite", suite, "--out", tmp_path / "out", "--measure")
    assert ran.code == 0, ran.err
    assert "core-hours" in ran.out
    assert "MiB of disk" in ran.out
    assert "resources.compile: no" in ran.out
    assert not list((tmp_path / "out").rglob("*.json"))
