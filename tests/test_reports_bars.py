"""What stands beside the tables: bars of the account, the ledger of layers, and the literature of a suite."""

from __future__ import annotations

import re

import pytest

from benchmarks.suite import load_suite, suite_names
from methods import METHODS
from reports.bars import COLOURS, bars_of
from reports.comparison import gather
from reports.ledgers import layer_rows
from reports.references import OF_METHOD, OF_NETWORK, bibliography, entries
from tests.fabricated import fail, make_plan, make_suite, write_records


def compared(tmp_path, change=None):
    plan = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1)))
    return gather(plan, write_records(plan, tmp_path, change))


def test_bars_are_shares_of_the_grant(tmp_path):
    bars = {bar.label.split(" · ")[1]: bar for bar in bars_of(compared(tmp_path))}
    # Fabricated searches take a quarter of 8 epochs.
    assert [(part.percent, part.colour) for part in bars["hawq"].parts] == [
        (25.0, COLOURS["search"]),
        (75.0, COLOURS["fine-tuning"]),
    ]
    assert [part.percent for part in bars["uniform-lsq"].parts] == [100.0]
    assert bars["hawq"].spoken.endswith("search 2.00 epochs, fine-tuning 6.00 epochs")


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
