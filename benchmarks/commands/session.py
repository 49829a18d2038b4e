"""What a command works on: a suite, cut down as asked, its plan, and where its files are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.commands.options import Options
from benchmarks.data.folders import find_folder, fit_classes
from benchmarks.data.listing import check_manifest
from benchmarks.engines.jobs import Job, jobs_of
from benchmarks.engines.storage import Storage
from benchmarks.messages import SuiteError, quoted
from benchmarks.planning import Plan, Trial, plan
from benchmarks.records.record import Record, RecordError
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.reading import YamlError, read_yaml
from benchmarks.suites.suite import MOST_SEEDS, Suite, load_suite, require_fit, select
from benchmarks.terminal import warn


@dataclass
class Session:
    """What most commands need: the suite, its plan, where its files are and how it runs."""

    suite: Suite
    plan: Plan
    workspace: Workspace
    runtime: Runtime
    named: set[str] = field(default_factory=set)
    """Trials whose unusable records have been named to the user."""

    @property
    def jobs(self) -> list[Job]:
        return jobs_of(self.plan)

    @property
    def trials(self) -> dict[str, Trial]:
        return {trial.id: trial for trial in self.plan.trials}

    def missing(self) -> list[Trial]:
        return [trial for trial in self.plan.trials if self.record(trial.id) is None]

    def record(self, trial_id: str) -> Record | None:
        """A trial's record, if it has one; None for one that cannot be used, which is named once."""
        try:
            return self.workspace.records.get(trial_id)
        except RecordError as error:
            if trial_id not in self.named:
                warn(str(error))
            self.named.add(trial_id)
            return None

    def set_damaged_aside(self, trial_ids: Iterable[str] | None = None) -> None:
        """Move records that cannot be used out of the way, so that their trials run again; each is named."""
        for what in self.workspace.records.set_aside(self.trials if trial_ids is None else trial_ids):
            warn(what)

    def placed(self) -> Runtime:
        """How it runs here: on a GPU if the suite asks for one and there is one."""
        import torch

        return replace(self.runtime, gpu=self.suite.resources.gpus > 0 and torch.cuda.is_available())

    def find(self, beginning: str) -> Trial:
        """The trial whose id begins so. Raises SuiteError unless there is exactly one."""
        matches = [trial for trial in self.plan.trials if trial.id.startswith(beginning)]
        if len(matches) != 1:
            what = "no trial" if not matches else f"{len(matches)} trials"
            name = self.suite.suite
            raise SuiteError(f"{what} of {name} with an id that begins with {quoted(beginning)}; `plan` lists them")
        return matches[0]

    def forget_failures(self) -> list[str]:
        """Move failed records aside, so that their trials run again; returns the trials' ids."""
        records = self.workspace.records
        failed = [
            trial
            for trial in self.plan.trials
            if (record := self.record(trial.id)) is not None and record.status == "failed"
        ]
        for trial in failed:
            path = records.path(trial.id)
            path.rename(path.with_suffix(".failed"))
            for start in trial.spec.starts:
                self.workspace.start_failure(start.key).unlink(missing_ok=True)
        return [trial.id for trial in failed]


def open_session(options: Options, *, needs_data: bool = True) -> Session:
    """Load, cut down and plan a suite. Raises SuiteError and DataError.

    Whether published weights fit is looked at here, once it is known how many classes the folder has.
    """
    chosen = chosen_suite(options)
    rows, networks = _parts("--methods", options.methods), _parts("--models", options.models)
    chosen = select(chosen, methods=rows, models=networks, seeds=_seeds(options.seeds))
    folder = find_folder(chosen.data.dataset, options.data) if needs_data or options.data else None
    chosen = chosen.model_copy(update={"data": fit_classes(chosen.data, folder)})
    runtime = _runtime(chosen, options, folder)
    if needs_data and folder is not None and chosen.data.dataset == "imagefolder":
        check_manifest(chosen.data, folder, allow_bad_images=runtime.allow_bad_images)
    found = plan(chosen)
    for start in found.starts:
        if start.pretraining is None:
            require_fit(start.model, start.data)
    return Session(chosen, found, Workspace(options.out, chosen.suite), runtime)


def chosen_suite(options: Options) -> Suite:
    """The whole suite with --set applied. Raises SuiteError."""
    return load_suite(options.suite, dict(assignment(text) for text in options.overrides))


def _runtime(suite: Suite, options: Options, data: Path | None) -> Runtime:
    resources = suite.resources
    return Runtime(
        data and data.resolve(),
        weights=options.weights and options.weights.resolve(),
        engine=options.engine,
        threads=resources.threads,
        compile=resources.compile,
        loaders=resources.loaders_for(suite.data.dataset),
        ranks=resources.workers_per_trial,
        allow_bad_images=options.bad_images,
        checkpoint_seconds=resources.checkpoint_seconds,
        storage=options.storage,
    )


def fetch_records(session: Session) -> None:
    """Bring the records that are at --storage and not here. Raises StorageError."""
    if (storage := session.runtime.storage) is not None:
        Storage.at(storage).fetch((job for job in session.jobs if job.is_trial), session.workspace)


def assignment(text: str) -> tuple[str, Any]:
    """`key=value`, as --set has it. Raises SuiteError.

    >>> assignment("recipe.batch_size=32")
    ('recipe.batch_size', 32)
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise SuiteError(f"--set {quoted(text)}: write key=value, such as recipe.batch_size=32")
    try:
        return key, read_yaml(value)
    except YamlError as error:
        raise SuiteError(f"--set {quoted(text)}: {error}") from None


def _parts(option: str, text: str) -> list[str]:
    """The names in an option, each once. Raises SuiteError for a comma with nothing before or behind it."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if "" in parts:
        raise SuiteError(
            f"{option} {quoted(text)}: nothing stands between two commas, or beside one; leave that comma out"
        )
    return list(dict.fromkeys(parts))


def _seeds(text: str) -> list[int]:
    seeds = _parts("--seeds", text)
    if not all(seed.isdecimal() and len(seed) < 19 for seed in seeds) or len(seeds) > MOST_SEEDS:
        raise SuiteError(
            f"--seeds {quoted(text)}: write whole numbers from 0 on, separated by commas, such as 0,1,2; "
            f"at most {MOST_SEEDS} of at most 18 digits"
        )
    return list(dict.fromkeys(map(int, seeds)))


def check_writable(out: Path) -> None:
    """Raises SuiteError for an output folder that cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise SuiteError(
            f"cannot write to the output folder {out}: {error.strerror}; choose another with --out"
        ) from None
