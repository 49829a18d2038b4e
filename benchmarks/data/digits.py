"""scikit-learn's 1,797 real 8x8 images of handwritten digits (Alpaydin & Kaynak, UCI 1998), resized; no download."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.data import Dataset, permutation
from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec

TRAIN, VALIDATION, TEST = 960, 237, 600
_SPLIT_SEED = 0
_MAX_ROTATION = math.radians(10)
_MAX_ZOOM = 0.1
_MAX_SHIFT = 0.1


@dataclass(frozen=True)
class DigitsSplit:
    """Images in memory. Augmentation: rotation to 10 degrees, zoom and shift to a tenth of the image."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        images = self.images[chosen]
        return (images if draws is None else _augment(images, draws)), self.labels[chosen]


def _augment(images: Tensor, draws: NDArray[np.float64]) -> Tensor:
    angle, zoom, right, down = (torch.from_numpy(2.0 * draws[:, k] - 1.0).float() for k in range(4))
    angle, zoom = angle * _MAX_ROTATION, 1.0 + zoom * _MAX_ZOOM
    row1 = torch.stack([zoom * angle.cos(), -zoom * angle.sin(), 2 * _MAX_SHIFT * right], dim=1)
    row2 = torch.stack([zoom * angle.sin(), zoom * angle.cos(), 2 * _MAX_SHIFT * down], dim=1)
    grid = F.affine_grid(torch.stack([row1, row2], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def load_digits_dataset(spec: DataSpec) -> Dataset:
    """960 / 237 / 600 images, split once and for all; three equal channels, mean 0 and deviation 1 over train."""
    if spec.classes != 10:
        raise SuiteError(f"digits has 10 classes, the suite says {spec.classes}")
    raw = load_digits()
    pixels, targets = raw.images.astype(np.uint8), raw.target.astype(np.int64)
    order = permutation(_SPLIT_SEED, count=len(targets))
    images = torch.from_numpy(pixels[order]).float()[:, None] / 16.0
    size = (spec.image_size, spec.image_size)
    images = F.interpolate(images, size, mode="bilinear", align_corners=False)
    images = (images - images[:TRAIN].mean()) / images[:TRAIN].std()
    images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(targets[order])
    ends = (0, TRAIN, TRAIN + VALIDATION, TRAIN + VALIDATION + TEST)
    # Copies: a slice would carry the memory of the other splits along.
    splits = (DigitsSplit(images[a:b].clone(), labels[a:b].clone()) for a, b in pairwise(ends))
    train, validation, test = splits
    digest = hashlib.sha256(pixels[order].tobytes() + targets[order].tobytes()).hexdigest()
    return Dataset(train, validation, test, digest)
