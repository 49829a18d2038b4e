"""Generated images: no download, the same bytes everywhere. What they show: benchmarks/drawing/scene.py."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.data import Dataset
from benchmarks.data.drawn import open_images, preset_of
from benchmarks.drawing.presets import SPLITS
from benchmarks.drawing.scene import label_of
from benchmarks.suites.spec import ProceduralSpec

MIDDLE, SPREAD = 128, 64
"""Grey level that becomes 0 and distance that becomes 1: round figures near the images' own mean and deviation."""

MAX_SHIFT = 8
"""Augmentation shifts by up to this part of the image's side."""


@dataclass(frozen=True)
class DrawnSplit:
    """Images mapped from disk. Augmentation: a shift with mirrored edges, and a horizontal flip by even odds."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        images = self.images[indices] if draws is None else _augmented(self.images, indices, draws)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        return pixels.sub_(MIDDLE).div_(SPREAD), torch.from_numpy(self.labels[indices])


def _augmented(images: NDArray[np.uint8], indices: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    size = images.shape[1]
    reach = size // MAX_SHIFT
    down, right = ((draws[:, k] * (2 * reach + 1)).astype(np.int64) - reach for k in range(2))
    rows = _mirrored(np.arange(size) + down[:, None], size)
    columns = _mirrored(np.arange(size) + right[:, None], size)
    columns = np.where(draws[:, 2:3] < 0.5, columns[:, ::-1], columns)
    moved = np.empty((len(indices), *images.shape[1:]), dtype=np.uint8)
    for k, index in enumerate(indices):  # image by image: four times as fast as one gather over all of them
        moved[k] = images[index].take(rows[k], axis=0).take(columns[k], axis=1)
    return moved


def _mirrored(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Places beyond an edge, reflected at it: -1 becomes 1."""
    places = np.abs(places)
    return np.where(places >= size, 2 * (size - 1) - places, places)


def load_procedural(spec: ProceduralSpec, folder: Path) -> Dataset:
    """The three splits, drawn on first use. Raises DataError where they cannot be kept."""
    opened = {split: open_images(spec, split, folder) for split in SPLITS}
    splits = {
        split: DrawnSplit(images, label_of(preset_of(spec), np.arange(len(images))))
        for split, (images, _) in opened.items()
    }
    digest = hashlib.sha256(" ".join(digest for _, digest in opened.values()).encode()).hexdigest()
    return Dataset(splits["train"], splits["validation"], splits["test"], digest)
