"""How long a plan will take: the arithmetic, with a fake clock, and the command."""

import itertools
from dataclasses import replace

import pytest

from benchmarks.commands.options import Options
from benchmarks.commands.session import open_session
from benchmarks.ranks import Ranks
from benchmarks.trials import timing as estimating
from benchmarks.trials.harness import Harness
from benchmarks.trials.timing import Compiling, Estimate, compiling, estimate
from tests.harness import TINY, cli, write_suite

STEPS = 1437 * 0.6 // 8
"""Steps of a recipe epoch at least: validation and test leave more than this share of the digits to training."""


@pytest.fixture
def opened(tmp_path):
    """A session of the tiny suite with these methods."""
    suite = write_suite(tmp_path, methods=["float", "uniform-lsq", "metamix"], seeds=[0, 1])
    shared = ("recipe.micro_batch=4", "pretraining.recipe.micro_batch=32")
    chosen = Options(suite=str(suite), out=tmp_path / "out")
    return lambda methods, *overrides: open_session(
        replace(chosen, methods=methods, overrides=[*overrides, *(shared if overrides else ())])
    )


def measured(session, monkeypatch, seconds) -> Estimate:
    """An estimate on a clock that says `seconds` for every piece of work, which is done."""

    def timed(_device, work):
        work()
        return next(seconds)

    monkeypatch.setattr(estimating, "_timed", timed)
    return estimate(session.plan, session.missing(), session.workspace, session.placed())


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


def test_validations_on_the_way_are_counted(opened, monkeypatch):
    plain = opened("uniform-lsq")
    looked = opened("uniform-lsq", "recipe.validate_epochs=0.14")  # after 0.14 and 0.28 of 0.3 epochs
    times = [measured(session, monkeypatch, itertools.repeat(1.0)).rows[0].time for session in (plain, looked)]
    data = plain.runtime.load_data(plain.plan.trials[0].spec.data)
    validation = len(data.validation) + len(data.train)  # there are less than recalibration takes
    assert times[1].evaluation / times[0].evaluation == pytest.approx(
        (3 * validation + len(data.test)) / (validation + len(data.test))
    )
    assert times[1].finetune == times[0].finetune


def test_images_are_loaded_as_in_a_trial_and_ranks_do_their_share(opened, monkeypatch):
    session, asked = opened("uniform-lsq", "resources.loaders=1", "resources.workers_per_trial=2"), []
    batches = Harness.batches

    def noted(self, phase, stage, *rest, **how):
        asked.append((stage, how))
        return batches(self, phase, stage, *rest, **how)

    monkeypatch.setattr(Harness, "batches", noted)
    found = measured(session, monkeypatch, itertools.repeat(1.0))
    timed = [how for stage, how in asked if stage == "finetune" and how]
    assert timed
    assert all(how == {"loaders": 1, "ranks": Ranks(0, 2)} for how in timed)
    # A second per pass over 200 images more than a loader has ahead, or all there are.
    data = session.runtime.load_data(session.plan.trials[0].spec.data)
    images = len(data.validation) + len(data.train) + len(data.test)
    assert found.rows[0].time.evaluation == pytest.approx(images / min(600, len(data.validation)))
    assert found.saved_bytes > found.slots * 4 * 1000


def test_the_first_step_of_each_kind_is_not_counted(opened, monkeypatch):
    steady = measured(opened("uniform-lsq"), monkeypatch, itertools.repeat(1.0))
    slow_start = itertools.chain([3600.0], itertools.repeat(1.0))
    assert measured(opened("uniform-lsq"), monkeypatch, slow_start) == steady


@pytest.mark.parametrize(("seconds", "compiler", "answer"), [(0.01, "", "cannot repay"), (1e3, "none", "needs a comp")])
def test_compiling_is_not_tried_where_it_cannot_help(opened, monkeypatch, seconds, compiler, answer):
    session = opened("uniform-lsq")
    row = measured(session, monkeypatch, itertools.repeat(seconds)).rows[0]
    monkeypatch.setenv("CXX", compiler)
    found = compiling(row, session.runtime)
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
    assert "left out: " in ran.out
    assert "resources.compile: no" in ran.out
    assert not list((tmp_path / "out").rglob("*.json"))
