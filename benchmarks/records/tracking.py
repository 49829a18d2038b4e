"""Mirrors suites to MLflow: one experiment per suite, one parent run, one nested run per trial. The only file that
imports mlflow. A view: whatever goes wrong here costs a warning, never a trial."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from benchmarks.addresses import shown, without_secrets
from benchmarks.events import Progress
from benchmarks.files import write_atomic
from benchmarks.planning import Trial
from benchmarks.records.record import Record
from benchmarks.records.schema import STATUSES
from benchmarks.records.view import SHARED_VIEW, database_address, database_of, experiment_name
from benchmarks.suites.suite import Suite, ceiling_name

_TAG = "trial_id"
_LAST = "steps_logged."
"""Prefix of the tags that hold, for each stage, the last step whose curve is logged."""
_BATCH = 1000
_MAX_PARAM = 500
_MAX_NOTE = 5000
_MAX_DIGEST = 36
_COLUMNS = (
    *(f"metrics.`{name}`" for name in ("test_accuracy", "MBOPs")),
    *(f"params.`{name}`" for name in ("method", "network", "ceiling", "seed")),
)
"""The first columns of the runs' table, by MLflow's names."""


class Tracker:
    """The one writer of a suite's runs, in a thread of its own, so that a slow server never holds up a trial.

    Runs are found again by their trial's id, and metrics are never logged twice. failed: called once, with
    what went wrong, at the first failure, after which nothing more is sent. unusable: whether the address itself was at
    fault, so that a second try would fail too.
    experiment: its id, once anything was sent.
    """

    unusable = False

    def __init__(self, suite: Suite, out: Path, uri: str, failed: Callable[[str], None]) -> None:
        self.suite, self.out, self.uri, self.failed = suite, out, uri, failed
        self.experiment = ""
        self._client: Any = None
        self._parent = ""
        self._runs: dict[str, str] = {}
        self._logged: dict[str, dict[str, int]] = {}
        self._broken = False
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def progress(self, trial: Trial, events: Sequence[Progress]) -> None:
        """Log the curve as it grows."""
        rows = [(event.stage, event.step, dict(event.row)) for event in events]
        self._queue.put(lambda: self._log_curve(trial, rows))

    def finished(self, trial: Trial, record: Record) -> None:
        """Log a trial's result, with record and policy as artifacts, and end its run."""
        self._queue.put(lambda: self._log_record(trial, record))

    def close(self, artifacts: Iterable[Path] = ()) -> None:
        """End the suite's run, with the report's files as artifacts, and wait until all is written."""
        files = list(artifacts)
        self._queue.put(lambda: self._end(files))
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (action := self._queue.get()) is not None:
            if self._broken:
                continue
            try:
                if self._client is None:
                    self._open()
                action()
            except Exception as error:  # noqa: BLE001 (a server may fail in any way; no trial may be lost for it)
                self._broken = True
                self.failed(self._what_failed(error))

    def _what_failed(self, error: Exception) -> str:
        if isinstance(error, MovedError):
            self.unusable = True
            return str(error)
        if type(error).__name__.startswith("Unsupported"):  # MLflow has one such class for each kind of store
            self.unusable = True
            return f"MLflow takes no {shown(self.uri)}; give --tracking-uri as http://HOST:PORT or sqlite:///FILE"
        cause = _cause(error)
        return without_secrets(f"MLflow at {self.uri} failed ({cause}){self._advice(cause)}", self.uri)

    def _advice(self, cause: str) -> str:
        if self.uri.lower().startswith("http"):
            return "; is a server up there, and --tracking-uri right?"
        if (database := database_of(self.uri)) is None:
            return ""
        if "disk is full" in cause or os.strerror(errno.ENOSPC) in cause:
            return f"; make room for {database}"
        return f"; if it stays so, move {database} away, it is made anew from the records"

    def _end(self, artifacts: Sequence[Path]) -> None:
        from mlflow.entities import Metric

        for path in artifacts:
            self._client.log_artifact(self._parent, str(path), "report")
        now, nested = int(time.time() * 1000), f"tags.`mlflow.parentRunId` = '{self._parent}'"
        counts = Counter(run.data.tags.get("status", "running") for run in self._all_runs(nested))
        metrics = [Metric(f"trials_{status}", float(counts[status]), now, 0) for status in (*STATUSES, "running")]
        self._client.log_batch(self._parent, metrics=metrics)
        self._client.set_terminated(self._parent)

    def _open(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.out.mkdir(parents=True, exist_ok=True)
        _make_tables(self.uri)
        self._client = client = MlflowClient(self.uri)
        try:
            self.experiment = self._find_experiment()
            self._parent = self._find_parent()
            client.update_run(self._parent, status="RUNNING")
            self._describe()
        except Exception:
            self._client = None
            raise

    def _find_experiment(self) -> str:
        """The suite's experiment; one that was deleted on MLflow's page is restored."""
        name, files = experiment_name(self.suite.suite), (self.out.resolve() / "mlartifacts").as_uri()
        database = database_of(self.uri)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            created: str = self._client.create_experiment(name, None if database is None else files)
            return created
        if database == self.out.resolve() / "mlflow.db" and found.artifact_location != files:
            raise MovedError(
                f"{database} was copied or moved: MLflow would go on to read and write the files of its runs at "
                f"{found.artifact_location}; delete that copy of the database, and `mlflow-sync` makes it anew"
            )
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        experiment: str = found.experiment_id
        return experiment

    def _find_parent(self) -> str:
        """The suite's own run. A new one, in place of a deleted one, takes over the trials' runs."""
        newest, *older = [*self._all_runs(f"tags.suite = '{self.suite.suite}'")] or [None]
        for run in older:  # deleted once, and restored with the experiment
            self._client.delete_run(run.info.run_id)
        if newest is not None:
            found: str = newest.info.run_id
            return found
        tags = {"mlflow.runName": self.suite.suite, "suite": self.suite.suite, **_SOURCE}
        parent: str = self._client.create_run(self.experiment, tags=tags).info.run_id
        self._log_params(parent, _suite_params(self.suite))
        for run in self._all_runs(f"tags.{_TAG} LIKE '%'"):
            self._client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
        return parent

    def _describe(self) -> None:
        """What the page needs to open on a table of trials, with the columns that matter first."""
        view = {
            "searchFilter": "",
            "orderByKey": _COLUMNS[0],
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(_COLUMNS),
            "runsExpanded": {self._parent: True},
        }
        tags = {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.note.content": self.suite.description,
            f"mlflow.sharedViewState.{SHARED_VIEW}": json.dumps(view),
        }
        for key, value in tags.items():
            self._client.set_experiment_tag(self.experiment, key, value)
        self._client.set_tag(self._parent, "mlflow.note.content", self.suite.description)

    def _all_runs(self, which: str) -> Iterator[Any]:
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self.experiment], which, max_results=_BATCH, page_token=token or None)
            yield from page
            token = page.token or None

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(run_id, params=[Param(k, str(v)[:_MAX_PARAM]) for k, v in params.items()])

    def _run(self, trial: Trial, started: int | None = None) -> str:
        """The trial's run, created if there is none. started: when the trial began, in milliseconds; None: now."""
        if trial.id not in self._runs:
            found = self._client.search_runs([self.experiment], f"tags.{_TAG} = '{trial.id}'", max_results=1)
            tags = found[0].data.tags if found else {}
            self._runs[trial.id] = found[0].info.run_id if found else self._create(trial, started)
            self._logged[trial.id] = {k.removeprefix(_LAST): int(v) for k, v in tags.items() if k.startswith(_LAST)}
        return self._runs[trial.id]

    def _create(self, trial: Trial, started: int | None) -> str:
        tags = {"mlflow.runName": trial.label, "mlflow.parentRunId": self._parent, _TAG: trial.id, **_SOURCE}
        run_id: str = self._client.create_run(self.experiment, started, tags).info.run_id
        self._log_params(run_id, _trial_params(trial))
        return run_id

    def _log_curve(self, trial: Trial, rows: Sequence[tuple[str, int, Any]], when: int | None = None) -> None:
        from mlflow.entities import Metric, RunTag

        run_id, when = self._run(trial), when or int(time.time() * 1000)
        # By stage: validation's scores come only with the record, when all steps of fine-tuning are logged.
        logged = self._logged[trial.id]
        fresh = [(stage, step, row) for stage, step, row in rows if step > logged.get(stage, 0)]
        metrics = [
            Metric(f"{stage}/{name}", float(value), when, step)
            for stage, step, row in fresh
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        ]
        for stage, step, _ in fresh:
            logged[stage] = max(step, logged.get(stage, 0))
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        if fresh:
            stages = dict.fromkeys(stage for stage, _, _ in fresh)
            self._client.log_batch(run_id, tags=[RunTag(f"{_LAST}{stage}", str(logged[stage])) for stage in stages])

    def _log_record(self, trial: Trial, record: Record) -> None:
        from mlflow.entities import Metric, RunTag

        result, observed = record.result, record.observed
        started, finished = _milliseconds(observed.get("started")), _milliseconds(observed.get("finished"))
        run_id, when = self._run(trial, started), finished or int(time.time() * 1000)
        curves = result.get("curves", {})
        self._log_curve(trial, [(stage, row["step"], row) for stage, curve in curves.items() for row in curve], when)
        numbers = {**result.get("metrics", {}), **_cost_metrics(result)}
        there = self._client.get_run(run_id).data.metrics
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, float(v), when, 0) for name, v in numbers.items() if there.get(name) != float(v)],
            tags=[RunTag(key, value) for key, value in _record_tags(record).items()],
        )
        if digest := observed.get("data_digest"):
            self._client.log_inputs(run_id, [_dataset(trial, str(digest))])
        self._client.log_text(run_id, record.to_json(), "record.json")
        if result.get("policy"):
            self._client.log_text(run_id, json.dumps(result["policy"], indent=1), "policy.json")
        self._client.set_terminated(run_id, "FINISHED" if record.status == "ok" else "FAILED", finished)


