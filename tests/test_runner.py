"""The command line as a user has it."""

from __future__ import annotations

import errno
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import yaml
from PIL import Image

from benchmarks.commands import evaluate as rescoring
from benchmarks.commands import session
from benchmarks.data.folders import DATA_VARIABLE
from benchmarks.events import Progress
from benchmarks.files import write_text_atomic
from benchmarks.messages import SuiteError
from benchmarks.planning import plan
from benchmarks.records.record import read_record
from benchmarks.records.tracking import Tracker
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.suite import load_suite
from benchmarks.trials.checkpoint import load_network, save_network
from benchmarks.trials.evaluation import Score
from benchmarks.trials.trial import run as run_trial
from tests.fabricated import make_record, write_records
from tests.harness import (
    METHODS,
    ROOT,
    TINY,
    Ran,
    cli,
    comparable,
    copy_finished,
    copy_float_starts,
    files_of,
    finished,
    write_suite,
)

# mlflow and alembic warn about their own dependencies, each release of others; nothing of ours is in their hands.
pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::alembic", "ignore:::sqlalchemy")

HEAVY = {"torch", "ray", "mlflow"}


def imported_by(*commands: list[str], heavy: set[str] = HEAVY) -> set[str]:
    """The heavy packages that a fresh interpreter has imported after these commands, each of which must end well."""
    script = (
        "import json, sys, runner\n"
        "codes = [runner.main(command) for command in json.loads(sys.argv[1])]\n"
        "print('\\n' + json.dumps([codes, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * len(commands), done.stdout + done.stderr
    return heavy & set(modules)


def test_help_list_and_plan_import_nothing_heavy():
    suites = [["plan", "--suite", name] for name in ("smoke", "quick", "imagenet-full")]
    assert imported_by(["--help"], ["run", "--help"], ["list"], ["list", "--json"], *suites) == set()


def test_options_that_commands_share_are_the_ones_of_each(tmp_path):
    """A shared option reaches the command that takes it, and is refused by one that does not."""
    told: list[Any] = []
    with mock.patch("benchmarks.commands.doctor.examine", side_effect=lambda *what: told.append(what) or []):
        cut = ["--suite", "smoke", "--out", tmp_path, "--set", "ceilings=[uniform:w4a4]", "--allow-bad-images", "3"]
        assert cli("doctor", *cut).code == 0
    ((suite, data, out, weights, bad_images),) = told
    assert (suite.ceilings, data, out, weights, bad_images) == (("uniform:w4a4",), None, tmp_path, None, 3)
    refused(cli("doctor", *cut, "--seeds", "1"), "--seeds", "--help")


def test_help_answers_without_even_numpy():
    assert imported_by(["--help"], heavy=HEAVY | {"numpy", "pandas", "scipy"}) == set()


def test_a_finished_suite_run_again_imports_nothing_heavy_and_changes_nothing(tmp_path):
    folder = Workspace(tmp_path, "smoke").records.folder
    write_records(plan(load_suite("smoke")), folder)
    command = ["--suite", "smoke", "--out", str(tmp_path)]
    assert imported_by(command) == set()  # builds the report
    before = files_of(tmp_path)
    assert any(name.endswith("index.html") for name in before)
    assert imported_by(command) == set()
    assert files_of(tmp_path) == before


def test_a_command_is_a_process_with_its_exit_code(tmp_path):
    command = [sys.executable, "runner.py", "--suite", "smok", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_list_names_every_suite_method_data_set_and_network():
    listed = json.loads(cli("list", "--json").out)
    assert {"smoke", "quick", "digits-full", "imagenet-full"} <= set(listed["suites"])
    assert {*METHODS, "given"} <= set(listed["methods"])
    assert all(listed["suites"].values())
    assert {"digits", "imagefolder"} <= set(listed["datasets"])
    assert {"resnet18", "mobilenet_v2"} <= set(listed["networks"])
    words = [*listed["methods"].values(), *listed["datasets"].values(), *listed["networks"].values()]
    assert all(described.endswith(".") for described in words)
    assert not [described for described in listed["methods"].values() if "(" in described]  # words, no formula


def refused(ran: Ran, *parts: str) -> None:
    """Exit code 2 and one message, on one line, that has all of `parts`."""
    assert ran.code == 2, ran
    assert len(ran.err.splitlines()) == 1, ran.err
    assert ran.err.startswith("error: ")
    for part in parts:
        assert part in ran.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--suite", "smok"], ["'smok'", "quick", "did you mean 'smoke'?"]),
        (["--suite", "there-is-none.yaml"], ["there-is-none.yaml"]),
        (["--suite", "smoke", "--methods", "metamx"], ["'metamx'", "hawq", "did you mean 'metamix'?"]),
        (["--suite", "quick", "--models", "resnet"], ["'resnet'", "mobilenet_v2", "did you mean 'resnet18'?"]),
        (["--suite", "smoke", "--engine", "rya"], ["'rya'", "local", "did you mean 'ray'?"]),
        (["--suite", "smoke", "--retry", "failures"], ["'failures'", "failed"]),
        (["--suite", "smoke", "--set", "recipe.batchsize=3"], ["'batchsize'", "did you mean 'batch_size'?"]),
        (["--suite", "smoke", "--set", "recipe.epochs=3"], ["'epochs'", "compute.epochs", "pretraining.epochs"]),
        (["--suite", "smoke", "--set", "data.augment=afine"], ["'afine'", "crop-flip", "did you mean 'affine'?"]),
        (["--suite", "smoke", "--set", "recipe.batch_size"], ["key=value"]),
        (["--suite", "smoke", "--set", "suite.name=3"], ["'suite' holds no keys"]),
        (["--suite", "smoke", "--seeds", "0,x"], ["whole numbers"]),
        (["plan", "--suite", "smoke", "--methods", "given"], ["options of given: policy"]),
        (["plan", "--suite", "smoke", "--seeds", "-1"], ["--seeds '-1'", "from 0 on"]),
        (["plan", "--suite", "smoke", "--seeds", "1,,2"], ["--seeds '1,,2'", "comma"]),
        (["plan", "--suite", "smoke", "--methods", ","], ["--methods ','", "comma"]),
        (["sweep", "--suite", "smoke", "--shares", "1,1.0"], ["--shares '1,1.0'", "two or more different"]),
        (["plan", "--suite", "folder/mine"], ["no suite folder/mine", "`list`", ".yaml"]),
        (["plan", "--suite", "smoke", "--gap", "x"], ["'--gap'", "valid number", "--help"]),
        (["trial", "--suite", "smoke"], ["TRIAL", "--help"]),
        (["plan", "--suite", "smoke", "--data", "/nope"], ["no data folder /nope", "--data"]),
        (["plan", "--suite", "smoke", "--weights", "/nope"], ["'--weights'", "'/nope' does not exist"]),
        (["--suit", "smoke"], ["--suit", "--help"]),
        (["lst"], ["'lst'", "mlflow-sync", "did you mean 'list'?", "--help"]),
        (["trial", "ffff", "--suite", "smoke"], ["ffff", "plan"]),
        (["evaluate", "ffff", "--suite", "smoke"], ["ffff", "plan"]),
    ],
    ids=lambda value: "-".join(value) if value[0].startswith("-") or value[0].isalpha() else "",
)
def test_wrong_use_is_one_message_with_the_known_and_the_nearest(arguments, parts, tmp_path):
    out = [] if arguments[0] == "lst" else ["--out", tmp_path / "out"]
    refused(cli(*arguments, *out), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("seeds=3", "seeds: got 3; write a list, such as [3]"),
        ("seeds=0,1", "seeds: got '0,1'; write a list, such as [0,1]"),
        ("seeds=[0,-1]", "seeds.1: Input should be greater than or equal to 0, got -1"),
        ("ceilings={a: 1}", "ceilings: got {'a': 1}; write a list"),
        ("ceilings=[]", "ceilings: the list is empty"),
        ("ceilings=uniform:w4a4", "ceilings: got 'uniform:w4a4'; write a list, such as [uniform:w4a4]"),
        ("ceilings=[uniform:w9a9]", "ceiling 'uniform:w9a9': write uniform:w4a4 (1 to 8 bits)"),
        ("ceilings=[[1]]", "ceiling [1]: write uniform:w4a4"),
        ("ceilings=[true]", "ceiling True: write uniform:w4a4"),
        ("ceilings=['1e999']", "1e999 is no number of BOPs"),
        ("recipe=3", "recipe: got 3; write values by key, of optimizer, batch_size"),
        ("compute.search_share=[1]", "compute.search_share: got [1]; write values by key"),
        ("suite=a b", "suite: got 'a b'; write small letters"),
        ("models.0.width=0.2", "'models' is a list, which is set as a whole: --set 'models=[...]'"),
        ("seeds=[", "--set 'seeds=[': line 1, column 2: expected the node content"),
    ],
)
def test_a_wrong_setting_says_what_to_write_in_one_line(setting, part, tmp_path):
    refused(cli("plan", "--suite", "smoke", "--out", tmp_path, "--set", setting), part)


