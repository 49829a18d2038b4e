"""MLflow's view of a suite, in a database of its own."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning import Trial, plan
from benchmarks.records.record import Records
from benchmarks.records.view import VARIABLE, database_address
from benchmarks.records.workspace import Workspace
from benchmarks.suites.suite import load_suite
from tests.fabricated import fail, write_records
from tests.harness import Ran, cli

# mlflow and alembic warn about their own dependencies, each release of others; nothing of ours is in their hands.
pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::alembic", "ignore:::sqlalchemy")

SECRET = "hunter2secret"
WITH_SECRET = f"http://me:{SECRET}@mirror.example/x?token={SECRET}"


def one_fails(trial: Trial, result: dict[str, Any], observed: dict[str, Any]) -> None:
    if trial.row == "random":
        fail(result, observed, message=f"no answer from {WITH_SECRET}")


def sync(out: Path, *more: object) -> Ran:
    return cli("mlflow-sync", "--suite", "smoke", "--out", out, *more)


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with odd characters in its path, its records mirrored once; to be copied or read."""
    out = tmp_path_factory.mktemp("view") / "50%?#"
    write_records(plan(load_suite("smoke")), Workspace(out, "smoke").records.folder, one_fails)
    (out / "smoke" / "report").mkdir()
    (out / "smoke" / "report" / "index.html").write_text("the page")
    ran = sync(out)
    assert ran.code == 0, ran
    return out


def client(out: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(database_address(out / "mlflow.db"))


def experiment(out: Path) -> Any:
    return client(out).get_experiment_by_name("mixed-precision/smoke")


def runs(out: Path) -> tuple[Any, dict[str, Any]]:
    """The suite's own run, and those of its trials by method."""
    found = client(out).search_runs([experiment(out).experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == len(found) - 1 == 6
    return parent, {run.data.params["method"]: run for run in nested}


def test_the_database_is_in_the_output_folder_and_nothing_is_beside_it(synced: Path):
    assert {path.name for path in synced.iterdir()} >= {"mlflow.db", "mlartifacts", "smoke"}
    assert [path.name for path in synced.parent.iterdir()] == [synced.name]


def test_the_experiment_opens_on_a_table_of_trials(synced: Path):
    tags = experiment(synced).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.trials"])
    first = ["metrics.`test_accuracy`", "metrics.`MBOPs`"]
    assert view["selectedColumns"] == [*first, *(f"params.`{k}`" for k in ("method", "network", "ceiling", "seed"))]
    _, trials = runs(synced)
    for column in view["selectedColumns"]:
        kind, name = column.replace("`", "").split(".")
        assert name in getattr(trials["hawq"].data, kind)


def test_a_trial_s_run_says_what_it_is_where_it_is_from_and_when_it_was(synced: Path):
    parent, trials = runs(synced)
    run = trials["uniform-lsq"]
    (record,) = [r for r in Records(synced / "smoke" / "records") if r.spec["method"]["name"] == "uniform-lsq"]
    assert run.data.params.items() >= {"network": "mobilenet_v3_small", "ceiling": "uniform:w4a4", "seed": "0"}.items()
    assert run.data.metrics["MBOPs"] == record.result["cost"]["bops"]["edges8"] / 1e6
    assert len(run.data.params) < 20
    tags = {"mlflow.source.name": "runner.py", "mlflow.source.git.commit": record.observed["environment"]["commit"]}
    assert run.data.tags.items() >= tags.items()
    times = [datetime.fromisoformat(record.observed[key]).timestamp() * 1000 for key in ("started", "finished")]
    assert [run.info.start_time, run.info.end_time] == times
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", record.observed["data_digest"])
    assert not [name for name in run.data.metrics if "steps_logged" in name]
    assert (parent.data.metrics["trials_ok"], parent.data.metrics["trials_failed"]) == (5, 1)
    assert parent.data.params["seeds"] == "0"
    assert [file.path for file in client(synced).list_artifacts(parent.info.run_id, "report")] == ["report/index.html"]


def test_a_failed_run_says_why_without_the_secrets_in_it(synced: Path):
    run = runs(synced)[1]["random"]
    assert run.info.status == "FAILED"
    assert "FloatingPointError: no answer from http://mirror.example/x" in run.data.tags["mlflow.note.content"]
    assert SECRET not in run.data.tags["mlflow.note.content"]


def test_what_was_deleted_on_mlflow_s_page_is_there_again_after_a_sync(synced: Path):
    found = experiment(synced)
    client(synced).delete_run(runs(synced)[0].info.run_id)
    assert sync(synced).code == 0
    assert len(runs(synced)[1]) == 6
    client(synced).delete_experiment(found.experiment_id)
    assert sync(synced).code == 0
    assert experiment(synced).lifecycle_stage == "active"
    assert len(runs(synced)[1]) == 6


def test_a_copied_database_is_not_written_to_in_the_original_s_place(synced: Path, tmp_path: Path):
    copy = Path(shutil.copytree(synced, tmp_path / "copy"))
    before = sorted(synced.rglob("*"))
    ran = sync(copy)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "was copied or moved" in ran.err
    assert sorted(synced.rglob("*")) == before
    # As the message says; under another name, for MLflow keeps a database open as long as its process lasts.
    anew = Path(shutil.copytree(copy, tmp_path / "anew", ignore=shutil.ignore_patterns("mlflow.db")))
    assert sync(anew).code == 0
    assert str(anew.resolve()) in runs(anew)[0].info.artifact_uri


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{SECRET}@127.0.0.1:9/x?token={SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:9/db?password={SECRET}",
        f"foo://me:{SECRET}@there",
    ],
)
def test_no_secret_of_an_address_is_printed_or_kept(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    write_records(plan(load_suite("smoke")), Workspace(out, "smoke").records.folder)
    monkeypatch.setenv(VARIABLE, address)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    place = ["--suite", "smoke", "--out", out]
    said = [cli("report", *place), sync(out), sync(out, "--tracking-uri", address), cli("plan", *place)]
    kept = f"s3://me:{SECRET}@bucket/x?key={SECRET}" if address.startswith("http") else f"memory://me:{SECRET}@x"
    for command in (["report"], ["plan"], []):
        said.append(cli(*command, *place, "--storage", kept, "--tracking-uri", address))
    assert {ran.code for ran in said} <= {0, 1, 2}
    assert not [ran for ran in said if SECRET in ran.out + ran.err]
    assert any("127.0.0.1" in ran.out + ran.err or "foo://there" in ran.err for ran in said)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding == []


def test_a_disk_that_fills_while_mlflow_makes_its_tables_spoils_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """MLflow's steps from one version of its tables to the next end for good where one of them was stopped."""
    from alembic.operations import Operations

    write_records(plan(load_suite("smoke")), Workspace(tmp_path, "smoke").records.folder)
    made = Operations.create_table

    def full(self: Any, name: str, *rest: Any, **more: Any) -> Any:
        if name == "trace_tags":
            raise sqlite3.OperationalError("database or disk is full")
        return made(self, name, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Operations, "create_table", full)
        ran = sync(tmp_path)
    database = tmp_path / "mlflow.db"
    assert ran.code == 1
    assert [line for line in ran.err.splitlines() if line] == [
        f"error: MLflow at sqlite:///{database} failed (database or disk is full); make room for {database}; "
        "the view is not whole: run the same command again"
    ]
    assert not database.exists()
    assert sync(tmp_path).code == 0
    runs(tmp_path)