_SOURCE = {"mlflow.user": "benchmark", "mlflow.source.type": "LOCAL", "mlflow.source.name": "runner.py"}


def _make_tables(uri: str) -> None:
    """Have a new SQLite database whole or not at all: MLflow never takes up its steps where one of them was stopped."""
    from mlflow import MlflowClient

    database = database_of(uri)
    if database is None or (database.exists() and database.stat().st_size):
        return
    write_atomic(
        database, lambda file: MlflowClient(database_address(Path(file.name))).search_experiments(max_results=1)
    )


class MovedError(Exception):
    """A database that was moved: its runs keep their files elsewhere than beside it."""


def _suite_params(suite: Suite) -> dict[str, Any]:
    return {
        "dataset": suite.data.dataset,
        "networks": ", ".join(model.name for model in suite.models),
        "methods": ", ".join(entry.row for entry in suite.methods),
        "ceilings": ", ".join(map(ceiling_name, suite.ceilings)),
        "seeds": ", ".join(map(str, suite.seeds)),
        "epochs": suite.compute.epochs,
        "protocol": suite.compute.protocol,
    }


def _trial_params(trial: Trial) -> dict[str, Any]:
    """The parameters in which a suite's trials differ, by its file's keys; the rest is in the record."""
    spec = trial.spec
    return {
        "method": trial.row,
        "network": trial.model,
        "ceiling": trial.ceiling,
        "seed": spec.seed,
        "draw": spec.draw,
        "dataset": spec.data.dataset,
        "epochs": spec.compute.epochs,
        "search_share": spec.compute.search_share,
        **_flat(spec.method.options, "options"),
    }


