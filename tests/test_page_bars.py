"""What stands beside the tables: bars of the account, the ledger of layers, and the literature of a suite."""

from __future__ import annotations

import re

import pytest

from benchmarks.suites.suite import load_suite, suite_names
from methods import METHODS
from reports.findings.comparison import gather
from reports.findings.phases import phase_rows, phases_table, starts_table
from reports.page.bars import FINETUNE_COLOUR, SEARCH_COLOURS, TEACHER_COLOUR, bars_of, colours_of
from reports.page.references import OF_METHOD, OF_NETWORK, bibliography, entries
from reports.page.sheets import layer_rows
from tests.fabricated import EPOCH_MACS, fail, make_plan, make_suite, write_records


def compared(tmp_path, change=None):
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1)))
    return gather(plan, write_records(plan, tmp_path, change))


def test_bars_are_shares_of_the_grant(tmp_path):
    bars = {bar.label.split(" · ")[1]: bar for bar in bars_of(compared(tmp_path))}
    # Fabricated searches take a quarter of 8 epochs.
    assert [(part.percent, part.colour) for part in bars["hawq"].parts] == [
        (25.0, SEARCH_COLOURS[0]),
        (75.0, FINETUNE_COLOUR),
    ]
    assert [part.percent for part in bars["uniform-lsq"].parts] == [100.0]
    assert bars["hawq"].spoken.endswith("select 2.00 epochs, fine-tuning 6.00 epochs")


