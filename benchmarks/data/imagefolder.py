"""ImageNet's layout, DIR/{train,val}/<class>/*: validation is carved from train, val is the test split."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as T

from benchmarks.data import Dataset, Subset, permutation
from benchmarks.data.augmentation import randaugmented
from benchmarks.data.comparing import digests_of
from benchmarks.data.copies import restored
from benchmarks.data.decoding import UnreadableError, decode, read_file
from benchmarks.data.digests import Digests
from benchmarks.data.folders import DataError, images_folder, shown, to_stderr
from benchmarks.data.listing import Listing, listing_of
from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE = 256 / 224
_SPLIT_SEED = 0
_MAX_VALIDATION = 10_000


@dataclass(frozen=True)
class FolderSplit:
    """Files of one split. Augmentation: random resized crop (scale 0.08..1, ratio 3/4..4/3) and horizontal flip.

    files: paths below `folder`, as bytes: a million of them fit in 60 MB and travel fast to processes that load.
    randaugment: then two of torchvision's RandAugment operations, at its magnitude of 9 in 31.
    digests: (n, 32), SHA-256 of copies, which are checked whenever one is read and made again if they are damaged;
    None: of images as they came, which a run compares once, before its trials.
    """

    folder: Path
    files: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    image_size: int
    randaugment: bool = False
    digests: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        rows = [None] * len(indices) if draws is None else list(draws)
        images = [self._image(i, row) for i, row in zip(indices, rows, strict=True)]
        return torch.stack(images), torch.from_numpy(self.labels[indices])

    def _path(self, index: np.int64) -> Path:
        return self.folder / os.fsdecode(self.files[index])

    def _content(self, index: np.int64) -> bytes:
        if self.digests is None:
            return read_file(self._path(index))
        digest = self.digests[index].tobytes()
        try:
            content = read_file(self._path(index))
        except UnreadableError:
            content = b""
        if hashlib.sha256(content).digest() != digest:
            content = restored(self.folder, os.fsdecode(self.files[index]), digest, to_stderr)
        return content

    def _image(self, index: np.int64, draws: NDArray[np.float64] | None) -> Tensor:
        try:
            pixels = T.pil_to_tensor(decode(self._content(index)))
        except UnreadableError as error:
            raise DataError(
                f"cannot read the image {shown(self._path(index))}: {error}; replace or remove it "
                "(`runner.py prepare` finds all such)"
            ) from error
        if draws is None:
            pixels = _centre(pixels, self.image_size)
        else:
            pixels = _random_crop(pixels, draws, self.image_size)
            pixels = randaugmented(pixels, draws) if self.randaugment else pixels
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


def load_imagefolder(spec: DataSpec, folder: Path, allow_bad_images: int = 0) -> Dataset:
    """Raises DataError for missing, empty or differing class folders, and for more bad images than are allowed."""
    place = images_folder(folder, spec.short_side)
    listing = listing_of(place, short_side=spec.short_side, allow_bad_images=allow_bad_images)
    names = sorted({path.split("/")[1] for path in listing.files})
    if len(names) != spec.classes:
        raise SuiteError(f"{shown(place / 'train')} has {len(names)} classes, the suite says {spec.classes}")
    digests = None if listing.short_side is None else digests_of(place, listing)
    train, test = (_split(spec, place, listing, part, names, digests) for part in ("train", "val"))
    order = permutation(_SPLIT_SEED, count=len(train))
    held_out = min(len(train) // 10, _MAX_VALIDATION)
    if held_out < 1:
        raise DataError(
            f"{shown(place / 'train')} has {len(train)} images; at least 10 are needed to carve validation from it"
        )
    validation, rest = order[:held_out], order[held_out:]  # not sorted: files are in order of class
    used = rest if spec.share is None else rest[: round(spec.share * len(rest))]
    return Dataset(Subset(train, used), Subset(train, validation), test, listing.digest)


def _split(
    spec: DataSpec, folder: Path, listing: Listing, part: str, names: list[str], digests: Digests | None
) -> FolderSplit:
    label_of = {name: label for label, name in enumerate(names)}
    files, labels = [np.array([], np.bytes_)], [np.array([], np.int64)]
    for name, paths in listing.classes(part):
        if paths:
            # At once: a million names one by one take seconds and a gigabyte. None has a zero in it.
            files.append(np.array(os.fsencode("\0".join(paths)).split(b"\0")))
            labels.append(np.full(len(paths), label_of[name], np.int64))
    place = (np.concatenate(files), np.concatenate(labels))
    own = None if digests is None else _digests(listing, part, digests)
    return FolderSplit(folder, *place, spec.image_size, spec.augment == "randaugment", own)


def _digests(listing: Listing, part: str, digests: Digests) -> NDArray[np.uint8]:
    """Those of a part's files that can be read, (n, 32), in their order."""
    bad = listing.unreadable or {}
    used = [
        place.startswith(f"{part}/") and (not bad or f"{place}/{name}" not in bad)
        for place, rows in listing.files.items()
        for name, _ in rows
    ]
    return np.frombuffer(digests.each, np.uint8).reshape(-1, 32)[used]
