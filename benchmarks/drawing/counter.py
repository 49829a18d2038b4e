"""A frozen counter-based integer generator: SplitMix64's output function (Steele et al., OOPSLA 2014) of a position.

Word k of image i of split s under a seed is `mix(key + (k + 1) * GAMMA)`, key = `mix(seed + GAMMA * (s * 2**40 + i))`,
all modulo 2**64. `mix` is a bijection and GAMMA odd, so no two images of a seed, in any splits, have the same key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
MAX_IMAGES = 1 << 40
_MASK = (1 << 64) - 1
_32 = np.uint64(32)
_AHEAD = 96
"""Words made at once when an image is begun; the number affects speed only."""

Ints = NDArray[np.int32]
Levels = NDArray[np.int16]


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, word by word.

    >>> [hex(int(word)) for word in mix(np.array([0, GAMMA], dtype=np.uint64))]
    ['0x0', '0xe220a8397b1dcdaf']
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed


def keys(seed: int, split: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Every image's key, (n,). Indices lie in 0 .. 2**40 - 1."""
    positions = np.asarray(indices).astype(np.uint64) + np.uint64(split * MAX_IMAGES)
    return mix(positions * np.uint64(GAMMA) + np.uint64(seed & _MASK))


class Draws:
    """Takes numbers for n images at once, in a fixed order; every image's come from its own key alone."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._keys, self._position = keys, 0
        self._ahead = self._words(0, _AHEAD)

    def _words(self, position: int, count: int) -> NDArray[np.uint64]:
        steps = np.arange(position + 1, position + 1 + count, dtype=np.uint64) * np.uint64(GAMMA)
        return mix(self._keys[:, None] + steps)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of every image, (n, count)."""
        position, self._position = self._position, self._position + count
        if self._position <= _AHEAD:
            return self._ahead[:, position : self._position]
        return self._words(position, count)

    def between(self, low: int, high: int, count: int = 1) -> Ints:
        """Integers in low .. high, both included, (n, count); span below 2**31, its bias below 2**-32 per value."""
        scaled = ((self.words(count) >> _32) * np.uint64(high - low + 1)) >> _32
        return scaled.astype(np.int32) + np.int32(low)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """(n, count) bytes, the lowest of a word first; whole words are taken."""
        words = self.words(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:, :count]
