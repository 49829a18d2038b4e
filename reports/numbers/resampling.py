"""What may be said over many cells at once: sign flips, Holm's correction, and intervals over whole blocks.

A block is one network and seed: its trials share float weights and data order under every ceiling, so they are flipped
and left out together and count as one observation, however many ceilings there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from reports.numbers.statistics import CONFIDENCE, NO_SPREAD, Interval

FEWEST_BLOCKS = 6
"""Below this no p-value is given: with five, the smallest that two-sided flips can give is 2 / 2^5 = 0.0625."""

_EXACT_BLOCKS = 16
_FLIPS = 100_000
_ROUNDING = 1e-9

Key = Hashable
Scores = Mapping[Key, NDArray[np.float64]]
"""Stratum (a network) -> an array (blocks, cells): one value per seed and ceiling."""


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of a symmetric distribution about 0: the share of sign vectors with |Σ s d| ≥ |Σ d|.

    differences: one per block. Exact up to 16 blocks; beyond, 100,000 random vectors and the one seen, so that p is
    never 0 (Phipson and Smyth 2010). None below FEWEST_BLOCKS. Raises ValueError for values that are not finite.

    >>> sign_flip_p([1.0] * 6), sign_flip_p([1.0] * 5)
    (0.03125, None)
    """
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"sign flips need finite differences, got {list(differences)}")
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < FEWEST_BLOCKS:
        return None
    seen = abs(float(values.sum())) - _ROUNDING * float(np.abs(values).sum())
    if len(values) <= _EXACT_BLOCKS:
        codes = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float(np.mean(np.abs((1 - 2 * codes) @ values) >= seen))
    signs = np.random.default_rng(0).integers(0, 2, (_FLIPS, len(values)), dtype=np.int8) * 2 - 1
    return float((1 + np.count_nonzero(np.abs(signs @ values) >= seen)) / (1 + _FLIPS))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: of the i-th smallest of m, the largest (m - j + 1) p_(j) over j ≤ i, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, (len(ps) - rank) * ps[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Mean of what is left without the lowest and the highest quarter, ⌊n / 4⌋ values each (Agarwal et al. 2021).

    Fewer than four values lose none.

    >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    ordered = np.sort(values, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def wins(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(blocks, blocks): over cells, the mean of 1 where X > Y and 1/2 where X = Y; arguments (blocks, cells)."""
    pairs = ours[:, None, :] - theirs[None, :, :]
    shares: NDArray[np.float64] = ((pairs > 0) + 0.5 * (pairs == 0)).mean(2)
    return shares


def improvement(ours: Scores, theirs: Scores) -> float:
    """P(X > Y) + P(X = Y) / 2 of one run each: the mean over all cells of all strata (Agarwal et al. 2021).

    >>> improvement({"net": np.array([[0.8], [0.6]])}, {"net": np.array([[0.7], [0.6]])})
    0.625
    """
    shares = [float(wins(ours[stratum], theirs[stratum]).mean()) for stratum in ours]
    return float(np.average(shares, weights=[values.shape[1] for values in ours.values()]))


def improvement_interval(ours: Scores, theirs: Scores, confidence: float = CONFIDENCE) -> Interval | None:
    """Interval of `improvement`, by leaving out one block of either side at a time, on the scale of log p / (1 - p).

    On the scale of p it would cover too rarely far from 1/2: in 90 of 100 cases at p = 0.86 with five seeds. None for
    single blocks, and where leaving one out changes nothing: of rows that are wholly apart it is not known how far.
    """
    sides: dict[Key, NDArray[np.float64]] = {("ours", key): values for key, values in ours.items()}
    sides |= {("theirs", key): values for key, values in theirs.items()}

    def share(left: Scores) -> float:
        return improvement({key: left["ours", key] for key in ours}, {key: left["theirs", key] for key in theirs})

    found = _jackknife(sides, share, confidence)
    if found is None or found.width < NO_SPREAD:
        return None
    whole = share(sides)  # above 0 and below 1, else leaving one out had changed nothing
    half = found.width / 2 / (whole * (1 - whole))  # the derivative of log p / (1 - p)
    low, high = expit([logit(whole) - half, logit(whole) + half])
    return Interval(float(low), float(high))


def _jackknife(scores: Scores, statistic: Callable[[Scores], float], confidence: float) -> Interval | None:
    """θ ± t · √Σ_h (n_h - 1) / n_h Σ_i (θ_(hi) - θ_(h·))², t with Σ (n_h - 1) degrees of freedom (Shao and Tu 1995).

    θ_(hi) is θ without block i of stratum h, θ_(h·) their mean. None where a stratum has a single block.
    """
    counts = [len(values) for values in scores.values()]
    if min(counts, default=0) < 2:
        return None
    variance = 0.0
    for stratum, values in scores.items():
        left_out = [statistic({**scores, stratum: np.delete(values, index, 0)}) for index in range(len(values))]
        variance += (len(values) - 1) * float(np.var(left_out))
    freedom = sum(counts) - len(counts)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)
    whole = statistic(scores)
    return Interval(whole - half, whole + half)


def profile(values: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Performance profile: the share of values above each threshold (Dolan and Moré 2002, as Agarwal et al. 2021 do).

    >>> profile(np.array([-2.0, -1.0]), np.array([-3.0, -1.5, 0.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    shares: NDArray[np.float64] = (values.reshape(-1, 1) > thresholds).mean(0)
    return shares
