"""Tables and figure of activation ranges: which trials stand in which cell, what is paired, and shown failures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.planning import Plan, Trial
from benchmarks.records.archive import pack
from benchmarks.records.record import Records
from benchmarks.suites.spec import OptimizerSpec, QuantizerSpec
from methods.quantization.cost import uniform_bits
from reports.studies import ranges
from tests.fabricated import RECIPE, fail, make_plan, make_suite, set_policy, write_records

WIDTHS = {"uniform:w4a4": 4, "uniform:w4a3": 3}
SIGMOID = QuantizerSpec(parameterisation="beta-gamma", sigmoid=True)
QUANTIZERS = (QuantizerSpec(), QuantizerSpec(parameterisation="lsq+"), SIGMOID)
RATES = (0.001, 0.01)


def make_trials() -> list[Trial]:
    suite = make_suite(["uniform-lsq", "hawq"], ceilings=tuple(WIDTHS), seeds=(0, 1, 2))
    return [
        replace(trial, spec=trial.spec.model_copy(update={"quantizer": quantizer, "recipe": recipe_at(rate)}))
        for trial in make_plan(suite).trials
        for quantizer in QUANTIZERS
        for rate in RATES
    ]


def recipe_at(rate: float):
    return RECIPE.model_copy(update={"optimizer": OptimizerSpec(lr=rate)})


def set_result(trial: Trial, result, observed) -> None:
    """LSQ has 80 % at 4 bits and 70 % at 3, lsq+ one point more per seed; beta-gamma fails at the high rate, seed 2."""
    quantizer, width = trial.spec.quantizer, WIDTHS[trial.ceiling]
    if quantizer.sigmoid and trial.spec.recipe.optimizer.lr == 0.01 and trial.spec.seed == 2:
        fail(result, observed)
        return
    more = trial.spec.seed / 100 if quantizer.parameterisation == "lsq+" else 0.0
    result["metrics"]["test_accuracy"] = (0.8 if width == 4 else 0.7) + more
    result["curves"]["finetune"] = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0 + trial.spec.seed}]
    set_policy(trial, result, uniform_bits(trial.ledger, 4, width))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    with mock.patch.object(sys, "argv", ["ranges", *map(str, arguments)]):
        ranges.main()
    return [line.replace("\u00a0", " ").replace("\\", "") for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    suite = make_suite(["uniform-lsq"])
    write_records(Plan(suite, tuple(make_trials()), ()), tmp_path / "records", set_result)
    return tmp_path / "records"


def test_cells_by_width_parameterisation_and_rate(records, capsys):
    lines = run(capsys, records)
    start = lines.index("| w4a4: test accuracy, % | lr 0.001 | lr 0.01 |")
    assert lines[start + 2] == "| lsq | 80.00 [80.00, 80.00], n = 3 | 80.00 [80.00, 80.00], n = 3 |"
    # 80, 81, 82 %: t(2, 0.975) / sqrt(3) = 2.48.
    assert lines[start + 3].startswith("| lsq+ | 81.00 [78.52, 83.48], n = 3 |")
    assert lines[start + 4].endswith("| 80.00 [80.00, 80.00], n = 2, 1 failed |")
    assert lines[start + 4].startswith("| beta-gamma sigmoid |")


def test_differences_are_paired_with_lsq_of_the_same_width_and_rate(records, capsys):
    lines = run(capsys, records)
    start = lines.index("| w4a3: minus lsq, points, paired | lr 0.001 | lr 0.01 |")
    assert lines[start + 2].startswith("| lsq+ | +1.00 [−1.48, +3.48], 3 pairs |")
    assert lines[start + 3].endswith("| +0.00 [+0.00, +0.00], 2 pairs |")


def test_losses_of_the_first_and_the_last_part(records, capsys):
    lines = run(capsys, records)
    start = lines.index("| w4a4: training loss, first → last part | lr 0.001 | lr 0.01 |")
    assert lines[start + 2] == "| lsq | 2.000 → 2.000 | 2.000 → 2.000 |"
    assert lines[start + 4].endswith("| 2.000 → 1.500 |")  # of seeds 0 and 1


def test_the_figure_has_a_panel_per_width_and_a_line_per_parameterisation(records, capsys):
    cells = ranges.cells_of(Records(records))
    panels = ranges.figure(cells).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["W4A4", "W4A3"]
    labels = [container.get_label() for container in panels[0].containers]
    assert labels == ["lsq", "lsq+", "beta-gamma sigmoid"]
    heights = [float(y) for y in panels[1].containers[1].lines[0].get_ydata()]
    assert heights == pytest.approx([71, 71])


@pytest.mark.parametrize("name", ["figure.png", "figure.pdf"])
def test_the_figure_is_written(records, capsys, tmp_path, name):
    run(capsys, records, "--figure", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")


def test_a_folder_without_such_trials_is_refused(tmp_path, capsys):
    write_records(make_plan(make_suite(["hawq"])), tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(capsys, tmp_path)
    assert stop.value.code == 2
    assert "no trials of uniform-lsq" in capsys.readouterr().err


def test_an_archive_says_what_its_folder_says(records, tmp_path, capsys):
    assert run(capsys, pack(records, tmp_path / "to")) == run(capsys, records)


@pytest.mark.parametrize("name", ["nothing", "empty", "damaged.tar.xz"])
def test_no_records_are_one_line(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.tar.xz").write_bytes(b"\xfd7zXZ\0 and no more")
    with pytest.raises(SystemExit) as stop:
        run(capsys, tmp_path / name)
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {tmp_path / name}: ")


def test_those_that_start_from_the_same_range_are_also_set_against_beta_gamma():
    key = ranges.Key("w4a4", "beta-gamma", 0.01)
    accuracies = {"lsq": 0.9, "beta-gamma": 0.8, "min-max": 0.75}
    cells = {
        key._replace(ranges=name): ranges.Cell({0: mean, 1: mean + 0.01 * (name == "min-max")})
        for name, mean in accuracies.items()
    }
    (table,) = [table for table in ranges.tables(cells) if table.header[0] == "w4a4: minus beta-gamma, points, paired"]
    (row,) = table.rows
    assert row.cells[0] == "min-max"
    assert row.cells[1].startswith("−4.50\u00a0[")  # 75 and 76 less 80
