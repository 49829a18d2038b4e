"""The performance scripts run, and their numbers mean what they say; no test asks how fast anything is."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.perf import search, step
from benchmarks.perf.rounds import interleaved, ratio
from benchmarks.perf.step import Contender, batch_of, kept_bytes


def rows_of(script: ModuleType, monkeypatch: Any, capsys: Any, *arguments: str) -> list[dict[str, Any]]:
    """What a script prints under --json, of one small network on tiny images."""
    monkeypatch.setattr(step, "preparation", dict)
    case = ["--models", "mobilenet_v3_small", "--image-size", "32", "--rounds", "1", "--threads", "1", "--json"]
    monkeypatch.setattr(sys, "argv", [script.__name__, *case, *arguments])
    script.main()
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return rows


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_are_set_against_the_same_run_s_float_steps(monkeypatch, capsys, precision):
    rows = rows_of(step, monkeypatch, capsys, "--batch", "2,3", "--precision", precision)
    assert [row["batch"] for row in rows] == sorted(row["batch"] for row in rows)
    for batch in (2, 3):
        own = {row["implementation"]: row for row in rows if row["batch"] == batch}
        assert {"float", "ours", "ours plain", "straight-through idiom", "torch.ao learnable"} <= set(own)
        base = own["float"]
        assert (base["ratio"], base["memory_ratio"]) == (1, 1)
        for row in own.values():
            assert row["ratio"] == pytest.approx(row["seconds"] / base["seconds"])  # of one round
            assert row["memory_ratio"] == row["memory"] / base["memory"]
        assert base["memory"] < own["ours"]["memory"] < own["straight-through idiom"]["memory"]


def test_searching_is_set_against_training(monkeypatch, capsys):
    rows = rows_of(search, monkeypatch, capsys, "--batch", "2")
    seconds = {row["work"]: row["seconds"] for row in rows}
    assert len(seconds) == len(rows) == 5
    selection = next(row for row in rows if row["work"] == "MetaMix selection step")
    assert selection["base"] == "4 quantized steps"
    assert selection["ratio"] == pytest.approx(selection["seconds"] / (4 * seconds["quantized step"]))


def test_what_a_forward_keeps_is_counted_once_and_without_parameters():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Sigmoid())
    images, _ = batch_of(4, 2, torch.device("cpu"))
    # The linear layer keeps its input, the sigmoid its output; both float32.
    assert kept_bytes(Contender(network), images) == 4 * (4 * 12 + 4 * 5)
    compiled = Contender(network, compiled=lambda x: network(x) * network(x).detach())
    assert kept_bytes(compiled, images) > kept_bytes(Contender(network), images)


def test_ratios_are_taken_round_by_round():
    found = ratio([2.0, 8.0, 3.0], [1.0, 2.0, 3.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 4.0)
    assert ratio([8.0], [1.0], times=4) == (2.0, 2.0, 2.0)
    assert {name: len(each) for name, each in interleaved({"a": int, "b": int}, 3).items()} == {"a": 3, "b": 3}
