"""What users are told about where MLflow's view of a suite is."""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from benchmarks.records.view import VARIABLE, address_of, database_address, database_of, how_to_open

ODD = ["plain", "a?b", "100%25", "50%", "c#d", "two words", "quo'te", "semi;colon", "ü@x"]


@pytest.mark.parametrize("name", ODD)
def test_a_database_s_address_leads_to_its_file_whatever_its_name(name: str, tmp_path: Path):
    path = tmp_path / name / "mlflow.db"
    url = make_url(database_address(path))
    assert (url.database, dict(url.query)) == (str(path), {})
    assert database_of(database_address(path)) == path


def database(path: Path, *suites: str, stage: str = "active") -> str:
    """A database with as much of MLflow's table of experiments as is looked at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT, lifecycle_stage TEXT)")
        rows = [(number, f"mixed-precision/{suite}", stage) for number, suite in enumerate(suites, 7)]
        connection.executemany("INSERT INTO experiments VALUES (?, ?, ?)", rows)
    return database_address(path)


@pytest.mark.parametrize("name", ODD)
def test_the_command_is_one_that_a_shell_takes_apart_again(name: str, tmp_path: Path):
    address = database(tmp_path / name / "mlflow.db", "quick", "smoke")
    said = how_to_open(address, "smoke")
    assert said is not None
    command, _, then = said.partition("  (then open ")
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", address]
    assert then.startswith("http://127.0.0.1:5000/#/experiments/8/runs?workflowType=machine_learning&")


def test_a_database_without_the_suite_is_not_named(tmp_path: Path):
    assert how_to_open(database(tmp_path / "a.db", "quick"), "smoke") is None
    assert how_to_open(database(tmp_path / "b.db", "smoke", stage="deleted"), "smoke") is None
    assert how_to_open(database_address(tmp_path / "none.db"), "smoke") is None
    (tmp_path / "c.db").write_text("no database")
    assert how_to_open(database_address(tmp_path / "c.db"), "smoke") is None
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.db", "b.db", "c.db"]


def test_a_server_is_an_address_to_open_without_its_password():
    said = how_to_open("https://me:hunter2@example.org/mlflow?token=hunter3", "smoke", "12")
    assert said is not None
    assert said.startswith("https://example.org/mlflow/#/experiments/12/runs?")
    assert "hunter" not in said
    assert "hunter" not in str(how_to_open("postgresql://me:hunter2@db/mlflow?password=hunter3", "smoke"))


def test_the_address_given_counts_before_the_environment_s_and_that_before_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert address_of(tmp_path) == database_address(tmp_path / "mlflow.db")
    monkeypatch.setenv(VARIABLE, "http://there")
    assert (address_of(tmp_path), address_of(tmp_path, "http://given")) == ("http://there", "http://given")
