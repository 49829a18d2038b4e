"""ImageNet's layout, DIR/{train,val}/<class>/*: validation is carved from train, val is the test split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as T

from benchmarks.data import Dataset, Split, Subset, permutation
from benchmarks.data.folders import DataError, class_names
from benchmarks.messages import SuiteError
from benchmarks.spec import DataSpec

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE = 256 / 224
_SPLIT_SEED = 0
_MAX_VALIDATION = 10_000
_LOADERS = 8


@dataclass(frozen=True)
class FolderSplit:
    """Files of one split. Augmentation: random resized crop (scale 0.08..1, ratio 3/4..4/3) and horizontal flip."""

    files: Sequence[Path]
    labels: NDArray[np.int64]
    image_size: int

    def __len__(self) -> int:
        return len(self.files)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        rows = [None] * len(indices) if draws is None else list(draws)
        with ThreadPoolExecutor(_LOADERS) as pool:
            images = list(pool.map(lambda i, row: _load(self.files[i], row, self.image_size), indices, rows))
        return torch.stack(images), torch.from_numpy(self.labels[indices])


def _load(path: Path, draws: NDArray[np.float64] | None, size: int) -> Tensor:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"cannot read the image {path}: {error}; replace or remove the file") from error
    pixels = T.pil_to_tensor(image)
    pixels = _centre(pixels, size) if draws is None else _random_crop(pixels, draws, size)
    normalized: Tensor = T.normalize(T.to_dtype(pixels, torch.float32, scale=True), list(MEAN), list(DEVIATION))
    return normalized


def _centre(pixels: Tensor, size: int) -> Tensor:
    resized = T.resize(pixels, [round(size * RESIZE)], InterpolationMode.BILINEAR, antialias=True)
    cropped: Tensor = T.center_crop(resized, [size, size])
    return cropped


def _random_crop(pixels: Tensor, draws: NDArray[np.float64], size: int) -> Tensor:
    """A crop of random area and ratio, as large as fits where it would stick out, then a flip by even odds."""
    height, width = pixels.shape[-2:]
    area = height * width * (0.08 + 0.92 * draws[0])
    ratio = float(np.exp(np.log(3 / 4) + draws[1] * (np.log(4 / 3) - np.log(3 / 4))))
    crop_width = min(width, max(1, round((area * ratio) ** 0.5)))
    crop_height = min(height, max(1, round((area / ratio) ** 0.5)))
    top = int(draws[2] * (height - crop_height + 1))
    left = int(draws[3] * (width - crop_width + 1))
    crop: Tensor = T.resized_crop(
        pixels, top, left, crop_height, crop_width, [size, size], InterpolationMode.BILINEAR, antialias=True
    )
    return crop.flip(-1) if draws[4] < 0.5 else crop


def load_imagefolder(spec: DataSpec, folder: Path) -> Dataset:
    """Raises DataError for missing, empty or differing class folders."""
    names = class_names(folder)
    if len(names) != spec.classes:
        raise SuiteError(f"{folder / 'train'} has {len(names)} classes, the suite says {spec.classes}")
    train = _scan(folder / "train", names, spec.image_size)
    test = _scan(folder / "val", names, spec.image_size)
    order = permutation(_SPLIT_SEED, count=len(train))
    held_out = min(len(train) // 10, _MAX_VALIDATION)
    if held_out < 1:
        raise DataError(
            f"{folder / 'train'} has {len(train)} images; at least 10 are needed to carve validation from it"
        )
    validation: Split = Subset(train, np.sort(order[:held_out]))
    return Dataset(Subset(train, np.sort(order[held_out:])), validation, test, _digest(folder, train, test))


def _scan(folder: Path, names: Sequence[str], size: int) -> FolderSplit:
    files: list[Path] = []
    labels: list[int] = []
    if extra := sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(names)):
        raise DataError(f"{folder} has classes that train lacks: {', '.join(extra[:5])}")
    for label, name in enumerate(names):
        part = folder / name
        found = sorted(p for p in part.iterdir() if p.suffix.lower() in SUFFIXES) if part.is_dir() else []
        if not found:
            raise DataError(f"no images in {part}; expected files ending in {', '.join(sorted(SUFFIXES))}")
        files += found
        labels += [label] * len(found)
    return FolderSplit(files, np.array(labels, np.int64), size)


def _digest(folder: Path, *splits: FolderSplit) -> str:
    """Names and sizes of all files: cheap, and independent of where the folder lies."""
    lines = (f"{path.relative_to(folder)} {path.stat().st_size}" for split in splits for path in split.files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
