"""Where a run keeps its files, and the locks that let several runs share them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.files import file_lock
from benchmarks.records.record import Records
from benchmarks.suites.spec import StartSpec, TrialSpec


@dataclass(frozen=True)
class Workspace:
    """One suite's folder in an output folder.

    out: the output folder, where suites share float starts and locks. suite: the suite's name.
    """

    out: Path
    suite: str

    @property
    def folder(self) -> Path:
        return self.out / self.suite

    @property
    def records(self) -> Records:
        return Records(self.folder / "records")

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def networks(self) -> Path:
        """Where the networks of small suites are kept."""
        return self.folder / "networks"

    @property
    def starts(self) -> Path:
        """Where float starts are kept."""
        return self.out / "float"

    def network(self, trial_id: str) -> Path:
        return self.networks / f"{trial_id}.pt"

    def start(self, key: str) -> Path:
        return self.starts / f"{key}.pt"

    def start_failure(self, key: str) -> Path:
        """The file that says why a float start cannot be trained, beside the place of the start."""
        return self.starts / f"{key}.failed.json"

    def checkpoint(self, key: str) -> Path:
        """The checkpoint of a trial, by its id, or of a float start, by its key."""
        return self.folder / "checkpoints" / f"{key}.pt"

    def result(self, spec: TrialSpec | StartSpec) -> Path:
        """The file that a trial or a float start ends with."""
        return self.records.path(spec.id) if isinstance(spec, TrialSpec) else self.start(spec.key)

    def done(self, spec: TrialSpec | StartSpec) -> bool:
        """Whether nothing is left to run: there is a record, or a float start, or a note why that cannot be trained.

        Raises RecordError for a damaged record. A float start is checked only when it is read, and made again then.
        """
        if isinstance(spec, TrialSpec):
            return self.records.get(spec.id) is not None
        return self.result(spec).exists() or self.start_failure(spec.key).exists()

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock `name`; yields whether it was obtained."""
        with file_lock(self.out / "locks" / f"{name}.lock", wait=wait) as held:
            yield held
