"""Mirrors suites to MLflow: one experiment per suite, one parent run, one nested run per trial. The only file that
imports mlflow. A view: whatever goes wrong here costs a warning, never a trial."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from benchmarks.events import Progress
from benchmarks.planning import Trial
from benchmarks.records.record import Record
from benchmarks.suites.suite import Suite

_TAG = "trial_id"
_LAST = "/steps_logged"
_BATCH = 1000
_MAX_PARAM = 500


def default_uri(out: Path) -> str:
    """$MLFLOW_TRACKING_URI, or an SQLite file in the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"


def has_runs(out: Path) -> bool:
    """Whether `default_uri` leads to a database; of a server it is taken for granted."""
    return "MLFLOW_TRACKING_URI" in os.environ or (out / "mlflow.db").exists()


class Tracker:
    """The one writer of a suite's runs, in a thread of its own, so that a slow server never holds up a trial.

    Runs are found again by their trial's id, and metrics are never logged twice. failed: told what went wrong, once,
    at the first failure, after which nothing more is sent. unsupported: whether MLflow takes no such URI at all.
    """

    unsupported = False

    def __init__(self, suite: Suite, out: Path, uri: str, failed: Callable[[str], None]) -> None:
        self.suite, self.out, self.uri, self.failed = suite, out, uri, failed
        self._client: Any = None
        self._experiment = self._parent = ""
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
        if type(error).__name__.startswith("Unsupported"):  # MLflow has one such class for each kind of store
            self.unsupported = True
            return f"MLflow takes no {self.uri}; give --tracking-uri as http://HOST:PORT or sqlite:///FILE"
        advice = "; is a server up there, and --tracking-uri right?" if self.uri.startswith("http") else ""
        return f"MLflow at {self.uri} failed ({_cause(error)}){advice}"

    def _end(self, artifacts: Sequence[Path]) -> None:
        for path in artifacts:
            self._client.log_artifact(self._parent, str(path), "report")
        self._client.set_terminated(self._parent)

    def _open(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.out.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(self.uri)
        name = f"mixed-precision/{self.suite.suite}"
        found = client.get_experiment_by_name(name)
        local = self.uri.startswith("sqlite:")
        location = (self.out.resolve() / "mlartifacts").as_uri() if local else None
        self._experiment = found.experiment_id if found else client.create_experiment(name, location)
        tags = {"mlflow.runName": self.suite.suite, "mlflow.user": "benchmark", "suite": self.suite.suite}
        runs = client.search_runs([self._experiment], f"tags.suite = '{self.suite.suite}'", max_results=1)
        self._parent = runs[0].info.run_id if runs else client.create_run(self._experiment, tags=tags).info.run_id
        client.update_run(self._parent, status="RUNNING")
        self._client = client

    def _run(self, trial: Trial) -> str:
        if trial.id not in self._runs:
            found = self._client.search_runs([self._experiment], f"tags.{_TAG} = '{trial.id}'", max_results=1)
            if found:
                self._runs[trial.id] = found[0].info.run_id
                there = found[0].data.metrics.items()
                self._logged[trial.id] = {k.removesuffix(_LAST): int(v) for k, v in there if k.endswith(_LAST)}
            else:
                self._runs[trial.id] = self._create(trial)
                self._logged[trial.id] = {}
        return self._runs[trial.id]

    def _create(self, trial: Trial) -> str:
        from mlflow.entities import Param

        tags = {
            "mlflow.runName": trial.label,
            "mlflow.parentRunId": self._parent,
            "mlflow.user": "benchmark",
            _TAG: trial.id,
        }
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        params = {"row": trial.row, "model": trial.model, "ceiling": trial.ceiling, **_flat(trial.spec.model_dump())}
        self._client.log_batch(run_id, params=[Param(k, str(v)[:_MAX_PARAM]) for k, v in params.items()])
        return run_id

    def _log_curve(self, trial: Trial, rows: Sequence[tuple[str, int, Any]]) -> None:
        from mlflow.entities import Metric

        run_id, now = self._run(trial), int(time.time() * 1000)
        # By stage: the scores on validation come with the record only, when fine-tuning's steps are all there.
        logged = self._logged[trial.id]
        fresh = [(stage, step, row) for stage, step, row in rows if step > logged.get(stage, 0)]
        metrics = [
            Metric(f"{stage}/{name}", float(value), now, step)
            for stage, step, row in fresh
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        ]
        for stage in dict.fromkeys(stage for stage, _, _ in fresh):
            logged[stage] = max(step for other, step, _ in fresh if other == stage)
            metrics.append(Metric(f"{stage}{_LAST}", float(logged[stage]), now, 0))
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _log_record(self, trial: Trial, record: Record) -> None:
        from mlflow.entities import Metric, RunTag

        curves = record.result.get("curves", {})
        self._log_curve(trial, [(stage, row["step"], row) for stage, curve in curves.items() for row in curve])
        run_id, now, result = self._run(trial), int(time.time() * 1000), record.result
        numbers = {**result.get("metrics", {}), **_cost_metrics(result)}
        there = self._client.get_run(run_id).data.metrics
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, float(v), now, 0) for name, v in numbers.items() if there.get(name) != float(v)],
            tags=[RunTag("status", record.status), RunTag("commit", str(record.observed["environment"].get("commit")))],
        )
        self._client.log_text(run_id, record.to_json(), "record.json")
        if result.get("policy"):
            self._client.log_text(run_id, json.dumps(result["policy"], indent=1), "policy.json")
        self._client.set_terminated(run_id, "FINISHED" if record.status == "ok" else "FAILED")


def _cost_metrics(result: dict[str, Any]) -> dict[str, float]:
    cost, account = result.get("cost"), result.get("account")
    numbers: dict[str, float] = {}
    if cost:
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
    """What was first wrong, in a line: a database adds the whole of its statement."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return (str(error).splitlines() or [repr(error)])[0]
