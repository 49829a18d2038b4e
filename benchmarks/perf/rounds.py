"""Measures several functions side by side, round by round, so that a noisy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple


class Ratio(NamedTuple):
    """Median and quartiles, over rounds, of one function's seconds over another's."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:5.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleaved(works: Mapping[str, Callable[[], None]], rounds: int, repeats: int = 3) -> dict[str, list[float]]:
    """Seconds of each of `works` in each round: the mean of `repeats` calls, after one call that is not timed.

    The untimed call refills the caches after another function's data.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()
            begun = time.perf_counter()
            for _ in range(repeats):
                work()
            seconds[name].append((time.perf_counter() - begun) / repeats)
    return seconds


def ratio(seconds: Sequence[float], base: Sequence[float], times: float = 1.0) -> Ratio:
    """seconds / (times * base), round by round; with a single round all three numbers are that round's."""
    ratios = [own / (times * other) for own, other in zip(seconds, base, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Ratio(median(ratios), low, high)
