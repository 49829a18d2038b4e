"""A job, or one rank's part of it, done in this process. Torch is imported when there is something to do."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from benchmarks.engines.jobs import Job
from benchmarks.events import Outcome, Progress
from benchmarks.messages import SuiteError
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import TrialSpec

if TYPE_CHECKING:
    from benchmarks.ranks import Ranks


def work(job: Job, workspace: Workspace, runtime: Runtime, ranks: Ranks | None = None) -> Iterator[Progress | Outcome]:
    """Do a job, or one rank's part of it, unless it is done; its lock is held by whoever calls.

    Raises DeviceLostError where this process can do no other job either.
    """
    from benchmarks.engines.keeping import Keeper
    from benchmarks.ranks import ALONE
    from benchmarks.trials import trial
    from benchmarks.trials.environment import configure_torch
    from benchmarks.trials.faults import machine_s_fault, require_device
    from benchmarks.trials.float_start import StartFailedError, float_start

    ranks = ranks or ALONE
    keeper = Keeper(job, workspace, None if ranks.rank else runtime.storage)
    try:
        keeper.fetch()
        if ranks.decided(ranks.rank == 0 and workspace.done(job.spec)):  # before another rank died
            yield keeper.done()
            return
        steps: Generator[Progress, None, object]
        if isinstance(job.spec, TrialSpec):
            steps = trial.run(job.spec, workspace, runtime, ranks)
        else:
            configure_torch(runtime.threads, runtime.device)
            steps = float_start(job.spec, workspace, runtime, runtime.load_data(job.spec.data), ranks)
        yield from keeper.along(steps)
    except StartFailedError as error:
        yield Outcome("failed", str(error))
        return
    except Exception as error:  # noqa: BLE001 (one job's error ends no other job)
        require_device(runtime.device, error)
        told = str(error) if machine_s_fault(error) else ""
        yield Outcome("lost", told or traceback.format_exc(), isinstance(error, SuiteError))
        return
    yield keeper.done()
