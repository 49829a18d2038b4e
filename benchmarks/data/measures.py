"""What simple classifiers make of a preset's images: `python -m benchmarks.data.measures [--preset procedural-20]`.

Neither mean colour nor single pixels may give a class away; docs/procedural.md has these figures.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.data.folders import find_folder
from benchmarks.data.procedural import DrawnSplit, load_procedural
from benchmarks.drawing.presets import PRESETS
from benchmarks.suites.spec import ProceduralSpec

_BATCH = 500
_EPOCHS = 10
_RATES = (1e-4, 1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="procedural-20")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = ProceduralSpec.model_validate({"dataset": "procedural", "preset": options.preset})
    folder = find_folder("procedural", options.data)
    assert folder is not None
    data = load_procedural(spec, folder)
    train, test = data.train, data.test
    assert isinstance(train, DrawnSplit)
    assert isinstance(test, DrawnSplit)
    print(f"{options.preset}: {len(train):,} train and {len(test):,} test images, chance {1 / spec.classes:.2%}")
    show("nearest mean colour", nearest_mean_colour(train, test), len(test))
    best = max(linear_classifier(train, test, rate) for rate in _RATES)
    show("linear classifier on pixels, best of two rates", best, len(test))


def show(name: str, accuracy: float, images: int) -> None:
    """With a 95 % interval of a share of independent images (normal approximation)."""
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / images)
    print(f"{name}: {accuracy:.2%} +- {half:.2%} (n = {images:,} images)")


def nearest_mean_colour(train: DrawnSplit, test: DrawnSplit) -> float:
    """Each test image goes to the class whose mean colour over train is nearest to its own."""
    colours, wanted = mean_colours(train), mean_colours(test)
    classes = np.stack([colours[train.labels == label].mean(0) for label in range(train.labels.max() + 1)])
    nearest = ((wanted[:, None] - classes) ** 2).sum(-1).argmin(1)
    return float((nearest == test.labels).mean())


def mean_colours(split: DrawnSplit) -> NDArray[np.float64]:
    """(n, 3)."""
    blocks = [split.images[start : start + _BATCH].mean((1, 2)) for start in range(0, len(split), _BATCH)]
    return np.concatenate(blocks)


def linear_classifier(train: DrawnSplit, test: DrawnSplit, rate: float) -> float:
    """Multinomial logistic regression on all pixels, Adam, ten epochs; test accuracy."""
    torch.manual_seed(0)
    model = nn.Linear(train.images[0].size, int(train.labels.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for epoch in range(_EPOCHS):
        for indices in np.array_split(np.random.default_rng(epoch).permutation(len(train)), len(train) // _BATCH):
            images, labels = train.load(indices, None)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images.flatten(1)), labels).backward()
            optimizer.step()
    correct = 0
    with torch.no_grad():
        for indices in np.array_split(np.arange(len(test)), len(test) // _BATCH):
            images, labels = test.load(indices, None)
            correct += int((model(images.flatten(1)).argmax(1) == labels).sum())
    return correct / len(test)


if __name__ == "__main__":
    main()
