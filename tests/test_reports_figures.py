"""What the figures draw: bars by what they rest on, both float lines, axes by range, and no front without seeds."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.bits_figure import bits_figure
from reports.comparison import gather
from reports.figures import CONTROL, START, caption_parts, pareto_figure, save
from reports.marks import COLOURS, DODGE, MARKERS, dodge, marker, marks_of, plain
from reports.statistics import wilson_interval
from reports.strips import strips_of
from reports.summary import summarise
from tests.fabricated import TEST_IMAGES, fail, make_plan, make_record, make_suite


def compare(methods, change=None, **suite):
    plan = make_plan(make_suite(methods, **suite))
    records = {trial.id: make_record(trial, change) for trial in plan.trials}
    comparison = gather(plan, records)
    return comparison, summarise(comparison)


def fixed(table, bops=None):
    """A change that sets accuracies, and BOPs where given, by row; the seed adds a little spread."""

    def change(trial, result, observed):
        result["metrics"]["test_accuracy"] = table.get(trial.row, 0.9) + 0.001 * trial.spec.seed
        if bops and result["cost"]:
            result["cost"]["bops"]["edges8"] = bops[trial.row]

    return change


def test_one_seed_has_the_bar_of_sampling_the_test_images_and_no_front():
    _, summaries = compare(["uniform-lsq", "hawq"], fixed({"hawq": 0.95}))
    marks = {mark.row: mark for mark in marks_of(summaries)}
    assert marks["hawq"].bar == wilson_interval(0.95, TEST_IMAGES)
    assert not any(mark.on_front for mark in marks.values())
    (words,) = caption_parts(summaries)
    assert words == "Dotted bars: one seed, one standard error of sampling 360 test images; no ranking."


@pytest.mark.parametrize(("seeds", "expected"), [(2, set()), (3, {"uniform-lsq", "hawq"})])
def test_several_seeds_have_their_interval_and_a_front_only_from_three(seeds, expected):
    bops = {"uniform-lsq": 10, "hawq": 20, "metamix": 20}
    values = {"uniform-lsq": 0.90, "hawq": 0.95, "metamix": 0.93}
    _, summaries = compare(list(bops), fixed(values, bops), seeds=tuple(range(seeds)))
    marks = marks_of(summaries)
    assert {mark.row for mark in marks if mark.on_front} == expected
    assert [mark.bar for mark in marks] == [summary.accuracy.interval for summary in summaries]


def test_a_row_at_two_ceilings_is_on_the_front_with_its_better_cell_only():
    # Uniform LSQ costs the same under both ceilings; only the more accurate of its two cells is non-dominated.
    def change(trial, result, observed):
        better = trial.row == "uniform-lsq" and trial.ceiling == "uniform:w4a8"
        result["metrics"]["test_accuracy"] = (0.95 if better else 0.9) + 0.001 * trial.spec.seed

    methods, ceilings = ["uniform-lsq", "hawq"], ("uniform:w4a4", "uniform:w4a8")
    _, summaries = compare(methods, change, ceilings=ceilings, seeds=(0, 1, 2))
    marks = [mark for mark in marks_of(summaries) if mark.row == "uniform-lsq"]
    assert [mark.on_front for mark in marks] == [False, True]


def test_a_row_with_a_failure_is_drawn_but_not_on_the_front():
    def change(trial, result, observed):
        fixed({"hawq": 0.99})(trial, result, observed)
        if trial.row == "hawq" and trial.spec.seed == 3:
            fail(result, observed)

    _, summaries = compare(["uniform-lsq", "metamix", "hawq"], change, seeds=(0, 1, 2, 3))
    assert [mark.on_front for mark in marks_of(summaries) if mark.row == "hawq"] == [False]


def test_both_float_lines_lie_at_their_means():
    comparison, summaries = compare(["float", "uniform-lsq"], fixed({"float": 0.96}), seeds=(0, 1, 2))
    (axes,) = pareto_figure(comparison, summaries).axes
    heights = {line.get_color(): line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert heights[START["color"]] == pytest.approx(100 * 341 / TEST_IMAGES)
    assert heights[CONTROL["color"]] == pytest.approx(96.1)


@pytest.mark.parametrize(("dearest", "scale"), [(39, "linear"), (41, "log")])
def test_the_axis_is_logarithmic_when_the_range_demands_it(dearest, scale):
    bops = {"uniform-lsq": 10 * 10**9, "hawq": dearest * 10**9}
    comparison, summaries = compare(list(bops), fixed({}, bops))
    (axes,) = pareto_figure(comparison, summaries).axes
    assert axes.get_xscale() == scale


def test_every_network_has_a_panel():
    comparison, summaries = compare(["uniform-lsq"], models=("mobilenet_v2", "resnet18", "mobilenet_v3_large"))
    titles = [axes.get_title(loc="left") for axes in pareto_figure(comparison, summaries).axes]
    assert titles == ["mobilenet_v2", "resnet18", "mobilenet_v3_large"]


def test_the_bits_figure_holds_every_policy():
    comparison, _ = compare(["float", "uniform-lsq", "hawq"])
    activations, weights = bits_figure(comparison).axes
    strips = strips_of(comparison, "mobilenet_v2")
    assert len(strips) == 2
    for axes, field in ((activations, "activation"), (weights, "weight")):
        drawn = axes.collections[0].get_array().reshape(2, -1).tolist()
        assert drawn == [[getattr(tile, field) for tile in strip.tiles] for strip in strips]


def test_a_figure_is_the_same_bytes_each_time():
    comparison, summaries = compare(["float", "uniform-lsq"])
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        save(pareto_figure(comparison, summaries), file, "pdf")
    assert files[0].getvalue() == files[1].getvalue()


@given(st.lists(st.floats(0, 400), max_size=12))
def test_dodging_keeps_groups_apart_and_their_middle_in_place(places):
    shifts = dodge(places)
    assert sum(shifts) == pytest.approx(0, abs=1e-9)  # each group is spread evenly about its place
    assert all(abs(shift) <= DODGE * len(places) / 2 for shift in shifts)
    alone = [p for i, p in enumerate(places) if all(abs(p - q) >= DODGE for j, q in enumerate(places) if j != i)]
    assert all(shifts[places.index(place)] == 0 for place in alone)


def test_marks_at_one_place_do_not_cover_each_other():
    assert sorted(dodge([50.0] * 4)) == [-1.5 * DODGE, -0.5 * DODGE, 0.5 * DODGE, 1.5 * DODGE]


def test_rows_look_different():
    looks = {(marker(row)["color"], marker(row)["marker"]) for row in range(len(COLOURS) * len(MARKERS))}
    assert len(looks) == len(COLOURS) * len(MARKERS)


def test_names_on_figures_are_one_short_printable_line():
    assert plain("a\nb\x07c") == "a b c"
    assert len(plain("x" * 100)) == 44


def test_a_ceiling_far_above_every_row_takes_no_room():
    """A policy may leave most of its ceiling unused; warnings about the layout are errors here."""
    comparison, summaries = compare(["uniform-lsq"], fixed({}, {"uniform-lsq": 1e6}))
    save(pareto_figure(comparison, summaries), io.BytesIO(), "png", 60)