LR_GRID = {"recipe.optimizer.lr": [0.001, 0.003]}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"recipie": {}}, ["'recipie'", "seeds", "did you mean 'recipe'?"]),
        ({"recipe": {**TINY["recipe"], "warmup": 0.1}}, ["'warmup'", "did you mean 'warmup_share'?"]),
        ({"models": [{"name": "resnet81"}]}, ["'resnet81'", "mobilenet_v3_large", "did you mean 'resnet18'?"]),
        ({"methods": ["hawk"]}, ["'hawk'", "metamix", "did you mean 'hawq'?"]),
        ({"methods": [{"name": "hawq", "options": {"errors": 1}}]}, ["'errors'", "did you mean 'error'?"]),
        ({"methods": ["hawq", "hawq"]}, ["must differ"]),
        ({"ceilings": ["uniform:4"]}, ["uniform:w4a4"]),
        ({"recipe": {**TINY["recipe"], "micro_batch": 5}}, ["micro_batch 5", "batch_size 8"]),
        ({"compute": {"epochs": math.inf}}, ["compute.epochs", "finite"]),
        ({"recipe": {**TINY["recipe"], "optimizer": {"lr": math.inf}}}, ["recipe.optimizer.lr", "finite"]),
        ({"methods": [{"name": "metamix", "options": {"lr_scale": math.inf}}]}, ["options of metamix", "finite"]),
        ({"ceilings": [math.inf]}, ["ceilings", "inf is no number of BOPs"]),
        ({"methods": [{"grid": LR_GRID}]}, ["name"]),
        ({"methods": [{"name": "hawq", "label": ["a"], "grid": LR_GRID}]}, ["label"]),
        ({"methods": [{"name": "hawq", "settings": 3, "grid": LR_GRID}]}, ["settings"]),
        ({"methods": [{"name": "hawq", "grid": {3: [4]}}]}, ["grid: give lists of values by key"]),
        ({"models": [{"name": "resnet18", "width": 0.001, "form": "small"}]}, ["resnet18", "0.001"]),
        ({"data": {**TINY["data"], "classes": 12}}, ["digits has 10 classes, not 12"]),
        ({"data": {"dataset": "cifar10", "image_size": 64, "classes": 10}}, ["cifar10 has images of 32 pixels"]),
        ({"recipe": {**TINY["recipe"], "batch_size": 1024}}, ["batch_size 1024 exceeds the 960 images"]),
        (
            {"data": {"dataset": "procedural", "preset": "procedural-20", "train": 32}},
            ["batch_size 64 exceeds the 32 images"],
        ),
        ({"teacher": {"name": "resnet101", "width": 0.5}}, ["teacher", "at width 1"]),
        (
            {"models": [{**TINY["models"][0], "weights": "IMAGENET1K_V1"}]},
            ["fits resnet18 at width 1", "form small with 10 classes", "weights=none"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_suite_file_is_one_message(changes, parts, tmp_path):
    refused(cli("plan", "--suite", write_suite(tmp_path, **changes)), *parts)


def test_a_suite_file_that_is_no_suite_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    refused(cli("plan", "--suite", path), "not a suite")
    path.write_text("a: 1\nb: [")
    refused(cli("plan", "--suite", path), "list.yaml: line 2, column 5: expected")
    path.write_text("recipe: {batch_size: 1,\n  batch_size: 2}")
    refused(cli("plan", "--suite", path), "list.yaml: line 2, column 3: the key 'batch_size' is there already")


def given_suite(tmp_path: Path, layers: dict[str, Any]) -> Path:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"schema": 1, "layers": layers}))
    entry = {"name": "given", "options": {"policy": str(policy)}}
    suite = yaml.safe_load((ROOT / "benchmarks/suites/smoke.yaml").read_text(encoding="utf-8"))
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({**suite, "methods": [entry]}))
    return tmp_path / "given.yaml"


