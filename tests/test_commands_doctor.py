"""`doctor`: it reports beforehand what would stop a suite, and what to do about it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from benchmarks.commands import doctor
from benchmarks.suites.suite import load_suite
from tests.harness import ROOT, cli
from tests.test_data_preparing import CLASSES, make_tree, spoil


def problems(*arguments: object) -> list[str]:
    ran = cli("doctor", *arguments)
    found = [line.removeprefix("PROBLEM  ") for line in ran.out.splitlines() if line.startswith("PROBLEM")]
    assert ran.code == (1 if found else 0)
    return found


def suite_of(tree: Any, out: Any, *more: object) -> list[str]:
    """What is wrong with `imagenet-full` over a folder, this machine's shared memory left aside."""
    options = ("--set", "resources.loaders=0", *more)
    return problems("--suite", "imagenet-full", "--data", tree, "--out", out, *options)


def test_bad_images_are_a_problem_until_they_are_allowed(tmp_path):
    tree = make_tree(tmp_path / "images")
    spoil(tree, f"train/{CLASSES[0]}/3.JPEG")
    assert cli("prepare", "--data", tree).code == 1
    scratch = ("--set", "weights=none")
    (said,) = suite_of(tree, tmp_path, *scratch)
    assert f"train/{CLASSES[0]}/3.JPEG" in said
    assert "--allow-bad-images 1" in said
    assert suite_of(tree, tmp_path, *scratch, "--allow-bad-images", "1") == []


def test_weights_that_are_not_in_the_folder_or_not_whole_are_named(tmp_path):
    (tmp_path / "weights").mkdir()
    named = ("--suite", "imagenet-full", "--out", tmp_path, "--weights", tmp_path / "weights")
    missing = [line for line in problems(*named) if ".pth" in line]
    assert len(missing) == 3
    (tmp_path / "weights" / "resnet18-f37072fd.pth").write_bytes(b"half a download")
    changed = [line for line in problems(*named) if ".pth" in line]
    assert len(changed) == 3
    assert set(changed) - set(missing) == {line for line in changed if "resnet18-f37072fd.pth" in line}


def test_weights_that_do_not_fit_the_folder_s_classes_are_not_awaited(tmp_path):
    said = suite_of(make_tree(tmp_path / "images"), tmp_path)
    assert len(said) == 3
    assert all("with 2 classes; train from scratch with --set weights=none" in line for line in said)


def test_weights_that_nobody_published_are_named_with_the_known(tmp_path):
    odd = ("--set", "models=[{name: resnet18, weights: BOGUS}]", "--set", "ceilings=['uniform:w4a4']")
    said = suite_of(make_tree(tmp_path / "images"), tmp_path, *odd)
    assert [line.startswith("resnet18 has no weights 'BOGUS'; known: IMAGENET1K_V1") for line in said] == [True]


