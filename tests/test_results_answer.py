"""Answers in a sentence: who is ahead of whom, and no claim that the numbers do not support."""

from __future__ import annotations

from reports.findings.comparison import gather
from reports.results.answer import of_pairs, of_ranges, of_widths
from reports.studies.ranges import Cell, Key
from tests.fabricated import Shelf, make_plan, make_suite

LEVELS = {"float": 0.95, "uniform-lsq": 0.80, "hawq": 0.86, "random": 0.70, "metamix": 0.80}


def comparison(seeds: int):
    """HAWQ six points above uniform LSQ, random ten below, MetaMix to either side of it."""
    rows = ["float", "uniform-lsq", "hawq", "metamix", "random"]
    suite = make_suite(rows, models=("mobilenet_v2", "resnet18"), seeds=tuple(range(seeds)))

    def set_accuracy(trial, result, observed):
        seed = trial.spec.seed
        wobble = 0.002 * seed if trial.row in ("hawq", "random") else (-1) ** seed * 0.03 * (trial.row == "metamix")
        result["metrics"]["test_accuracy"] = LEVELS[trial.row] + wobble

    plan = make_plan(suite)
    return gather(plan, Shelf(plan, set_accuracy))


def test_who_is_ahead_and_behind_by_how_much_and_how_sure():
    answer = of_pairs(comparison(8))
    assert answer.full.startswith("Over 16 blocks (2 networks with 8 seeds each, means of 1 ceiling): ")
    assert "hawq by 6.70 points [6.45, 6.95] is ahead of uniform-lsq; " in answer.full
    assert "random by 9.30 points [9.05, 9.55] is behind uniform-lsq" in answer.full
    assert "no difference is shown of metamix from uniform-lsq" in answer.full
    assert "Holm's correction for 5 pairs)." in answer.full
    assert answer.short.startswith(
        "8 seeds, 2 networks: hawq is ahead of uniform-lsq; hawq and metamix are ahead of random"
    )


def test_one_seed_ranks_nothing():
    assert of_pairs(comparison(1)).full == "One seed: nothing is ranked."
    assert of_pairs(comparison(2)).full == "Too few seeds or rows: nothing is ranked."


def test_widths_count_the_networks_on_which_something_is_lost():
    lost = {"float": {0: 0.9, 1: 0.91, 2: 0.92}, "w4a4": {0: 0.85, 1: 0.86, 2: 0.872}}
    level = {"float": {0: 0.9, 1: 0.91, 2: 0.92}, "w4a4": {0: 0.95, 1: 0.86, 2: 0.92}}
    answer = of_widths({"a": lost, "b": level})
    assert answer.full.startswith(
        "W4A4 is behind the float control on 1 of 2 networks, by 4.93 to 4.93 points (3 pairs"
    )


def test_ranges_say_what_failed():
    key = Key("w4a4", "lsq", 0.1)
    cells = {
        key: Cell({0: 0.8, 1: 0.81, 2: 0.82}),
        key._replace(ranges="lsq+"): Cell({0: 0.7, 1: 0.705}, failed=1),
        key._replace(ranges="min-max"): Cell({0: 0.8, 1: 0.82, 2: 0.81}),
    }
    answer = of_ranges(cells)
    assert answer.full.startswith("Against lsq at the same width and learning rate, 0 of 2 cells")
    assert "are ahead and 1 behind" in answer.full
    assert answer.full.endswith("of 9 runs, failed: 1 of lsq+.")
