"""The table of what uniform widths cost: which trials count, how they are paired, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.planning import Trial
from methods.quantization.cost import uniform_bits
from methods.quantization.policy import LayerBits
from reports.studies import widths
from tests.fabricated import fail, make_plan, make_suite, set_policy, write_records

ACCURACIES = {"float": 0.9, "uniform:w4a4": 0.85, "uniform:w4a3": 0.7}
"""Of seed 0; seed s has s points more in float and 2 s points more quantized."""


def set_accuracy(trial: Trial, result, observed) -> None:
    quantized = trial.spec.ceiling_bops is not None
    points = trial.spec.seed * (2 if quantized else 1)
    result["metrics"]["test_accuracy"] = ACCURACIES[trial.ceiling] + points / 100
    if quantized:
        width = 4 if trial.ceiling == "uniform:w4a4" else 3
        layers = uniform_bits(trial.ledger, 4, width)
        if trial.row == "hawq":
            layers[next(iter(layers))] = LayerBits(4, 8)
        set_policy(trial, result, layers)


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with mock.patch.object(sys, "argv", ["widths", str(folder)]):
        widths.main()
    return [line.replace("\u00a0", " ").replace("\\", "") for line in capsys.readouterr().out.splitlines()]


def test_rows_are_paired_with_the_row_above(tmp_path, capsys):
    suite = make_suite(["float", "uniform-lsq", "hawq"], ceilings=("uniform:w4a4", "uniform:w4a3"), seeds=(0, 1, 2))
    write_records(make_plan(suite), tmp_path, set_accuracy)
    lines = run(tmp_path, capsys)
    assert lines[0].startswith("| mobilenet_v2 x1 |")
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ") and "---" not in line}
    # Seeds 0, 1, 2 at 90, 91, 92 %; t(2, 0.975) = 4.3027, s = 1: 4.3027 / sqrt(3) = 2.48.
    assert "91.00 [88.52, 93.48], n = 3" in rows["float"]
    # 85, 87, 89 less 90, 91, 92: -5, -4, -3.
    assert "−4.00 [−6.48, −1.52], 3 pairs" in rows["w4a4"]
    assert "−15.00 [−15.00, −15.00], 3 pairs" in rows["w4a3"]
    assert list(rows)[1:] == ["float start", "float", "w4a4", "w4a3"]  # hawq's policy is not uniform


def test_failed_trials_have_no_accuracy_to_count(tmp_path, capsys):
    suite = make_suite(["float", "uniform-lsq"], seeds=(0, 1))

    def one_fails(trial, result, observed):
        set_accuracy(trial, result, observed)
        if trial.row == "uniform-lsq" and trial.spec.seed == 1:
            fail(result, observed)

    write_records(make_plan(suite), tmp_path, one_fails)
    (line,) = [line for line in run(tmp_path, capsys) if line.startswith("| w4a4")]
    assert "85.00, n = 1" in line


def test_a_folder_without_such_trials_is_refused(tmp_path, capsys):
    write_records(make_plan(make_suite(["hawq"])), tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, capsys)
    assert stop.value.code == 2
    assert "no finished float or uniform trials" in capsys.readouterr().err