def taught_probes(trial, result, _observed):
    """A second search phase of half an epoch off the fine-tuning, and a teacher that takes a quarter of each phase."""
    if trial.row == "hawq":
        search, tune = result["account"]["phases"]
        tune["macs"] -= EPOCH_MACS // 2
        probe = {"name": "search/probe", "steps": 5, "images": 320, "macs": EPOCH_MACS // 2, "macs_per_image": 1}
        result["account"]["phases"] = [search, probe, tune]
        for phase in result["account"]["phases"]:
            phase["teacher_macs"] = phase["macs"] // 4


def test_bars_and_phases_tell_searches_and_the_teacher_apart(tmp_path):
    comparison = compared(tmp_path, taught_probes)
    (bar,) = [bar for bar in bars_of(comparison) if "hawq" in bar.label]
    # Epochs: 2 of select, 0.5 of probe, 5.5 of fine-tuning, each but a quarter; the grant is 8.
    assert [part.percent for part in bar.parts] == [18.75, 4.69, 51.56, 25.0]
    legend = {"select": SEARCH_COLOURS[0], "probe": SEARCH_COLOURS[1], "fine-tuning": FINETUNE_COLOUR}
    assert colours_of(comparison) == {**legend, "teacher": TEACHER_COLOUR}
    table = phases_table(comparison)
    rows = {row.cells[2]: dict(zip(table.header, row.cells, strict=True)) for row in table.rows if "hawq" in row.cells}
    assert list(rows) == ["select", "probe", "search in all", "fine-tuning", "evaluation, not charged"]
    whole = rows["search in all"]
    assert (whole["Epochs"], whole["Without the teacher, epochs"]) == ("2.50", "1.88")
    assert (whole["Student, MACs"], whole["Teacher, MACs"]) == ("3.75 G", "1.25 G")
    assert (whole["Images"], whole["Steps"]) == ("2,880", "45")
    # Fabricated trials evaluate 660 images and recalibrate on 1,137, in 1.5 s, at 650,000 MACs each.
    shown = rows["evaluation, not charged"]
    assert (shown["Images"], shown["Student, MACs"], shown["Time"]) == ("1,797", "1.17 G", "1.5\u00a0s")
    assert shown["Epochs"] == f"{1797 * 650_000 / EPOCH_MACS:.2f}"
    assert "Teacher, MACs" not in phases_table(compared(tmp_path / "alone")).header


def test_the_sheet_of_phases_adds_up_and_pretraining_stands_apart(tmp_path):
    comparison = compared(tmp_path, taught_probes)
    rows = phase_rows(comparison)
    for outcome in comparison.outcomes:
        own = [row for row in rows if row["id"] == outcome.trial.id]
        charged = [row for row in own if row["charged"]]
        assert sum(row["macs"] for row in charged) == sum(p["macs"] for p in outcome.result["account"]["phases"])
        assert all(row["student_macs"] + row["teacher_macs"] == row["macs"] for row in charged)
        assert [row["phase"] for row in own[len(charged) :]] == ["evaluation", "recalibration", "pretraining"]
        assert (own[-1]["seconds"], own[-1]["pretraining_epochs"], own[-1]["start"]) == (
            28.0,
            2,
            outcome.trial.spec.start.key,
        )
        assert (own[-1]["images"], own[-1]["macs"], own[-1]["macs_per_image"]) == (2240, 2240 * 630_000, 630_000)
        assert own[-1]["recipe_epochs"] == 2240 * 630_000 / EPOCH_MACS
        assert [row["seconds"] for row in own[len(charged) : -1]] == [1.5, None]
    (start,) = starts_table(comparison).rows  # six trials from two seeds' starts
    assert start.cells == ("mobilenet_v2", "2", "2", "2,240", "1.41 G", "28.0 s")


def test_starts_that_nobody_made_are_not_counted(tmp_path):
    plan = make_plan(make_suite(["float", "uniform-lsq"], seeds=(0, 1, 2)))

    def earlier(_trial, _result, observed):
        del observed["start_images"], observed["start_macs"]

    found = gather(plan, write_records(plan, tmp_path, earlier, leave_out=lambda trial: trial.spec.seed == 1))
    (start,) = starts_table(found).rows
    assert start.cells == ("mobilenet_v2", "2 of 3", "2", "28.0 s")


def test_free_searches_lengthen_the_longest_bar(tmp_path):
    def free(trial, result, _observed):
        if trial.row == "hawq":
            search, tune = result["account"]["phases"]
            tune["macs"] = result["account"]["granted_macs"]
            assert search["macs"] * 4 == tune["macs"]

    bars = {bar.label.split(" · ")[1]: bar for bar in bars_of(compared(tmp_path, free))}
    assert [part.percent for part in bars["hawq"].parts] == [20.0, 80.0]
    assert [part.percent for part in bars["uniform-lsq"].parts] == [80.0]


def test_the_ledger_of_layers_adds_up_to_the_cost(tmp_path):
    def change(trial, result, observed):
        if trial.row == "hawq" and trial.spec.seed == 1:
            fail(result, observed)

    comparison = compared(tmp_path, change)
    rows = layer_rows(comparison)
    for cell in comparison.cells:
        for outcome in cell.outcomes:
            own = [row for row in rows if row["id"] == outcome.trial.id]
            assert len(own) == (len(outcome.trial.ledger) if outcome.ok else 0)
            if outcome.bops:
                assert sum(row["bops"] for row in own) == outcome.bops


def test_every_key_is_an_entry_and_every_entry_is_whole():
    found = entries()
    keys = {key for own in OF_METHOD.values() for key in own} | set(OF_NETWORK.values())
    assert keys <= set(found)
    for key, text in found.items():
        assert text.startswith("@inproceedings{" + key)
        assert text.count("{") == text.count("}"), key
        assert {"author", "title", "year", "booktitle"} <= set(re.findall(r"^  (\w+) = ", text, re.MULTILINE)), key
    assert set(OF_METHOD) <= set(METHODS)


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_cites_what_it_compares(name):
    suite = load_suite(name)
    text = bibliography(suite)
    assert "esser2020lsq" in text
    assert ("kim2024metamix" in text) == any(entry.name.startswith("metamix") for entry in suite.methods)
    assert ("he2016resnet" in text) == any(model.name == "resnet18" for model in suite.models)
