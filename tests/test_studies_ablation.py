"""Tables of MetaMix's claims: rows named for their options, what is paired, and what the variances' numbers are."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.planning import Trial
from methods import load_method
from reports.studies import ablation
from tests.fabricated import make_plan, make_suite, with_label, write_records


def options(**changed):
    return load_method("metamix").Options(statistics_batches=2, **changed).model_dump(mode="json")


ENTRIES = (
    "float",
    "random",
    with_label("metamix", "metamix", options=options()),
    with_label("metamix", "plain", options=options(branches="highest")),
    with_label("metamix", "unfixed", options=options(fixed_meta_state=False)),
)
ACCURACIES = {"float": 0.9, "random": 0.5, "metamix": 0.7, "plain": 0.6, "unfixed": 0.65}


def set_result(trial: Trial, result, observed) -> None:
    seed = trial.spec.seed
    result["metrics"]["test_accuracy"] = ACCURACIES[trial.row] + (seed / 100 if trial.row == "metamix" else 0)
    if trial.row in ("metamix", "plain"):
        after = 0.1 if trial.row == "metamix" else 0.9
        result["search"]["variances"] = {
            "before": {"bn1": {"3": 1.0 + seed, "4": 0.5}, "bn2": {"3": 2.0 + seed, "4": 0.5}},
            "after": {"bn1": {"3": after, "4": 0.5}, "bn2": {"3": after, "4": 0.5}},
        }


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with mock.patch.object(sys, "argv", ["ablation", str(folder)]):
        ablation.main()
    return [line.replace("\u00a0", " ").replace("\\", "") for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def lines(tmp_path, capsys) -> dict[str, str]:
    write_records(make_plan(make_suite(ENTRIES, seeds=(0, 1, 2))), tmp_path, set_result)
    return {line.split(" | ")[0].strip("| "): line for line in run(tmp_path, capsys) if line.startswith("| ")}


def test_rows_are_named_for_what_is_not_default(lines):
    assert {"metamix", "metamix, branches highest", "metamix, fixed meta state false", "random"} <= set(lines)


def test_accuracies_are_paired_with_metamix_and_with_random(lines):
    # 60 less 70, 71, 72: -11 on average; t(2, 0.975) / sqrt(3) = 2.48.
    assert "60.00 [60.00, 60.00], n = 3" in lines["metamix, branches highest"]
    assert "| −11.00 [−13.48, −8.52], 3 pairs |" in lines["metamix, branches highest"]
    assert lines["metamix, branches highest"].endswith("| +10.00 [+10.00, +10.00], 3 pairs |")
    assert lines["metamix"].endswith("| – | +21.00 [+18.52, +23.48], 3 pairs |")


def test_variances_are_averaged_over_layers_within_a_seed(lines):
    # Seeds 0, 1, 2: (1 + 2) / 2 = 1.5, 2.5, 3.5; after 0.1 everywhere.
    assert lines["metamix, before"] == "| metamix, before | 2.500 [0.016, 4.984] | 0.500 [0.500, 0.500] |"
    assert lines["metamix, after − before, paired"].split(" | ")[1].startswith("−2.400 [−4.884, +0.084]")
    both = lines["metamix − metamix, branches highest, after, paired"]
    assert both.split(" | ")[1] == "−0.800 [−0.800, −0.800]"


def test_a_folder_without_metamix_is_refused(tmp_path, capsys):
    write_records(make_plan(make_suite(["float"])), tmp_path, set_result)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, capsys)
    assert stop.value.code == 2
    assert "no finished trials of metamix" in capsys.readouterr().err
