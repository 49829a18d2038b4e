"""A contact sheet, a row of samples per class: `python -m benchmarks.data.sheet [--preset NAME] [--out FILE.png]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.drawing.presets import PRESETS, Preset
from benchmarks.drawing.scene import class_table, draw

_TILE = 64
_LABEL_WIDTH = 132
_ROWS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="procedural-20")
    parser.add_argument("--samples", type=int, default=0, help="per class; 0: ten, or four of many classes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    preset, out = PRESETS[options.preset], options.out or Path(f"{options.preset}.png")
    samples = options.samples or (10 if preset.classes <= _ROWS else 4)
    contact_sheet(preset, samples).save(out, optimize=True)
    print(out)


def contact_sheet(preset: Preset, samples: int) -> Image.Image:
    """Every class's first training images, enlarged by whole pixels, 25 classes to a column."""
    columns = -(-preset.classes // _ROWS)
    rows = min(preset.classes, _ROWS)
    width = _LABEL_WIDTH + samples * _TILE
    sheet = Image.new("RGB", (columns * width, rows * _TILE), "white")
    pen = ImageDraw.Draw(sheet)
    for label in range(preset.classes):
        left, top = label // _ROWS * width, label % _ROWS * _TILE
        pen.text((left + 6, top + 18), class_table()[label].name.replace(", ", "\n", 1), fill="black")
        images = draw(preset, "train", label + preset.classes * np.arange(samples))
        for place, image in enumerate(images):
            tile = Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + _LABEL_WIDTH + place * _TILE, top))
    return sheet


if __name__ == "__main__":
    main()
