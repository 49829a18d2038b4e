"""Datasets, one file each, and the deterministic stream over any of them. Importing this must not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.plugins import DATASETS, load_plugin, plugged
from benchmarks.spec import DataSpec, ProceduralSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Split(Protocol):
    """Images in a fixed order."""

    def __len__(self) -> int: ...

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        """Images (n, 3, size, size) float32, normalized, and labels (n,) int64.

        draws: (n, AUGMENTATION_DRAWS) uniforms in [0, 1) that decide each image's augmentation; None: none.
        """


AUGMENTATION_DRAWS = 8

AHEAD = 2
"""Micro-batches that each process which loads images has under way."""

EVALUATION_BATCH = 200
"""Images that evaluation and recalibration take at a time."""


@dataclass(frozen=True)
class Dataset:
    """The three splits and a digest of what they hold. Validation is carved from train; test is read once.

    The first images of train and of validation must be a fair sample of all classes: batch norm is recalibrated on the
    first of train, codes are audited on the first of validation.
    """

    train: Split
    validation: Split
    test: Split
    digest: str


@dataclass(frozen=True)
class Subset:
    """Some images of a split."""

    split: Split
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        return self.split.load(self.indices[indices], draws)


def load_dataset(spec: DataSpec, folder: Path | None, allow_bad_images: int = 0) -> Dataset:
    """Raises DataError for data that cannot be used.

    folder: where files are, or are kept once they are drawn; datasets without files ignore it.
    allow_bad_images: how many image files that cannot be read may be left out, as their folder's manifest names them.
    """
    if spec.dataset in plugged(DATASETS):
        brought: Dataset = load_plugin(DATASETS, spec.dataset)(spec, folder)
        return brought
    if spec.dataset == "digits":
        from benchmarks.data.digits import load_digits_dataset

        return load_digits_dataset(spec)
    assert folder is not None
    if spec.dataset.startswith("cifar"):
        from benchmarks.data.cifar import load_cifar

        return load_cifar(spec, folder)
    if isinstance(spec, ProceduralSpec):
        from benchmarks.data.procedural import load_procedural

        return load_procedural(spec, folder)
    from benchmarks.data.imagefolder import load_imagefolder

    return load_imagefolder(spec, folder, allow_bad_images)


def permutation(seed: int, *key: int, count: int) -> NDArray[np.int64]:
    """The order of `count` images under a seed and a key, such as an epoch; alike on every platform."""
    order: NDArray[np.int64] = counted_generator(seed, *key).permutation(count)
    return order


def counted_generator(seed: int, *key: int) -> np.random.Generator:
    """A counter-based generator addressed by numbers, so that any epoch's draws can be had without the ones before."""
    import numpy as np

    sequence = np.random.SeedSequence(entropy=seed, spawn_key=tuple(key))
    return np.random.Generator(np.random.Philox(sequence))