def test_a_torch_that_cannot_be_imported_is_a_finding_and_the_rest_is_said(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.99: cannot open')")
    ran = subprocess.run(
        [sys.executable, ROOT / "runner.py", "doctor", "--suite", "smoke", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    said = ran.stdout.splitlines()
    assert any(line.startswith("PROBLEM  GPUs") and "libcudart" in line and "make install" in line for line in said)
    assert "ok       ports can be opened on this machine" in said
    assert any(line.startswith("ok       suite smoke") for line in said)


def test_whatever_goes_wrong_while_looking_is_one_finding(tmp_path, monkeypatch):
    def odd(_suite: Any) -> None:
        raise RuntimeError("as nobody expected")

    monkeypatch.setattr(doctor, "_gpus", odd)
    assert problems("--suite", "smoke", "--out", tmp_path) == [
        "GPUs cannot be looked at: RuntimeError('as nobody expected')"
    ]


def test_versions_are_compared_with_those_that_the_project_needs(tmp_path, monkeypatch):
    there = {"torch": "2.10.9+cpu", "ray": "3.0"}
    monkeypatch.setattr(doctor, "version", lambda name: there.get(name) or version(name))
    assert problems("--suite", "smoke", "--out", tmp_path) == [
        "torch 2.10.9+cpu, >=2.11 is needed: `make install`",
        "ray 3.0, <3,>=2.60 is needed: `make install`",
    ]


@pytest.mark.parametrize(
    ("cores", "workers", "cpus", "advice"),
    [(2, 1, 8, None), (8, 2, 4, None), (4, 2, 8, "lower resources.cpus to 2"), (2, 4, 1, "lower resources.workers")],
)
def test_a_trial_takes_what_cores_there_are_and_its_processes_need_room_together(
    monkeypatch, cores, workers, cpus, advice
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    resources = {"resources.cpus": cpus, "resources.workers_per_trial": workers}
    (found,) = doctor._cores(load_suite("imagenet-full", resources))
    assert found.ok == (advice is None)
    assert found.what.startswith(f"{cores} cores, a trial takes {min(cpus, cores) * workers}")
    assert (advice or "") in found.what


@pytest.mark.parametrize(("gpus", "workers", "ok"), [(0, 1, True), (0, 4, True), (1, 1, True), (1, 4, False)])
def test_a_trial_runs_without_gpus_but_not_with_too_few(monkeypatch, gpus, workers, ok):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "H200")
    (found,) = doctor._gpus(load_suite("imagenet-full", {"resources.workers_per_trial": workers}))
    assert found.ok == ok
    assert ("runs on the CPU" in found.what) == (gpus == 0)
    assert ("lower resources.gpus" in found.what) == (not ok)


def test_a_low_limit_of_open_files_is_said(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        (said,) = problems("--suite", "smoke", "--out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said.startswith("512 files may be open")
    assert "ulimit -n" in said


def test_a_machine_without_ports_is_told_of_the_local_engine(tmp_path, monkeypatch):
    def refuse(*_arguments: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "create_server", refuse)
    (said,) = problems("--suite", "smoke", "--out", tmp_path)
    assert "--engine local" in said


def test_shared_memory_must_hold_what_the_loaders_hand_over(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_MIN_SHARED_MEMORY_MB", 10**9)
    (said,) = problems("--suite", "smoke", "--out", tmp_path)
    assert "--shm-size" in said


def test_loaders_of_every_process_of_a_trial_are_counted():
    one, four = (load_suite("imagenet-full", {"resources.workers_per_trial": count}) for count in (1, 4))
    assert doctor._loaded_bytes(four) == 4 * doctor._loaded_bytes(one) > 0


def test_shared_memory_holds_what_was_measured_on_imagenet(monkeypatch):
    """2,225 MB at most in /dev/shm over a trial of imagenet-full: training's batches and evaluation's."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    assert round(doctor._loaded_bytes(load_suite("imagenet-full", {})) / 1e6) == 2225
    assert doctor._loaded_bytes(load_suite("imagenet-full", {"resources.loaders": 0})) == 0


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_is_no_output_folder(tmp_path, below):
    file = tmp_path / "there"
    file.touch()
    (said,) = problems("--suite", "smoke", "--out", file / below)
    assert said == f"{file.resolve()} is no folder: choose another with --out"


@pytest.mark.parametrize("place", ["no/such/folder/yet", "there"])
def test_a_folder_that_is_not_there_yet_is_judged_by_its_parents(tmp_path, place):
    (tmp_path / "there").mkdir()
    assert problems("--suite", "smoke", "--out", tmp_path / place) == []


def test_convolutions_that_may_crash_without_avx512_are_a_problem(tmp_path, monkeypatch):
    assert "are right without AVX-512, too" in cli("doctor", "--suite", "smoke", "--out", tmp_path).out
    monkeypatch.setattr("methods.quantization.strided_pointwise.serves_the_cpu", lambda: False)
    (said,) = problems("--suite", "smoke", "--out", tmp_path)
    assert said.startswith("gradients of narrow strided 1x1 convolutions are torch's own")
