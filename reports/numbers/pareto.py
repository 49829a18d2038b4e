"""The front of non-dominated points: least bit-operations, most accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

COST_TOLERANCE = 0.01
"""BOPs that differ by no more than this share count as equal: searches leave some of a ceiling's unused."""


@dataclass(frozen=True, order=True)
class Point:
    """One result: BOPs (less is better), test accuracy (more is better), and whose it is."""

    bops: float
    accuracy: float
    name: str = ""

    def dominates(self, other: Point, tolerance: float = 0.0) -> bool:
        """No worse in both and better in one. Equal points do not dominate each other.

        tolerance: BOPs that differ by no more than this share of the smaller are equal.

        >>> Point(4, 0.9).dominates(Point(5, 0.9)), Point(4, 0.9).dominates(Point(4, 0.9))
        (True, False)
        >>> Point(1000, 0.9).dominates(Point(999, 0.8)), Point(1000, 0.9).dominates(Point(999.9, 0.8), 1e-3)
        (False, True)
        """
        slack = 1 + tolerance
        no_worse = self.bops <= other.bops * slack and self.accuracy >= other.accuracy
        return no_worse and (self.bops * slack < other.bops or self.accuracy > other.accuracy)


def front(points: Iterable[Point], tolerance: float = 0.0) -> list[Point]:
    """The points that no point of the front dominates, cheapest first; all of a tie are kept.

    Without tolerance these are the points that no other dominates. With one, domination has no chains (of three points
    0.07 % apart the first and the last are not equal at 0.1 %), so that what is off the front takes nothing off it.
    Raises ValueError for a point that is not finite: NaN compares false and would sit on every front.

    >>> [point.name for point in front([Point(1, 0.5, "a"), Point(1, 0.5, "b"), Point(2, 0.4, "c")])]
    ['a', 'b']
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.accuracy, point.bops)):  # what dominates comes first
        if not (math.isfinite(point.bops) and math.isfinite(point.accuracy)):
            raise ValueError(f"a front needs finite points, got {point}")
        if not any(other.dominates(point, tolerance) for other in kept):
            kept.append(point)
    return sorted(kept, key=lambda point: (point.bops, -point.accuracy, point.name))


def hypervolume(points: Iterable[Point], bops: tuple[float, float], worst: float) -> float:
    """Share of the rectangle (log BOPs between `bops`) x (accuracy `worst` to 1) that the points dominate.

    The reference point is (bops[1], worst): a point dominates what costs more and is right less often. Points dearer
    than bops[1] or below `worst` add nothing. Raises ValueError for an empty rectangle.

    >>> hypervolume([Point(1.0, 0.5)], (1.0, math.e), 0.0), hypervolume([Point(math.e**0.5, 0.5)], (1.0, math.e), 0.0)
    (0.5, 0.25)
    """
    low, high = map(math.log, bops)
    if high <= low or worst >= 1:
        raise ValueError(f"the rectangle from {bops[0]:g} to {bops[1]:g} BOPs and from accuracy {worst:g} is empty")
    kept = [point for point in front(points) if point.bops < bops[1] and point.accuracy > worst]
    starts = [max(low, math.log(point.bops)) for point in kept]
    areas = [
        (end - start) * (point.accuracy - worst)
        for point, start, end in zip(kept, starts, [*starts, high][1:], strict=True)
    ]
    return math.fsum(areas) / ((high - low) * (1 - worst))
