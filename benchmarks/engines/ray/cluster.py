"""The Ray cluster that trials run on: joining or starting it, what it is sent, and a trial's share of its nodes."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import ray

from benchmarks.engines import EngineError
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.suite import Resources
from benchmarks.trials.environment import SENT_FROM, source_state

ROOT = Path(__file__).resolve().parents[3]
_OBJECT_STORE_BYTES = 100 * 2**20
_CONNECT_SECONDS = 10.0

STAYS_HERE = ["/runs", "/data", "/docs", "/tests", "/reports/reference", "/.git", "/.venv", "/.*_cache", "/.hypothesis"]
"""Files that other nodes do not need to run trials: patterns as in a .gitignore, for the top folder only."""


def connect(address: str | None, workspace: Workspace, runtime: Runtime) -> None:
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONPATH"] = python_path  # inherited by the workers of a cluster started here
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        sent = {SENT_FROM: json.dumps(source_state())}
        options |= {
            "runtime_env": {"working_dir": str(ROOT), "excludes": staying(workspace, runtime), "env_vars": sent},
        }
    try:
        if address and ":" in address:
            _knock(address)
        with _groups_of_their_own():
            ray.init(address=address or "local", **options)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        advice = "check --address and that ~/.ray/auth_token is the cluster's, or " if address else ""
        raise EngineError(f"cannot start or reach {where}: {error}; {advice}use --engine local") from error


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Gives processes started inside their own groups: after a signal to this group, trials still need Ray."""
    plain = subprocess.Popen.__init__
    subprocess.Popen.__init__ = partialmethod(plain, process_group=0)  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = plain  # type: ignore[method-assign]


def staying(workspace: Workspace, runtime: Runtime) -> list[str]:
    """STAYS_HERE, and where this run keeps its data and results, if that is in the checkout."""
    places = (workspace.out, workspace.folder, workspace.starts, runtime.data, runtime.weights)
    inside = [place.resolve() for place in places if place and ROOT in place.resolve().parents]
    return [*STAYS_HERE, *(f"/{place.relative_to(ROOT).as_posix()}" for place in inside)]


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at host:port; ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def fitted(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> Resources:
    """A trial's resources per process: no GPU if the nodes have none, and no more CPUs than a fitting node has.

    Raises EngineError where no node has the GPUs.
    """
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = resources.gpus if most else 0.0
    if gpus > most:
        raise EngineError(f"a process needs {gpus:g} GPUs, no node has more than {most:g}; lower resources.gpus")
    if 0 < gpus < 1 < resources.workers_per_trial:
        raise EngineError(
            f"processes that train a trial together need a GPU each, resources.gpus is {gpus:g}; set it to 1"
        )
    cpus = int(max((node.get("CPU", 0) for node in nodes if node.get("GPU", 0.0) >= gpus), default=0))
    return resources.model_copy(update={"gpus": gpus, "cpus": max(1, min(resources.cpus, cpus))})


def slots(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials the nodes have room for at a time. Raises EngineError if for none."""
    cpus, gpus, ranks = resources.cpus, resources.gpus, resources.workers_per_trial
    processes = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) / gpus if gpus else math.inf)) for node in nodes
    )
    if processes < ranks:
        each = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise EngineError(
            f"a trial needs {ranks} times {cpus} CPUs and {gpus:g} GPUs, the cluster's nodes have {each}; lower "
            "resources.cpus, resources.gpus or resources.workers_per_trial with --set"
        )
    return processes // ranks
