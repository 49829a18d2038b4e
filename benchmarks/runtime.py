"""How trials run on a machine. Nothing here changes a result, and nothing of it enters a trial's id. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec

if TYPE_CHECKING:
    from benchmarks.data import Dataset


@dataclass(frozen=True)
class Runtime:
    """Settings of a run, alike for all of its trials.

    data: folder of the dataset's files, if it has any. weights: folder of torchvision's weights files; None: torch's
    own cache, into which they are downloaded. allow_bad_images: how many image files that cannot be read may be left
    out. gpu: whether trials run on a GPU. compile: whether fine-tuning runs through torch.compile. loaders: processes
    per trial that load images ahead of their use. ranks: processes that train a trial together. checkpoint_seconds:
    how often a trial saves itself; 0 saves after every step. storage: URL where results and checkpoints are kept as
    well, see benchmarks/engines/storage.py.
    """

    data: Path | None = None
    weights: Path | None = None
    allow_bad_images: int = 0
    engine: str = "local"
    threads: int = 1
    gpu: bool = False
    compile: bool = False
    loaders: int = 0
    ranks: int = 1
    checkpoint_seconds: float = 10.0
    storage: str | None = None

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def load_data(self, spec: DataSpec) -> Dataset:
        """Raises DataError for data that cannot be used."""
        from benchmarks.data.folders import DataError
        from benchmarks.data.opening import load_dataset

        try:
            return load_dataset(spec, self.data, self.allow_bad_images)
        except (OSError, MemoryError, DataError, SuiteError):
            raise
        except Exception as error:  # a plug-in may raise anything
            raise DataError(f"data set {spec.dataset}: {type(error).__name__}: {error}") from error