def test_an_unknown_layer_of_a_given_policy_is_refused_before_anything_runs(tmp_path):
    searchable = [layer.name for layer in plan(load_suite("smoke")).trials[0].ledger if not layer.pinned]
    wrong = searchable[0].replace("block", "blok")
    layers = {name: [4, 4] for name in [wrong, *searchable[1:]]}
    refused(cli("plan", "--suite", given_suite(tmp_path, layers)), repr(wrong), f"did you mean {searchable[0]!r}?")
    right = {name: [4, 4] for name in searchable}
    assert cli("plan", "--suite", given_suite(tmp_path, right)).code == 0
    del right[searchable[-1]]
    refused(cli("plan", "--suite", given_suite(tmp_path, right)), searchable[-1])


def test_a_record_without_a_result_is_no_policy(tmp_path):
    path = given_suite(tmp_path, {})
    (tmp_path / "policy.json").write_text('{"result": 5}')
    refused(cli("plan", "--suite", path), "policy.json", "not a policy")


def test_a_ceiling_below_the_cheapest_policy_is_refused_with_both_figures(tmp_path):
    trials = plan(load_suite("smoke", {"ceilings": ["uniform:w4a3"]})).trials
    cheapest = trials[-1].spec.ceiling_bops
    assert cheapest is not None
    arguments = ["--suite", "smoke", "--out", tmp_path / "out", "--set", f"ceilings=[{cheapest - 1}]"]
    refused(cli(*arguments), f"{cheapest - 1:,}", f"{cheapest:,}")
    assert not (tmp_path / "out").exists()


