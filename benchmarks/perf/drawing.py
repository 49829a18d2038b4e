"""How fast generated images are drawn and loaded: `python -m benchmarks.perf.drawing [--json]`; one core.

Medians of several rounds, interleaved; loading is of random batches from a warm memory map, with augmentation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.data import AUGMENTATION_DRAWS
from benchmarks.data.procedural import load_procedural
from benchmarks.drawing.presets import PRESETS
from benchmarks.drawing.scene import draw
from benchmarks.suites.spec import ProceduralSpec

_ROUNDS = 5
_IMAGES = 2000
_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        jobs = {what: job for name in PRESETS for what, job in jobs_of(name, Path(folder)).items()}
        seconds: dict[str, list[float]] = {what: [] for what in jobs}
        for _ in range(_ROUNDS):
            for what, job in jobs.items():
                begun = time.perf_counter()
                job()
                seconds[what].append(time.perf_counter() - begun)
    rates = {what: _IMAGES / median(times) for what, times in seconds.items()}
    if options.json:
        print(json.dumps(rates))
        return
    for what, rate in rates.items():
        print(f"{what:28s} {rate:8,.0f} images/s")
    for name in PRESETS:
        print(f"{name}: loading is {rates[f'load {name}'] / rates[f'draw {name}']:.1f} times as fast as drawing")


def jobs_of(name: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Drawing and loading _IMAGES images of a preset."""
    spec = ProceduralSpec.model_validate({"dataset": "procedural", "preset": name, "train": _IMAGES})
    split = load_procedural(spec.model_copy(update={"validation": 2, "test": 2}), folder).train
    draws = np.random.default_rng(0).random((_BATCH, AUGMENTATION_DRAWS))
    order = np.random.default_rng(1).permutation(_IMAGES)
    batches = [order[start : start + _BATCH] for start in range(0, _IMAGES, _BATCH)]
    return {
        f"draw {name}": lambda: draw(PRESETS[name], "train", np.arange(_IMAGES)),
        f"load {name}": lambda: [split.load(batch, draws[: len(batch)]) for batch in batches],
    }


if __name__ == "__main__":
    main()
