"""Float starts: one that is damaged is made again, and one that cannot be trained fails only its own trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks.records.record import Records
from benchmarks.seals import sealed
from benchmarks.trials.checkpoint import load_network, save_network
from tests.harness import ROOT, TINY, Ran, cli, comparable, copy_float_starts, finished, write_suite

METHOD = "uniform-lsq"


def run(suite: Path, out: Path, *more: str) -> Ran:
    return cli("--suite", suite, "--out", out, "--engine", "local", *more)


def flip(place: float) -> Callable[[Path], None]:
    """One bit, in the file's first byte, its last, or so far from its beginning."""

    def harm(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(place * len(data)), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return harm


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def undigested(path: Path) -> None:
    """As earlier versions wrote it."""
    torch.save(load_network(path), path)


def renamed(path: Path) -> None:
    """Another seed's, say."""
    data = path.read_bytes()
    path.write_bytes(sealed(data, "another"))


def of_another_network(path: Path) -> None:
    state = load_network(path)
    save_network(path, {**state, "conv1.weight": state["conv1.weight"][:1].clone()})


HARMS = [*map(flip, (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)), cut, undigested, renamed, of_another_network]


@pytest.mark.parametrize("harm", HARMS)
def test_a_float_start_that_cannot_be_used_is_made_again_with_a_word(harm, tmp_path):
    out = copy_float_starts(tmp_path)
    (path,) = (out / "float").glob("*.pt")
    whole = load_network(path)
    harm(path)
    ran = run(write_suite(tmp_path, methods=[METHOD]), out)
    assert ran.code == 0
    assert ran.err.count(f"{path}: ") == 1
    assert "this float start is made again" in ran.err
    assert comparable(out / "tiny" / "records") == {f"{METHOD} 0": whole_run()}
    again = load_network(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items() if name != "_seconds")


def whole_run() -> object:
    return comparable(finished().out / "tiny" / "records")[f"{METHOD} 0"]


@pytest.fixture
def breaking(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that have a plug-in with a network that can be planned and not trained."""
    site = tmp_path / "site"
    (site / "breaking-0.dist-info").mkdir(parents=True)
    (site / "breaking-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: breaking\nVersion: 0\n")
    points = "[mixed_precision.models]\nbreaking = breaking:network\n"
    (site / "breaking-0.dist-info" / "entry_points.txt").write_text(points)
    (site / "breaking.py").write_text(
        "from torch import nn\n"
        "def refuse(gradient):\n"
        "    raise LookupError('not on a Sunday')\n"
        "def network(spec, classes):\n"
        "    first = nn.Conv2d(3, 4, 3)\n"
        "    first.weight.register_hook(refuse)\n"
        "    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
    )
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_network_that_cannot_be_trained_fails_its_trials_and_no_others(engine, breaking, tmp_path):
    suite = write_suite(
        tmp_path, models=[{"name": "breaking"}, *TINY["models"]], methods=["float", METHOD], ceilings=["uniform:w4a4"]
    )
    command = [sys.executable, "runner.py", "--suite", suite, "--engine", engine, "--out", tmp_path / "out"]
    ran = subprocess.run(command, cwd=ROOT, env=breaking, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    records = list(Records(tmp_path / "out" / "tiny" / "records"))
    ended = {(record.spec["model"]["name"], record.status) for record in records}
    assert ended == {("breaking", "failed"), ("resnet18", "ok")}
    assert len(records) == 4
    for record in records:
        if record.status == "failed":
            assert "LookupError: not on a Sunday" in record.result["reason"]["message"]
            assert "in refuse" in record.observed["traceback"]
    assert not any(": lost: " in line or line.startswith("lost: ") for line in (ran.stdout + ran.stderr).splitlines())
    assert (tmp_path / "out" / "tiny" / "report" / "index.html").exists()
    if engine == "ray":
        assert "its worker has gone" not in ran.stderr


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """Float starts cannot be made in this process; called once for each that is tried."""
    raising = mock.Mock(side_effect=ValueError("no such weights"))
    monkeypatch.setattr("benchmarks.trials.float_start.recalibrate_bn", raising)
    return raising


def test_it_is_tried_once_for_all_its_trials_and_again_when_failures_are(untrainable, tmp_path, monkeypatch):
    suite, out = write_suite(tmp_path, methods=["float", METHOD]), tmp_path / "out"
    assert run(suite, out).code == 1
    assert untrainable.call_count == 1
    ran = run(suite, out)
    assert (ran.code, untrainable.call_count) == (1, 1)
    assert "no such weights" in ran.err
    monkeypatch.undo()
    assert run(suite, out, "--retry", "failed").code == 0
    assert {record.status for record in Records(out / "tiny" / "records")} == {"ok"}
    assert not list((out / "float").glob("*.json"))


def test_a_damaged_note_of_a_failure_is_none(untrainable, tmp_path, monkeypatch):
    suite, out = write_suite(tmp_path, methods=[METHOD]), tmp_path / "out"
    run(suite, out)
    (note,) = (out / "float").glob("*.json")
    assert json.loads(note.read_text())["message"].startswith("its float network cannot be trained (ValueError: ")
    note.write_text("{")
    for path in (out / "tiny" / "records").glob("*.json"):
        path.unlink()
    monkeypatch.undo()
    assert run(suite, out).code == 0


@pytest.mark.parametrize("fault", [OSError("disk gone"), MemoryError("no room"), RuntimeError("CUDA error: gone")])
def test_a_fault_of_the_machine_is_none_of_the_networks(fault, untrainable, tmp_path, monkeypatch):
    untrainable.side_effect = fault
    suite, out = write_suite(tmp_path, methods=[METHOD]), tmp_path / "out"
    ran = run(suite, out)
    assert (ran.code, list(Records(out / "tiny" / "records"))) == (1, [])
    assert f"lost: resnet18 · float start · seed 0 and 1 more: {fault}" in ran.err
    monkeypatch.undo()
    assert run(suite, out).code == 0
