"""Draw every image of the presets and compare with their digests: `python -m benchmarks.drawing [PRESET ...]`.

Needs numpy and nothing else, so that any version of it can be tried. Exit code 1 if bytes differ.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.drawing.presets import PRESETS, SPLITS, Preset
from benchmarks.drawing.scene import draw

_BLOCK = 1000


def main(names: Sequence[str]) -> int:
    if unknown := sorted(set(names) - set(PRESETS)):
        print(f"error: unknown preset {unknown[0]!r}; known: {', '.join(PRESETS)}", file=sys.stderr)
        return 2
    wrong = 0
    print(f"numpy {np.__version__}")
    for name in names or PRESETS:
        for split in SPLITS:
            found, expected = split_digest(PRESETS[name], split), PRESETS[name].digests.get(split)
            wrong += found != expected
            print(
                f"{name} {split} {found} {'as expected' if found == expected else f'expected {expected}'}", flush=True
            )
    return 1 if wrong else 0


def split_digest(preset: Preset, split: str) -> str:
    """SHA-256 of all bytes of a split, (n, size, size, 3)."""
    sha, count = hashlib.sha256(), getattr(preset, split)
    for start in range(0, count, _BLOCK):
        sha.update(draw(preset, split, np.arange(start, min(start + _BLOCK, count))).tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
