"""Datasets, one file each, and the deterministic stream over any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.suite import DataSpec

DATA_VARIABLE = "MPBENCH_DATA"
"""Environment variable that names the folder with one folder per dataset."""


class DataError(Exception):
    """Data that is missing, empty, in the wrong layout or unreadable; the message says where and what to do."""


class Split(Protocol):
    """Images in a fixed order."""

    def __len__(self) -> int: ...

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        """Images (n, 3, size, size) float32, normalized, and labels (n,) int64.

        draws: (n, AUGMENTATION_DRAWS) uniforms in [0, 1) that decide each image's augmentation; None: none.
        """


AUGMENTATION_DRAWS = 8


@dataclass(frozen=True)
class Dataset:
    """The three splits and a digest of what they hold. Validation is carved from train; test is read once."""

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


def load_dataset(spec: DataSpec, folder: Path | None) -> Dataset:
    """Raises DataError for data that cannot be used. folder: where files are; datasets without files ignore it."""
    if spec.dataset == "digits":
        from benchmarks.data.digits import load_digits_dataset

        return load_digits_dataset(spec)
    from benchmarks.data.imagefolder import load_imagefolder

    assert folder is not None
    return load_imagefolder(spec, folder)


def find_folder(dataset: str, given: Path | None) -> Path | None:
    """The folder of a dataset's files: as given, or $MPBENCH_DATA/<dataset>, or ./data/<dataset>; None if it needs none.

    Raises DataError naming the places that were looked at.
    """
    if dataset == "digits":
        return None
    if given is not None:
        if not given.is_dir():
            raise DataError(f"no data folder {given}; --data names the folder that holds train/ and val/")
        return given
    root = os.environ.get(DATA_VARIABLE)
    places = [Path(root) / dataset] if root else []
    places.append(Path("data") / dataset)
    for place in places:
        if place.is_dir():
            return place
    variable = f"${DATA_VARIABLE}/{dataset}" + ("" if root else f" ({DATA_VARIABLE} is not set)")
    raise DataError(
        f"no data for {dataset!r}: looked in {variable} and in {Path('data').resolve() / dataset}; "
        "name the folder that holds train/ and val/ with --data"
    )


def permutation(seed: int, *key: int, count: int) -> NDArray[np.int64]:
    """The order of `count` images under a seed and a key, such as an epoch; alike on every platform."""
    order: NDArray[np.int64] = counted_generator(seed, *key).permutation(count)
    return order


def counted_generator(seed: int, *key: int) -> np.random.Generator:
    """A counter-based generator addressed by numbers, so that any epoch's draws can be had without the ones before."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=tuple(key))
    return np.random.Generator(np.random.Philox(sequence))


def label_counts(labels: Sequence[int] | NDArray[Any], classes: int) -> NDArray[np.int64]:
    return np.bincount(np.asarray(labels), minlength=classes)