def test_missing_data_names_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    arguments = ["--suite", "imagenet-full", "--out", tmp_path / "out"]
    refused(cli(*arguments), f"${DATA_VARIABLE}/imagefolder", str(tmp_path / "data" / "imagefolder"), "--data")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "elsewhere"))
    refused(cli(*arguments), f"${DATA_VARIABLE}/imagefolder", str(tmp_path / "data" / "imagefolder"), "--data")
    refused(cli(*arguments, "--data", tmp_path / "given"), str(tmp_path / "given"), "train/")
    assert not (tmp_path / "out").exists()


def test_empty_and_wrongly_laid_out_data_are_refused(tmp_path):
    data = tmp_path / "data"
    arguments = ["--suite", "imagenet-full", "--out", tmp_path / "out", "--data", data]
    data.mkdir()
    refused(cli(*arguments), f"no folder {data / 'train'}", "train/<class>/")
    (data / "train").mkdir()
    refused(cli(*arguments), f"{data / 'train'} is empty")
    (data / "train" / "cat").mkdir()
    refused(cli(*arguments), f"no folder {data / 'val'}")
    (data / "val" / "cat").mkdir(parents=True)
    refused(cli(*arguments), "at least 2")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_output_folder_is_refused_before_anything_runs(tmp_path, monkeypatch):
    def full(**_arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(session.tempfile, "NamedTemporaryFile", full)
    refused(cli("--suite", "smoke", "--out", tmp_path), str(tmp_path), "Read-only file system", "--out")


def test_an_unreachable_cluster_is_refused_at_once(tmp_path):
    # Port 1 is privileged and unused: the connection is refused. Ray itself would try for some minutes.
    arguments = ["--suite", "smoke", "--address", "127.0.0.1:1", "--out", tmp_path]
    refused(cli(*arguments), "127.0.0.1:1", "--engine local")


def test_a_run_says_what_it_did_and_where_it_is():
    suite, out, ran = finished()
    assert set(comparable(out / "tiny" / "records")) == {f"{name} 0" for name in METHODS}
    assert "[7/7]" in ran.out
    for place in (out / "tiny" / "report" / "index.html", out / "tiny" / "records", out / "mlflow.db"):
        assert place.exists()
        assert str(place) in ran.out
    assert not list((out / "tiny" / "checkpoints").glob("*"))
    listed = json.loads(cli("plan", "--suite", suite, "--out", out, "--json").out)
    assert [row["status"] for row in listed] == ["ok"] * len(METHODS)
    assert "from 1 float starts, 1 of them there; 0 to run" in cli("plan", "--suite", suite, "--out", out).out
    assert "from 1 float starts, 0 of them there; 6 to run" in cli("plan", "--suite", suite, "--out", out / "no").out


def only_record(out: Path, method: str) -> Path:
    (path,) = [path for path in (out / "tiny" / "records").glob("*.json") if f'"name": "{method}"' in path.read_text()]
    return path


def damage(path: Path, how: str) -> None:
    text = path.read_text()
    data = json.loads(text)
    if how == "altered":
        data["result"]["metrics"]["test_accuracy"] += 0.01
    elif how == "other schema":
        data["schema"] = 99
    path.write_text(text[: len(text) // 2] if how == "truncated" else json.dumps(data))


@pytest.mark.parametrize("how", ["truncated", "altered", "other schema"])
def test_a_damaged_record_is_named_left_out_and_run_again(how, tmp_path):
    out = copy_finished(tmp_path)
    records, command = out / "tiny" / "records", ["--suite", finished().suite, "--out", out]
    path, whole = only_record(out, "hawq"), comparable(records)
    damage(path, how)
    before, damaged = files_of(out), path.read_bytes()
    planned = cli("plan", *command)
    assert (planned.code, files_of(out) == before) == (0, True)
    assert "; 1 to run" in planned.out
    assert planned.err.count(f"warning: {path}: ") == 1
    assert cli("report", *command).code == 0
    assert "damaged" in (out / "tiny" / "report" / "report.md").read_text()
    assert path.read_bytes() == damaged
    ran = cli(*command, "--engine", "local")
    assert ran.code == 0, ran.err
    assert f"it is now {path.stem}.damaged, its trial runs again" in ran.err
    assert "6 trials, 5 done already" in ran.out
    assert comparable(records) == whole
    assert path.with_suffix(".damaged").read_bytes() == damaged


def test_a_damaged_checkpoint_costs_its_trial_a_word_and_nothing_else(tmp_path):
    out = copy_finished(tmp_path)
    before = comparable(out / "tiny" / "records")
    path = only_record(out, "random")
    path.unlink()
    checkpoint = Workspace(out, "tiny").checkpoint(path.stem)
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(b"half a checkpoint")
    ran = cli("--suite", finished().suite, "--out", out, "--engine", "local")
    assert ran.code == 0
    assert f"{checkpoint}: truncated or altered" in ran.err
    assert "it starts from its beginning" in ran.err
    assert not checkpoint.exists()
    assert comparable(out / "tiny" / "records") == before


def test_what_would_be_lost_again_is_wrong_use_and_the_rest_is_done(tmp_path, monkeypatch):
    out = copy_finished(tmp_path)
    paths = [only_record(out, method) for method in ("random", "uniform-lsq")]

    def harmed(spec: Any, *_others: Any) -> Any:
        if spec.method.name != "random":
            return run_trial(spec, *_others)
        raise SuiteError("lower it")

    monkeypatch.setattr("benchmarks.trials.trial.run", harmed)
    for path in paths:
        path.unlink()
    ran = cli("--suite", finished().suite, "--out", out, "--engine", "local")
    assert ran.code == 2
    (said,) = [line for line in ran.err.splitlines() if not line.startswith("warning: ")]
    assert said.startswith("error: ")
    assert said.endswith("seed 0: lower it")
    assert "same command again" not in ran.out
    assert [path.exists() for path in paths] == [False, True]
    alone = cli("trial", paths[0].stem, "--suite", finished().suite, "--out", out)
    assert (alone.code, alone.err) == (2, said + "\n")


def test_the_kept_network_scores_as_its_record_says():
    suite, out, _ = finished()
    for method in ("float", "metamix"):
        record = read_record(only_record(out, method))
        ran = cli("evaluate", record.id[:8], "--suite", suite, "--out", out)
        assert ran.code == 0
        assert f"{100 * record.result['metrics']['test_accuracy']:.2f} % of 600 images" in ran.out
        assert "the same" in ran.out


def test_a_network_is_scored_again_where_its_suite_runs(monkeypatch):
    places = []

    def rescore(_record: object, _workspace: object, runtime: Runtime) -> Score:
        places.append(runtime.device)
        return Score(0.5, 0.0, 600)

    monkeypatch.setattr(session.Session, "placed", lambda self: replace(self.runtime, gpu=True))
    monkeypatch.setattr(rescoring, "rescore", rescore)
    suite, out, _ = finished()
    cli("evaluate", only_record(out, "hawq").stem, "--suite", suite, "--out", out)
    assert places == ["cuda"]


def test_a_network_that_is_not_the_records_is_refused(tmp_path):
    out = copy_finished(tmp_path)
    networks = out / "tiny" / "networks"
    record, other = only_record(out, "random").stem, only_record(out, "hawq").stem
    shutil.copy(networks / f"{other}.pt", networks / f"{record}.pt")
    refused(cli("evaluate", record, "--suite", finished().suite, "--out", out), f"{record}.pt", "truncated or altered")
    save_network(networks / f"{record}.pt", load_network(networks / f"{other}.pt"))
    refused(cli("evaluate", record, "--suite", finished().suite, "--out", out), f"{record}.pt", "not the network")
    (networks / f"{record}.pt").unlink()
    refused(cli("evaluate", record, "--suite", finished().suite, "--out", out), f"{record}.pt", "small suites only")


def test_the_report_is_rebuilt_from_records_alone(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished().out / "tiny" / "records", out / "tiny" / "records")
    ran = cli("report", "--suite", finished().suite, "--out", out)
    assert ran.code == 0
    page = (out / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert all(method in page for method in METHODS)
    assert str(out / "tiny" / "report" / "index.html") in ran.out


def test_a_report_of_a_part_says_how_to_have_the_whole(tmp_path):
    out = tmp_path / "a b"
    write_records(plan(load_suite("smoke")), Workspace(out, "smoke").records.folder)
    whole = ["report", "--suite", "smoke", "--out", out]
    for command in (["report"], []):
        ran = cli(*command, "--suite", "smoke", "--out", out, "--methods", "float", "--seeds", "0")
        assert ran.code == 0
        (said,) = [line for line in ran.err.splitlines() if "a part of the suite" in line]
        assert "(--methods float --seeds 0)" in said
        assert shlex.split(said.partition("; for that: python runner.py ")[2]) == list(map(str, whole))
    assert "a part of the suite" not in cli(*whole).err


def test_job_arrays_need_ids_and_trials_only(tmp_path):
    out = copy_finished(tmp_path)
    path = only_record(out, "uniform-lsq")
    before = path.read_text()
    path.unlink()
    suite = finished().suite
    assert cli("plan", "--ids", "--suite", suite, "--out", out).out.split() == [path.stem]
    ran = cli("trial", path.stem, "--suite", suite, "--out", out)
    assert ran.code == 0
    assert str(path) in ran.out
    assert {key: json.loads(path.read_text())[key] for key in ("spec", "result")} == {
        key: json.loads(before)[key] for key in ("spec", "result")
    }
    assert cli("plan", "--ids", "--suite", suite, "--out", out).out == ""


def test_a_job_array_runs_what_a_cut_down_plan_lists(tmp_path):
    out, suite = copy_finished(tmp_path), finished().suite
    cut = ["--suite", suite, "--out", out, "--methods", "uniform-lsq", "--seeds", "7", "--set", "compute.epochs=0.05"]
    (listed,) = cli("plan", "--ids", *cut).out.split()
    assert cli("trial", listed, *cut).code == 0
    assert cli("plan", "--ids", *cut).out == ""
    assert "the same" in cli("evaluate", listed, *cut).out
    assert "1 records mirrored" in cli("mlflow-sync", *cut).out


def test_failed_trials_are_run_again_on_request_only(tmp_path):
    out = copy_float_starts(tmp_path)
    suite = write_suite(tmp_path, methods=["uniform-lsq"], compute={"epochs": 0.02, "search_share": 0.9})
    arguments = ["--suite", suite, "--out", out, "--engine", "local", "--set", "recipe.optimizer.lr=1e30"]
    ran = cli(*arguments)
    assert ran.code == 1
    assert "failed: " in ran.err
    (path,) = (out / "tiny" / "records").glob("*.json")
    assert read_record(path).status == "failed"
    assert "finite" in read_record(path).result["reason"]["message"]
    assert "Traceback" in read_record(path).observed["traceback"]
    written = path.stat().st_mtime_ns
    assert cli(*arguments).code == 1
    assert path.stat().st_mtime_ns == written
    assert cli(*arguments, "--retry", "failed").code == 1
    assert path.stat().st_mtime_ns > written


def image_tree(folder: Path, classes: int = 2, images: int = 12) -> Path:
    """ImageNet's layout with plain colour images; every fourth is a grey PNG."""
    for part, count in (("train", images), ("val", 2)):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            for index in range(count):
                grey = index % 4 == 3
                image = Image.new("L" if grey else "RGB", (20 + index, 16), 60 * label if grey else (60 * label, 9, 9))
                image.save(place / f"{index}.{'png' if grey else 'jpeg'}")
    return folder


FOLDER_SUITE = {
    "data": {"dataset": "imagefolder", "image_size": 16, "classes": 2, "augment": "crop-flip"},
    "methods": ["uniform-lsq"],
    "pretraining": {"epochs": 1, "recipe": {**TINY["recipe"], "batch_size": 4, "micro_batch": 4}},
    "recipe": {**TINY["recipe"], "batch_size": 4, "micro_batch": 4},
    "compute": {"epochs": 1},
}


def test_an_unreadable_image_loses_the_trials_that_need_it_and_is_named(tmp_path):
    data = image_tree(tmp_path / "images")
    for broken in sorted((data / "train" / "class1").iterdir()):
        broken.write_bytes(b"not an image")
    arguments = ["--suite", write_suite(tmp_path, **FOLDER_SUITE), "--data", data, "--out", tmp_path / "out"]
    ran = cli(*arguments, "--engine", "local")
    assert ran.code == 1
    assert "cannot read the image" in ran.err
    assert str(data / "train" / "class1") in ran.err
    assert not list((tmp_path / "out" / "tiny" / "records").glob("*.json"))


def test_the_imagenet_suite_runs_on_a_small_tree(tmp_path):
    data = image_tree(tmp_path / "images", classes=3)
    settings = ["weights=none", "data.image_size=32", "compute.epochs=1", "pretraining.epochs=1", "resources.gpus=0"]
    settings += [
        f"{part}.{size}=4" for part in ("recipe", "pretraining.recipe") for size in ("batch_size", "micro_batch")
    ]
    settings += ["ceilings=['uniform:w4a4']", "recipe.precision=float32"]
    arguments = ["--suite", "imagenet-full", "--data", data, "--out", tmp_path / "out", "--engine", "local"]
    only = ["--methods", "uniform-lsq", "--models", "resnet18", "--seeds", "0"]
    ran = cli(*arguments, *only, *[part for setting in settings for part in ("--set", setting)])
    assert ran.code == 0, ran
    (path,) = (tmp_path / "out" / "imagenet-full" / "records").glob("*.json")
    record = read_record(path)
    assert (record.status, record.spec["data"]["classes"]) == ("ok", 3)
    assert (tmp_path / "out" / "imagenet-full" / "report" / "index.html").exists()


def test_what_to_run_next_has_the_options_that_were_given(tmp_path):
    given = ["--suite", "smoke", "--out", tmp_path / "a b", "--seeds", "0", "--set", "ceilings=['uniform:w4a4']"]
    following = cli("plan", *given).out.splitlines()[-1].removeprefix("next: ")
    assert shlex.split(following) == ["python", "runner.py", *map(str, given)]
    cut = [*map(str, given), "--methods", "float"]
    ran = cli(*shlex.split(following)[2:], "--methods", "float", "--engine", "local")
    assert ran.code == 0, ran.err
    (again,) = [line for line in ran.out.splitlines() if line.startswith("again: ")]
    command = shlex.split(again.removeprefix("again: ").partition("  (")[0])
    assert command[:4] == ["python", "runner.py", "evaluate", "TRIAL"]
    assert sorted(command[4:]) == sorted(cut)


def mlflow_runs(out: Path) -> tuple[Any, list[Any]]:
    """The suite's own run and those nested in it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "mixed-precision/tiny"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == len(runs) - 1
    return client, nested


def mirrored(out: Path) -> dict[str, Any]:
    """Everything that MLflow has of the suite's trials, by trial."""
    client, nested = mlflow_runs(out)
    return {
        run.data.tags["trial_id"]: (
            run.data.params,
            run.info.status,
            {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
            sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id)),
        )
        for run in nested
    }


def test_mlflow_has_a_nested_run_per_trial_and_syncing_adds_nothing_twice(tmp_path):
    suite, out, _ = finished()
    live = mirrored(out)
    ids = {path.stem for path in (out / "tiny" / "records").glob("*.json")}
    assert set(live) == ids
    copy = copy_finished(tmp_path)
    assert cli("mlflow-sync", "--suite", suite, "--out", copy, mlflow=True).code == 0
    once = mirrored(copy)
    assert set(once) == ids
    for trial, (params, status, metrics, artifacts) in once.items():
        record = read_record(copy / "tiny" / "records" / f"{trial}.json")
        assert metrics["test_accuracy"][-1][1] == record.result["metrics"]["test_accuracy"]
        assert (params["method"], status) == (record.spec["method"]["name"], "FINISHED")
        assert "record.json" in artifacts
        assert len(metrics.get("finetune/loss", [])) == len(record.result["curves"]["finetune"])
    assert cli("mlflow-sync", "--suite", suite, "--out", copy, mlflow=True).code == 0
    assert mirrored(copy) == once


class Page(list[Any]):
    """A page of MLflow's answers, the last."""

    token = None


class KeptMetrics:
    """A client of MLflow that keeps one run's metrics and nothing else."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.logged: list[tuple[str, int]] = []
        self.last: dict[str, float] = {}
        self.tags: dict[str, str] = {}

    def search_runs(self, *_what: object, **_how: object) -> Any:
        return Page(self.runs)

    def create_run(self, *_what: object, **_how: object) -> Any:
        self.runs = [
            SimpleNamespace(info=SimpleNamespace(run_id="a"), data=SimpleNamespace(metrics=self.last, tags=self.tags))
        ]
        return self.runs[0]

    def get_run(self, _run: str) -> Any:
        return self.runs[0]

    def log_batch(self, _run: str, metrics: Sequence[Any] = (), tags: Sequence[Any] = (), **_others: object) -> None:
        self.tags |= {tag.key: tag.value for tag in tags}
        self.logged += [(metric.key, metric.step) for metric in metrics]
        self.last |= {metric.key: metric.value for metric in metrics}

    def log_text(self, *_what: object) -> None: ...
    def log_inputs(self, *_what: object) -> None: ...
    def set_terminated(self, *_what: object) -> None: ...


def test_scores_on_validation_are_logged_after_fine_tuning_s_steps_and_once(tmp_path):
    trial = plan(load_suite("smoke")).trials[0]
    rows = {stage: [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)] for stage in ("search", "finetune")}
    curves = {**rows, "validation": [{"step": step, "accuracy": 0.5} for step in (2, 4)]}
    record = make_record(trial, lambda _trial, result, _observed: result.update(curves=curves))
    client, failures = KeptMetrics(), []
    for _ in range(2):  # the second finds what the first has left
        tracker = Tracker(load_suite("smoke"), tmp_path, "nowhere", failures.append)
        tracker._client = client
        for stage in rows:
            tracker.progress(trial, [Progress(stage, row["step"], 4, row) for row in rows[stage][:3]])
        tracker.finished(trial, record)
        tracker.close()
    assert failures == []
    curve = [(key, step) for key, step in client.logged if key.endswith(("/loss", "/accuracy"))]
    steps = {"search/loss": (1, 2, 3, 4), "finetune/loss": (1, 2, 3, 4), "validation/accuracy": (2, 4)}
    assert sorted(curve) == sorted((key, step) for key, found in steps.items() for step in found)


def test_an_unreachable_mlflow_server_costs_one_warning_and_no_trial(tmp_path):
    out = copy_float_starts(tmp_path)
    suite = write_suite(tmp_path, methods=["uniform-lsq", "random"], compute={"epochs": 0.02})
    arguments = ["--suite", suite, "--out", out, "--engine", "local", "--tracking-uri", "http://127.0.0.1:1"]
    ran = cli(*arguments, mlflow=True)
    assert ran.code == 0
    assert ran.err.count("MLflow") == 1
    assert "mlflow-sync" in ran.err
    assert len(comparable(out / "tiny" / "records")) == 2


def test_syncing_to_an_unreachable_mlflow_server_is_an_error():
    suite, out, _ = finished()
    ran = cli("mlflow-sync", "--suite", suite, "--out", out, "--tracking-uri", "http://127.0.0.1:1")
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith(
        "error: MLflow at http://127.0.0.1:1 failed ([Errno 111] Connection refused); is a server up"
    )
    assert "--tracking-uri" in ran.err
    refused(cli("mlflow-sync", "--suite", suite, "--out", out, "--tracking-uri", "foo://x"), "no foo://x", "sqlite:///")


def test_views_of_no_record_say_so(tmp_path):
    for command in ("report", "mlflow-sync"):
        ran = cli(command, "--suite", "smoke", "--out", tmp_path)
        (said,) = ran.err.splitlines()
        assert said.startswith(f"warning: no trial of smoke has a record in {tmp_path / 'smoke' / 'records'};")


def test_a_suite_without_a_reference_says_how_to_name_one(tmp_path):
    ran = cli("verify", "--suite", "smoke", "--out", tmp_path)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].endswith(
        "no shipped reference matches these settings of smoke; give one with --reference OUT/smoke/records"
    )


def test_doctor_names_what_is_amiss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    well = cli("doctor", "--suite", "smoke", "--out", tmp_path)
    assert "torch" in well.out
    ran = cli("doctor", "--suite", "imagenet-full", "--out", tmp_path)
    assert ran.code == 1
    problems = [line for line in ran.out.splitlines() if line.startswith("PROBLEM")]
    assert any("--data" in line for line in problems)


def test_compiling_needs_a_compiler_and_says_so_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiled = ["--suite", "smoke", "--out", tmp_path, "--set", "resources.compile=true"]
    ran = cli(*compiled, "--engine", "local")
    assert (ran.code, "resources.compile needs a compiler" in ran.err) == (2, True)
    assert not list(tmp_path.rglob("*.json"))
    seen = cli("doctor", *compiled)
    assert seen.code == 1
    assert "PROBLEM  resources.compile needs a compiler" in seen.out
    monkeypatch.setenv("CXX", sys.executable)
    assert "ok       a compiler" in cli("doctor", *compiled).out


def test_stopping_is_no_traceback(tmp_path, monkeypatch):
    def stop(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "load_suite", stop)
    ran = cli("--suite", "smoke", "--out", tmp_path)
    assert (ran.code, "goes on" in ran.err) == (130, True)


def test_a_full_disk_is_said_and_can_be_gone_on_from(tmp_path, monkeypatch):
    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = copy_float_starts(tmp_path)
    monkeypatch.setattr("benchmarks.records.record.write_text_atomic", full)
    suite = write_suite(tmp_path, methods=["uniform-lsq"], compute={"epochs": 0.02})
    ran = cli("--suite", suite, "--out", out, "--engine", "local")
    assert ran.code == 1
    assert "No space left on device" in ran.err
    monkeypatch.setattr("benchmarks.records.record.write_text_atomic", write_text_atomic)
    assert cli("--suite", suite, "--out", out, "--engine", "local").code == 0


def test_what_mlflow_s_database_says_is_told_in_a_line():
    from sqlalchemy.exc import OperationalError

    from benchmarks.records.tracking import _cause

    locked = OSError("attempt to write a readonly database")
    statement = OperationalError("INSERT\nINTO metrics", {}, locked)
    statement.__cause__ = locked
    assert "\n" in str(statement)
    assert _cause(statement) == "attempt to write a readonly database"
    assert _cause(KeyError()) == "KeyError()"
