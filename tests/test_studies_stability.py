"""Rank stability: Kendall's tau against scipy, what a sweep compares, and the command."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.records.record import Records
from reports.studies.stability import kendall_tau, split_half, stability
from tests.harness import cli, copy_finished, finished

ranks = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9)


@given(ranks)
def test_tau_is_scipys(pairs):
    ours = {str(index): float(x) for index, (x, _) in enumerate(pairs)}
    theirs = {str(index): float(y) for index, (_, y) in enumerate(pairs)}
    expected = scipy.stats.kendalltau([*ours.values()], [*theirs.values()]).statistic
    found = kendall_tau(ours, theirs)
    if np.isnan(expected):
        assert found is None
    else:
        assert found == pytest.approx(expected)


def test_stability_is_the_mean_over_networks_and_ceilings():
    ours = {"a": {"net": np.array([[1.0, 1.0]])}, "b": {"net": np.array([[0.0, 0.0]])}}
    theirs = {"a": {"net": np.array([[1.0, 0.0]])}, "b": {"net": np.array([[0.0, 1.0]])}}
    assert stability(ours, ours) == 1
    assert stability(ours, {**theirs, "c": {"net": np.zeros((1, 2))}}) == 0
    assert stability(ours, {"c": ours["a"]}) is None


def test_the_halves_of_the_seeds_tell_what_seeds_alone_do():
    apart = {"a": {"net": np.ones((4, 1))}, "b": {"net": np.zeros((4, 1))}}
    assert split_half(apart) == 1
    crossed = {"a": {"net": np.array([[1.0], [0.0]] * 2)}, "b": {"net": np.array([[0.0], [1.0]] * 2)}}
    assert split_half(crossed) == -1
    assert split_half({row: {"net": own["net"][:3]} for row, own in apart.items()}) is None


def test_a_sweep_without_a_float_control_is_refused_before_anything_runs(tmp_path):
    ran = cli("sweep", "--suite", finished().suite, "--out", tmp_path, "--methods", "uniform-lsq,hawq")
    assert ran.code == 2
    assert "float" in ran.err
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("shares", ["", "1,x", "0,1", "-1", "inf"])
def test_bad_shares_are_refused(tmp_path, shares):
    ran = cli("sweep", "--suite", finished().suite, "--out", tmp_path, "--shares", shares)
    assert ran.code == 2
    assert "0.25,0.5,1,2" in ran.err


def test_a_sweep_runs_what_is_missing_and_reports(tmp_path):
    out, methods = copy_finished(tmp_path), "float,uniform-lsq,random"
    arguments = ("--suite", finished().suite, "--out", out, "--engine", "local", "--methods", methods)
    ran = cli("sweep", *arguments, "--shares", "1,0.5")
    assert ran.code == 0, ran.err
    assert "tiny: 3 trials, 0 done already" in ran.out  # at half; those of the whole are there
    assert sum(1 for _ in Records(out / "tiny" / "records")) == 6 + 3
    text = (out / "tiny" / "report" / "stability.md").read_text(encoding="utf-8")
    assert "| Method | x0.5 | x1 |" in text
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    assert rows >= {"uniform-lsq", "random", "x0.5", "x1"}
    assert (out / "tiny" / "report" / "stability.png").stat().st_size > 1000
