"""The example package of docs/plugin, installed and used as an outside user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import methods
from benchmarks.suites import plugins
from methods.quantization.policy import LayerBits
from tests.harness import ROOT, cli, comparable, write_suite

EXAMPLE = ROOT / "docs" / "plugin"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, installed beside it."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(EXAMPLE, folder / "package")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "site", folder / "package"], check=True)
    return folder


def run(outside: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(outside / "site")}
    command = [sys.executable, str(ROOT / "runner.py"), *arguments]
    return subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, check=False)


def test_the_method_is_short() -> None:
    assert len((EXAMPLE / "example_method.py").read_text(encoding="utf-8").splitlines()) < 60


def test_the_method_in_the_readme_is_whole() -> None:
    _, _, code = (ROOT / "README.md").read_text(encoding="utf-8").partition("```python\n")
    scope: dict[str, Any] = {}
    exec(code.partition("```")[0], scope)
    problem = SimpleNamespace(candidates={"layer": [LayerBits(4, 2), LayerBits(4, 8)]})
    assert scope["Cheapest"](problem, None).result().policy["layer"] == LayerBits(4, 2)


IN_TRIALS = "engine or killed or reach"
"""The questions that have whole trials run, by both engines."""


def passed(outside: Path, only: str) -> int:
    """How many questions of the exam were asked of the method; it has to pass them all."""
    checked = run(outside, "check", "fisher", "--set", "batches=4", "--only", only)
    assert checked.returncode == 0, checked.stdout
    lines = checked.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == []
    return sum(line.startswith("ok ") for line in lines)


def test_it_is_listed_and_passes_the_exam_outside_trials(outside: Path) -> None:
    assert "fisher" in run(outside, "list").stdout
    assert passed(outside, f"not ({IN_TRIALS})") >= 13


@pytest.mark.complete
def test_it_passes_the_exam_in_trials(outside: Path) -> None:
    assert passed(outside, IN_TRIALS) == 3


def test_its_network_and_dataset_run_beside_the_baselines(outside: Path) -> None:
    suite = str(outside / "package" / "suite.yaml")
    planned = run(outside, "plan", "--suite", suite)
    assert planned.returncode == 0, planned.stderr
    ran = run(outside, "--suite", suite, "--engine", "local")
    assert ran.returncode == 0, ran.stderr
    records = comparable(outside / "runs" / "example" / "records")
    assert {result["status"] for _, result in records.values()} == {"ok"}
    assert set(records) == {"float 0", "uniform-lsq 0", "fisher 0", "random 0"}
    assert (outside / "runs" / "example" / "report" / "index.html").is_file()


def test_unknown_networks_and_datasets_are_named_with_those_of_plug_ins(outside: Path) -> None:
    text = (EXAMPLE / "suite.yaml").read_text(encoding="utf-8")
    for wrong, right in (("three_layer", "three_layers"), ("stripe", "stripes")):
        suite = outside / "wrong.yaml"
        suite.write_text(text.replace(f": {right}", f": {wrong}"), encoding="utf-8")
        refused = run(outside, "plan", "--suite", str(suite))
        assert refused.returncode == 2
        assert f"unknown value '{wrong}'" in refused.stderr
        assert f"did you mean '{right}'?" in refused.stderr


def test_published_weights_of_a_plug_in_s_network_are_refused(outside: Path) -> None:
    text = (EXAMPLE / "suite.yaml").read_text(encoding="utf-8")
    suite = outside / "weights.yaml"
    suite.write_text(text.replace("{name: three_layers}", "{name: three_layers, weights: BEST}"), encoding="utf-8")
    refused = run(outside, "--suite", str(suite), "--engine", "local", "--out", str(outside / "other"))
    assert refused.returncode != 0
    assert (
        "has no published weights here; train from scratch with --set weights=none" in refused.stdout + refused.stderr
    )


BROKEN = {
    "nomod:X": "No module named 'nomod'",
    "halves:X": "module 'halves' has no attribute 'X'",
    "torn:X": "invalid syntax",
    "unbound:X": "name 'FixedChoice' is not defined",
    "halves:Half": "is no method: it lacks searches, ",
}
"""Entry points that cannot be used, and what is said of them."""


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Brings an entry point: its group, name and value, of modules that are broken in several ways."""
    (tmp_path / "halves.py").write_text("class Half:\n    version = 1\n")
    (tmp_path / "torn.py").write_text("class X(:\n")
    (tmp_path / "unbound.py").write_text("class X(FixedChoice): ...\n")
    monkeypatch.syspath_prepend(tmp_path)

    def bring(group: str, name: str, value: str) -> None:
        for module in (methods, plugins):
            found = [EntryPoint(name, value, group)]
            monkeypatch.setattr(
                module, "entry_points", lambda group, found=found: [p for p in found if p.group == group]
            )

    methods.known_methods.cache_clear()
    plugins.plugged.cache_clear()
    yield bring
    methods.known_methods.cache_clear()
    plugins.plugged.cache_clear()


@pytest.mark.parametrize(("value", "why"), BROKEN.items())
def test_a_broken_method_is_told_in_a_line_and_harms_no_other(brought, value, why, tmp_path):
    brought(methods.ENTRY_POINTS, "b1", value)
    for command in (["check", "b1"], ["plan", "--suite", "smoke", "--methods", "b1", "--out", tmp_path]):
        ran = cli(*command)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        for part in (f"error: plug-in 'b1' ({value})", why, "fix or uninstall it"):
            assert part in ran.err
    listed = cli("list")
    assert listed.code == 0
    (row,) = [line for line in listed.out.splitlines() if line.startswith("b1 ")]
    assert why in row
    assert "\nuniform-lsq " in listed.out


def test_a_broken_dataset_and_a_broken_network_are_wrong_use(brought, tmp_path):
    brought(plugins.DATASETS, "b2", "nomod:X")
    data = {"dataset": "b2", "image_size": 8, "classes": 10}
    suite = write_suite(tmp_path, data=data, methods=["uniform-lsq"])
    ran = cli("--suite", suite, "--out", tmp_path / "out", "--engine", "local")
    assert (ran.code, "plug-in 'b2' (nomod:X): No module named 'nomod'; fix or uninstall it" in ran.err) == (2, True)
    plugins.plugged.cache_clear()
    brought(plugins.MODELS, "b3", "nomod:X")
    ran = cli("plan", "--suite", write_suite(tmp_path, models=[{"name": "b3"}]))
    assert (ran.code, "error: plug-in 'b3' (nomod:X): No module named 'nomod'" in ran.err) == (2, True)