def _record_tags(record: Record) -> dict[str, str]:
    environment = record.observed.get("environment") or {}
    tags = {
        "status": record.status,
        "mlflow.source.git.commit": str(environment.get("commit") or "unknown"),
        "mlflow.source.git.dirty": str(bool(environment.get("dirty"))).lower(),
    }
    if reason := record.result.get("reason"):
        note = f"**{record.status}**: {reason.get('type', 'error')}: {reason.get('message', '')}"
        tags["mlflow.note.content"] = without_secrets(note)[:_MAX_NOTE]
    return tags


def _dataset(trial: Trial, digest: str) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = trial.spec.data
    source = json.dumps({"dataset": data.dataset, "digest": digest})
    described = Dataset(data.dataset, digest[:_MAX_DIGEST], "benchmark", source, profile=data.model_dump_json())
    return DatasetInput(described, [InputTag("mlflow.data.context", "training and test")])


def _milliseconds(time: str | None) -> int | None:
    """A record's time in milliseconds since 1970; None if it is missing or no time."""
    try:
        return None if time is None else int(datetime.fromisoformat(time).timestamp() * 1000)
    except ValueError:
        return None


def _cost_metrics(result: dict[str, Any]) -> dict[str, float]:
    cost, account = result.get("cost"), result.get("account")
    numbers: dict[str, float] = {}
    if cost:
        numbers["MBOPs"] = cost["bops"]["edges8"] / 1e6
        numbers |= {f"bops_{name}": value for name, value in cost["bops"].items()}
        numbers["weight_bytes"] = cost["weight_bytes"]
    if account:
        numbers["charged_macs"] = sum(phase["macs"] for phase in account["phases"])
    return numbers


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{prefix}.{key}" if prefix else key).items()}


def _cause(error: BaseException) -> str:
    """The original error in one line, without the SQL statement that a database adds."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return (str(error).splitlines() or [repr(error)])[0]
