"""A small folder in ImageNet's layout, to try a suite on: `python -m benchmarks.data.tree FOLDER [--classes 20]`.

Classes are the generated images' own, told apart by shape, colour and size; the same arguments give the same pictures.
Files are JPEGs of several sizes, some grey, some CMYK, as ImageNet's are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drawing.presets import PRESETS
from benchmarks.drawing.scene import draw

_SIZES = ((320, 240), (240, 320), (256, 256), (500, 375), (200, 150))
_ODD = {7: "L", 13: "CMYK"}
"""Period -> mode: every 7th image is grey, every 13th is CMYK."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=20, help="2 to 100")
    parser.add_argument("--images", type=int, default=64, help="of each class for training; an eighth of it for val")
    options = parser.parse_args()
    if not 2 <= options.classes <= 100 or options.images < 1:
        parser.error("--classes must be 2 to 100, --images at least 1")
    write_tree(options.folder, options.classes, options.images, max(1, options.images // 8))
    print(options.folder)


def write_tree(folder: Path, classes: int, train: int, val: int) -> None:
    """`train` and `val` images of each class. Raises FileExistsError where one of these folders is there already."""
    preset = PRESETS["procedural-20"].resized(image_size=64, classes=classes)
    for part, split, count in (("train", "train", train), ("val", "test", val)):
        for label in range(classes):
            place = folder / part / f"n{label:08d}"
            place.mkdir(parents=True)
            pictures = draw(preset, split, label + classes * np.arange(count))
            for k, pixels in enumerate(pictures):
                mode = next((mode for every, mode in _ODD.items() if k % every == every - 1), "RGB")
                image = Image.fromarray(pixels).resize(_SIZES[k % len(_SIZES)], Image.Resampling.BICUBIC).convert(mode)
                image.save(place / f"{place.name}_{k}.JPEG", "JPEG", quality=90)


if __name__ == "__main__":
    main()
