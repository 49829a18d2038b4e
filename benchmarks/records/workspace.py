"""Where a run keeps its files, and the locks that let several runs share them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.files import file_lock
from benchmarks.records.record import Records
from benchmarks.suites.spec import DataSpec

if TYPE_CHECKING:
    from benchmarks.data import Dataset


@dataclass(frozen=True)
class Workspace:
    """One suite's folder in an output folder, and how trials run in it; nothing here changes a result.

    out: the output folder. suite: the suite's name. data: folder of the dataset's files, if it has any.
    weights: folder of torchvision's weights files; None: torch's own cache, into which they are downloaded.
    gpu: whether trials run on a GPU. compile: whether fine-tuning runs through torch.compile.
    loaders: processes per trial that load images ahead of their use. ranks: processes that train a trial together.
    allow_bad_images: how many image files that cannot be read may be left out.
    checkpoint_seconds: how often a trial saves itself; 0 saves after every step.
    storage: URL where results and checkpoints are kept as well, see benchmarks/engines/storage.py.
    """

    out: Path
    suite: str
    data: Path | None = None
    weights: Path | None = None
    engine: str = "local"
    threads: int = 1
    gpu: bool = False
    compile: bool = False
    loaders: int = 0
    ranks: int = 1
    allow_bad_images: int = 0
    checkpoint_seconds: float = 10.0
    storage: str | None = None

    @property
    def folder(self) -> Path:
        return self.out / self.suite

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def load_data(self, spec: DataSpec) -> Dataset:
        """Raises DataError for data that cannot be used."""
        from benchmarks.data.opening import load_dataset

        return load_dataset(spec, self.data, self.allow_bad_images)

    @property
    def records(self) -> Records:
        return Records(self.folder / "records")

    @property
    def report(self) -> Path:
        return self.folder / "report"

    def checkpoint(self, key: str) -> Path:
        return self.folder / "checkpoints" / f"{key}.pt"

    def network(self, trial_id: str) -> Path:
        return self.folder / "networks" / f"{trial_id}.pt"

    def start(self, key: str) -> Path:
        """A float start; suites in one output folder share them."""
        return self.out / "float" / f"{key}.pt"

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock `name`; yields whether it was had."""
        with file_lock(self.out / "locks" / f"{name}.lock", wait=wait) as held:
            yield held
