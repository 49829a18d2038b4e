"""Means, intervals and sampling errors: what a number in the report may claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95

TWO_SAMPLES = 1.96 * math.sqrt(2)
"""Standard errors of one sample within which two independent ones differ 95 times in 100."""

NO_SPREAD = 1e-9
"""A narrower interval is rounding: accuracies differ by at least one over the number of test images."""


@dataclass(frozen=True)
class Interval:
    """A closed interval."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def of_shares(self) -> Interval:
        """The part of it between 0 and 1, where accuracies are.

        >>> Interval(0.9, 1.1).of_shares()
        Interval(low=0.9, high=1.0)
        """
        return Interval(*(min(1.0, max(0.0, end)) for end in (self.low, self.high)))


@dataclass(frozen=True)
class Mean:
    """A mean of `n` values; `interval` is its t-interval, None below two values."""

    value: float
    n: int
    interval: Interval | None

    @property
    def degenerate(self) -> bool:
        """Whether all values were equal, so that the interval says nothing about spread."""
        return self.interval is not None and self.interval.width < NO_SPREAD

    def of_shares(self) -> Mean:
        """The same with its interval's part between 0 and 1."""
        return Mean(self.value, self.n, self.interval and self.interval.of_shares())


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """Mean and its t-interval, m ± t(n - 1, (1 + confidence) / 2) · s / √n with s² = Σ(x - m)² / (n - 1).

    Its coverage is `confidence` for independent normal values. Below two values there is no interval. Raises
    ValueError for no values at all, or for values that are not finite.

    >>> mean_interval([0.5]).interval is None
    True
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"a mean needs finite values, got {list(values)}")
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Mean(mean, n, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return Mean(mean, n, Interval(mean - half, mean + half))


def prediction_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Where one further value lies, m ± t(n - 1, (1 + confidence) / 2) · s · √(1 + 1/n); None below two values.

    It holds a new value of the same normal distribution with probability `confidence`. Raises as `mean_interval`.

    >>> prediction_interval([0.5]) is None
    True
    """
    mean = mean_interval(values, confidence)
    if mean.interval is None:
        return None
    half = mean.interval.width / 2 * math.sqrt(mean.n + 1)  # s / √n times √(n + 1) is s · √(1 + 1/n)
    return Interval(mean.value - half, mean.value + half)


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE
) -> Mean | None:
    """Mean of ours - theirs over the seeds that both have, with the t-interval of the differences; None if none.

    >>> paired_difference({0: 0.75, 1: 0.5}, {1: 0.25, 2: 0.0})
    Mean(value=0.25, n=1, interval=None)
    """
    seeds = sorted(ours.keys() & theirs.keys())
    return mean_interval([ours[seed] - theirs[seed] for seed in seeds], confidence) if seeds else None


def wilson_interval(accuracy: float, images: int, z: float = 1.0) -> Interval:
    """Wilson's score interval of a proportion: (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n).

    At z = 1 it is one standard error to either side (68 %). Unlike Wald's p ± z √(p(1 - p)/n) it has width at 0
    and 1 and stays between them. Raises ValueError outside 0..1, or for less than one image.

    >>> round(wilson_interval(1.0, 99).low, 6)
    0.99
    """
    if not 0 <= accuracy <= 1 or images < 1:
        raise ValueError(f"expected an accuracy in 0..1 on at least one image, got {accuracy} on {images}")
    shrink = 1 + z * z / images
    centre = (accuracy + z * z / (2 * images)) / shrink
    half = z / shrink * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images * images))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def sampling_error(accuracy: float, images: int) -> float:
    """One standard error from drawing the test images: half the width of Wilson's interval at z = 1.

    Tends to Wald's √(p(1 - p)/n), but is not 0 for a perfect score.

    >>> round(sampling_error(0.5, 10_000), 6)
    0.005
    """
    return wilson_interval(accuracy, images).width / 2
