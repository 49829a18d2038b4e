"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) by torchvision, which unpickles only files of the digests that it knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms.v2 import functional as T

from benchmarks.data import Dataset, permutation
from benchmarks.data.augmentation import randaugmented
from benchmarks.data.folders import DataError
from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and deviation of CIFAR-10's training images; those of CIFAR-100 differ by a few hundredths."""

SIZE = 32
VALIDATION = 5_000
_PADDING = 4
_SPLIT_SEED = 0
_KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@dataclass(frozen=True)
class CifarSplit:
    """Images in memory. Augmentation: a crop of the image padded with 4 black pixels, and a horizontal flip.

    randaugment: then two of torchvision's RandAugment operations.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    randaugment: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2)
        if draws is not None:
            pixels = torch.stack([self._moved(image, row) for image, row in zip(pixels, draws, strict=True)])
        images: Tensor = T.normalize(T.to_dtype(pixels, torch.float32, scale=True), list(MEAN), list(DEVIATION))
        return images, torch.from_numpy(self.labels[indices])

    def _moved(self, image: Tensor, draws: NDArray[np.float64]) -> Tensor:
        top, left = (int(draw * (2 * _PADDING + 1)) for draw in draws[:2])
        crop = T.pad(image, [_PADDING])[:, top : top + SIZE, left : left + SIZE]
        crop = crop.flip(-1) if draws[2] < 0.5 else crop
        return randaugmented(crop, draws) if self.randaugment else crop


def load_cifar(spec: DataSpec, folder: Path) -> Dataset:
    """45,000 / 5,000 / 10,000 images. Raises DataError if files are missing or damaged."""
    kind = _KINDS[spec.dataset]
    classes = 100 if kind is CIFAR100 else 10
    if spec.classes != classes or spec.image_size != SIZE:
        raise SuiteError(
            f"{spec.dataset} has {classes} classes and {SIZE} pixels, the suite says {spec.classes} classes and "
            f"{spec.image_size} pixels"
        )
    try:
        train, test = kind(folder, train=True), kind(folder, train=False)
    except RuntimeError as error:
        raise DataError(
            f"no whole {spec.dataset} in {folder}; fetch it with `python runner.py prepare`, or put "
            f"{kind.url} there and unpack it"
        ) from error
    order = permutation(_SPLIT_SEED, count=len(train.data))
    labels, augmented = np.array(train.targets, np.int64), spec.augment == "randaugment"
    held_out, used = np.sort(order[:VALIDATION]), np.sort(order[VALIDATION:])  # classes are mixed in the files
    digest = hashlib.sha256(train.data.tobytes() + labels.tobytes() + test.data.tobytes()).hexdigest()
    return Dataset(
        CifarSplit(train.data[used], labels[used], augmented),
        CifarSplit(train.data[held_out], labels[held_out]),
        CifarSplit(test.data, np.array(test.targets, np.int64)),
        digest,
    )


def fetch_cifar(dataset: str, folder: Path) -> None:
    """Download what is missing. Raises DataError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _KINDS[dataset](folder, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot fetch {dataset} into {folder}: {error}; download {_KINDS[dataset].url}") from error
