"""What the figures draw: bars by what they rest on, both float lines, axes by range, and no front without seeds."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from reports.figures.attainment import attainment_figure
from reports.figures.bits import bits_figure
from reports.figures.curves import curves_figure
from reports.figures.marks import COLOURS, DASHES, DODGE, MARKERS, dodge, line, marker, marks_of, plain
from reports.figures.pareto import MOVED, X_LABEL, caption_parts, pareto_figure
from reports.figures.profile import profile_figure
from reports.figures.style import CONTROL, START, TEXT_WIDTH, save
from reports.findings.across import row_scores
from reports.findings.comparison import gather
from reports.findings.strips import strips_of
from reports.findings.summary import summarise
from reports.numbers.statistics import wilson_interval
from tests.fabricated import TEST_IMAGES, Shelf, fail, make_plan, make_suite, with_label, write_records


def compare(methods, change=None, **suite):
    plan = make_plan(make_suite(methods, **suite))
    comparison = gather(plan, Shelf(plan, change))
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


@pytest.mark.parametrize("status", ["failed", "over_ceiling"])
def test_a_row_that_mostly_fails_is_hollow_says_so_and_is_on_no_front(status):
    def change(trial, result, observed):
        fixed({"hawq": 0.99})(trial, result, observed)
        if trial.row == "hawq" and trial.spec.seed:
            fail(result, observed, status=status)

    comparison, summaries = compare(["uniform-lsq", "metamix", "hawq"], change, seeds=(0, 1, 2, 3, 4))
    (mark,) = (mark for mark in marks_of(summaries) if mark.row == "hawq")
    assert (mark.on_front, mark.bar, mark.lacking) == (False, None, "1\u00a0of\u00a05")
    (axes,) = pareto_figure(comparison, summaries).axes
    looks = {line.get_marker(): line for line in axes.lines if line.get_marker() in MARKERS}
    hollow = looks[marker(comparison.rows.index("hawq"))["marker"]]
    assert [line.get_markerfacecolor() == "white" for line in looks.values()] == [
        line is hollow for line in looks.values()
    ]
    assert hollow.get_zorder() < min(line.get_zorder() for line in looks.values() if line is not hollow)
    assert "1\u00a0of\u00a05" in [text.get_text() for text in axes.texts]
    assert any(part.startswith("Hollow, m of n") for part in caption_parts(summaries))


def test_cells_of_which_nothing_is_left_are_counted_by_why():
    def change(trial, result, observed):
        if trial.row != "uniform-lsq":
            fail(result, observed, status="refused" if trial.row == "metamix" else "failed")

    _, summaries = compare(["uniform-lsq", "metamix", "hawq"], change, seeds=(0, 1, 2))
    assert caption_parts(summaries)[-2:] == [
        "Not drawn, and worst: 1 cell whose every trial failed or is over the ceiling.",
        "Not drawn: 1 cell without a result.",
    ]


def test_a_row_still_incomplete_is_hollow_with_the_bar_of_its_seeds(tmp_path):
    plan = make_plan(make_suite(["uniform-lsq"], seeds=(0, 1, 2, 3)))
    records = write_records(plan, tmp_path, leave_out=lambda trial: not trial.spec.seed)
    (summary,) = summarise(gather(plan, records))
    (mark,) = marks_of([summary])
    assert (mark.bar, mark.lacking) == (summary.accuracy.interval, "3\u00a0of\u00a04")


def test_a_row_a_hair_cheaper_and_far_worse_is_on_no_front():
    bops = {"uniform-lsq": 1_000_000, "random": 999_980}
    _, summaries = compare(list(bops), fixed({"random": 0.79}, bops), seeds=(0, 1, 2))
    assert [mark.row for mark in marks_of(summaries) if mark.on_front] == ["uniform-lsq"]


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
def test_dodging_moves_to_the_left_alone_and_keeps_the_order(places):
    drawn = dodge(places)
    assert all(-1e-9 <= x <= place for x, place in zip(drawn, places, strict=True))
    ordered = sorted(range(len(places)), key=lambda index: (places[index], index))
    assert [drawn[index] for index in ordered] == sorted(drawn)
    gaps = [drawn[right] - drawn[left] for left, right in pairwise(ordered)]
    if all(places[index] >= DODGE * rank for rank, index in enumerate(ordered)):  # there is room for all
        assert all(gap >= DODGE - 1e-9 for gap in gaps)
    if all(places[right] - places[left] >= DODGE for left, right in pairwise(ordered)):
        assert drawn == places


def test_marks_at_one_place_do_not_cover_each_other():
    assert dodge([50.0] * 4) == [50 - 3 * DODGE, 50 - 2 * DODGE, 50 - DODGE, 50]
    assert dodge([8.0] * 5) == [0.0, 2.0, 4.0, 6.0, 8.0]  # no room for more


def test_what_belongs_to_a_mark_moves_with_it_and_the_axis_says_so():
    """Two rows at one cost, a third far from them: bars and the front are at their marks, ticks at the true cost."""
    bops = {"uniform-lsq": 10 * 10**9, "hawq": 10 * 10**9, "metamix": 20 * 10**9}
    values = {"uniform-lsq": 0.90, "hawq": 0.92, "metamix": 0.94}
    comparison, summaries = compare(list(bops), fixed(values, bops), seeds=(0, 1, 2))
    (axes,) = pareto_figure(comparison, summaries).axes
    at = {row: marker(comparison.rows.index(row)) for row in bops}
    x = {
        row: float(line.get_xdata()[0]) for row in bops for line in axes.lines if line.get_marker() == at[row]["marker"]
    }
    assert x["uniform-lsq"] < x["hawq"] == pytest.approx(10)
    bars = {line.get_color(): line.get_xdata()[0] for line in axes.lines if line.get_marker() == "_"}
    assert bars == {at[row]["color"]: x[row] for row in bops}
    ticks = {line.get_color(): line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"}
    assert ticks == {at[row]["color"]: bops[row] / 1e9 for row in bops}
    (front,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(front.get_xdata()) == [x["hawq"], x["metamix"], x["metamix"]]
    assert axes.get_xlabel() == f"{X_LABEL}\n{MOVED}"

    apart = compare(["uniform-lsq", "metamix"], fixed(values, bops), seeds=(0, 1, 2))
    (axes,) = pareto_figure(*apart).axes
    assert axes.get_xlabel() == X_LABEL


@pytest.mark.parametrize("networks", [("mobilenet_v2",), ("mobilenet_v2", "resnet18", "mobilenet_v3_small")])
@pytest.mark.parametrize("name", ["pareto", "curves", "attainment", "profile", "bits"])
def test_no_word_is_cut(name, networks):
    """Legends of long names at a column's and at a page's width, and the labels of policies."""
    methods = ("hawq", "metamix", "differentiable", "random")
    rows = ["float", *(with_label(method, f"{method}, another variant, trained longer") for method in methods)]

    def curve(trial, result, observed):
        result["curves"]["finetune"] = [{"step": step, "loss": 2.0 - step / 100} for step in (0, 50, 100)]

    comparison, summaries = compare(rows, curve, models=networks, ceilings=("uniform:w4a3", "uniform:w4a4"))
    figure = {
        "pareto": lambda: pareto_figure(comparison, summaries),
        "curves": lambda: curves_figure(comparison),
        "attainment": lambda: attainment_figure(comparison),
        "profile": lambda: profile_figure(comparison, row_scores(comparison)),
        "bits": lambda: bits_figure(comparison),
    }[name]()
    assert figure.get_figwidth() <= TEXT_WIDTH
    save(figure, io.BytesIO(), "png", 200)
    words = [text for text in figure.findobj(Text) if any(map(str.isalpha, text.get_text()))]  # no ticks' numbers
    assert sum("variant" in text.get_text() for text in words) >= 4
    for text in words:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text


def test_rows_as_lines_look_different_without_colour_too():
    looks = [line(row, 100) for row in range(len(DASHES) * len(MARKERS))]
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks}) == len(looks)
    assert all(look["markevery"][0] < look["markevery"][1] for look in looks)
    assert line(3, 1)["markevery"] == (0, 1)  # a single point is marked


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
