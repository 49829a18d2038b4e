"""How many images a second one core loads for training: `python -m benchmarks.perf.loading [--data DIR] [--json]`.

Ours, and ours from copies at a short side of 256 pixels (`runner.py prepare --cache 256`), beside torchvision's plain
recipe (ImageFolder; RandomResizedCrop, flip, ToTensor, Normalize on Pillow images), interleaved in one run; then ours
with a loader per core. Without --data, images of ImageNet's usual size are generated: 500 x 375, a tenth of a megabyte.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.data import AUGMENTATION_DRAWS, Split
from benchmarks.data.imagefolder import DEVIATION, MEAN
from benchmarks.data.loading import Request, fetched
from benchmarks.data.opening import load_dataset
from benchmarks.data.preparing import look_through, make_cache
from benchmarks.perf.rounds import interleaved, ratio
from benchmarks.suites.spec import DataSpec

_SIZE = 224
_SHORT_SIDE = 256
_CLASSES, _PER_CLASS = 4, 60
_IMAGES, _BATCH = 960, 64
"""So many that starting loaders is not what is measured; each is loaded several times, augmented otherwise."""
_ROUNDS = 5
_GRAIN = 24
"""Spread of the noise that gives generated images the bytes of photographs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or generated(Path(temporary) / "images")
        small = Path(temporary) / "copies"
        make_cache(folder, look_through(folder, quiet), _SHORT_SIDE, small, quiet)
        works = works_on(folder, small)
        seconds = interleaved(works, _ROUNDS, repeats=1)
    rates = {name: _IMAGES / median(times) for name, times in seconds.items()}
    if options.json:
        print(json.dumps(rates))
        return
    for name, rate in rates.items():
        print(f"{name:36s} {rate:8.1f} images/s   {ratio(seconds['torchvision'], seconds[name])} of torchvision's")


def quiet(_what: str, _done: int, _total: int) -> None: ...


def generated(folder: Path) -> Path:
    noise = np.random.default_rng(0)
    for part, count in (("train", _PER_CLASS), ("val", 2)):
        for label in range(_CLASSES):
            place = folder / part / f"n{label:08d}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
                grain = noise.normal(0, _GRAIN, (375, 500, 3))
                grainy = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
                Image.fromarray(grainy).filter(ImageFilter.GaussianBlur(0.7)).save(place / f"{index}.JPEG", quality=95)
    return folder


def works_on(folder: Path, small: Path) -> dict[str, Callable[[], None]]:
    """Loading _IMAGES augmented training images each way."""
    classes = sum(path.is_dir() for path in (folder / "train").iterdir())
    spec = DataSpec(dataset="imagefolder", image_size=_SIZE, classes=classes, augment="crop-flip")
    ours = load_dataset(spec, folder).train
    cached = load_dataset(spec.model_copy(update={"short_side": _SHORT_SIDE}), small).train
    plain = ImageFolder(
        str(folder / "train"),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(_SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(list(MEAN), list(DEVIATION)),
            ]
        ),
    )
    cores = os.cpu_count() or 1
    return {
        "torchvision": partial(load_plain, plain),
        "ours": partial(load_ours, ours, 0),
        f"ours, copies at {_SHORT_SIDE}": partial(load_ours, cached, 0),
        f"ours, {cores} loaders": partial(load_ours, ours, cores),
    }


def load_plain(images: ImageFolder) -> None:
    for first in range(0, _IMAGES, _BATCH):
        torch.stack([images[index % len(images)][0] for index in range(first, first + _BATCH)])


def load_ours(split: Split, loaders: int) -> None:
    draws = np.random.default_rng(0).random((_IMAGES, AUGMENTATION_DRAWS))
    requests = [
        Request(np.arange(first, first + _BATCH) % len(split), draws[first : first + _BATCH])
        for first in range(0, _IMAGES, _BATCH)
    ]
    for _ in fetched(split, requests, loaders=loaders, device=torch.device("cpu")):
        pass


if __name__ == "__main__":
    main()
