"""What a dataset is, and the orders in which its images come. Importing this must not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
"""Micro-batches that each loading process prepares ahead."""

EVALUATION_BATCH = 200
"""Images per batch of evaluation and recalibration."""


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


def permutation(seed: int, *key: int, count: int) -> NDArray[np.int64]:
    """The order of `count` images under a seed and a key, such as an epoch; the same on every platform."""
    order: NDArray[np.int64] = counted_generator(seed, *key).permutation(count)
    return order


def counted_generator(seed: int, *key: int) -> np.random.Generator:
    """A counter-based generator addressed by numbers, so that any epoch's draws can be made without those before."""
    import numpy as np

    sequence = np.random.SeedSequence(entropy=seed, spawn_key=tuple(key))
    return np.random.Generator(np.random.Philox(sequence))
