"""Where a suite's view in MLflow is, and how to open it. Free of mlflow."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from benchmarks.addresses import shown

VARIABLE = "MLFLOW_TRACKING_URI"
PORT = 5000
"""Where `mlflow ui` listens unless it is told otherwise."""
SHARED_VIEW = "trials"
"""Name of the table view that `benchmarks.records.tracking` sets up: columns, their order, expanded rows."""
_FILE = re.compile(r"sqlite(?:\+\w+)?:///(.+)", re.DOTALL)


def address_of(out: Path, given: str | None = None) -> str:
    """The tracking address: as given, else $MLFLOW_TRACKING_URI, else an SQLite file in the output folder."""
    return given or os.environ.get(VARIABLE) or database_address(out / "mlflow.db")


def database_address(path: Path) -> str:
    """The address of an SQLite file, whatever characters are in its path.

    SQLAlchemy decodes the path. MLflow creates the folder of the path as it is written in `sqlite:///`, a stray one
    where characters are encoded, but not in an address that names the driver.

    >>> database_address(Path("/runs/mlflow.db")), database_address(Path("/50%/a?b/mlflow.db"))
    ('sqlite:////runs/mlflow.db', 'sqlite+pysqlite:////50%25/a%3Fb/mlflow.db')
    """
    plain = str(path.resolve())
    encoded = plain.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"sqlite:///{plain}" if encoded == plain else f"sqlite+pysqlite:///{encoded}"


def database_of(address: str) -> Path | None:
    """The SQLite file of an address, if it has one."""
    found = _FILE.fullmatch(address)
    return Path(unquote(found[1].partition("?")[0])) if found else None


def experiment_name(suite: str) -> str:
    return f"mixed-precision/{suite}"


def how_to_open(address: str, suite: str, experiment: str | None = None) -> str | None:
    """What to open, or to run and then to open, for a suite's runs; None if a database here has no runs of it.

    experiment: its id, where it is known; it is looked up in an SQLite file.
    """
    if (database := database_of(address)) is not None:
        experiment = experiment or _experiment_in(database, suite)
        if experiment is None:
            return None
    if address.startswith(("http:", "https:")):
        return page(shown(address), experiment)
    command = shlex.join(["mlflow", "ui", "--backend-store-uri", shown(address)])
    return f"{command}  (then open {page(f'http://127.0.0.1:{PORT}', experiment)})"


def page(server: str, experiment: str | None) -> str:
    """The address at which MLflow's page shows the runs' table: without it, it opens on traces of language models."""
    if experiment is None:
        return f"{server}/#/experiments?workflowType=machine_learning"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={SHARED_VIEW}"


def _experiment_in(database: Path, suite: str) -> str | None:
    """The id of the suite's experiment in an MLflow database, if it is there, not deleted."""
    if not database.is_file():
        return None
    sought = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(sought, (experiment_name(suite),)).fetchone()
    except sqlite3.Error:
        return None
    return None if found is None else str(found[0])
