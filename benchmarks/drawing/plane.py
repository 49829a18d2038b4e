"""Shapes and textures as signed distances on the integer plane, and the coverage of pixels that follows from them.

The image's side is SIDE units, its middle the origin, x to the right and y down. Distances are positive inside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.drawing.counter import Ints, Levels

SIDE = 4096
TURN = 256
FULL = 128
"""Coverage of a pixel that lies wholly inside; a difference of grey levels times it fits 16 bits."""

PERIOD = 1024
"""Phase units of one period of a texture."""

# round(16384 * sin(2 pi k / 256)), k = 0 .. 64
# fmt: off
_QUARTER = (
    0, 402, 804, 1205, 1606, 2006, 2404, 2801, 3196, 3590, 3981, 4370, 4756, 5139, 5520, 5897, 6270, 6639, 7005, 7366,
    7723, 8076, 8423, 8765, 9102, 9434, 9760, 10080, 10394, 10702, 11003, 11297, 11585, 11866, 12140, 12406, 12665,
    12916, 13160, 13395, 13623, 13842, 14053, 14256, 14449, 14635, 14811, 14978, 15137, 15286, 15426, 15557, 15679,
    15791, 15893, 15986, 16069, 16143, 16207, 16261, 16305, 16340, 16364, 16379, 16384,
)
# fmt: on
_UNIT_BITS = 14
_HALF_TURN = _QUARTER + _QUARTER[-2:0:-1]
_SINE = np.array(_HALF_TURN + tuple(-value for value in _HALF_TURN), dtype=np.int32)


def sine(angle: Ints) -> Ints:
    """16384 times the sine of angles in 256ths of a turn."""
    values: Ints = _SINE[angle & (TURN - 1)]
    return values


def cosine(angle: Ints) -> Ints:
    return sine(angle + np.int32(TURN // 4))


def rotate(x: Ints, y: Ints, angle: Ints) -> tuple[Levels, Levels]:
    """Points as an observer turned by `angle` sees them; each product is floored to whole units before the sum.

    Points lie within 16383 units of the origin along either axis, so that sums fit 16 bits.
    """
    c, s = cosine(angle), sine(angle)
    return _floored(x, c) + _floored(y, s), _floored(y, c) - _floored(x, s)


def _floored(along: Ints, factor: Ints) -> Levels:
    return (along * factor >> _UNIT_BITS).astype(np.int16)


def centres(image_size: int) -> tuple[Ints, Ints]:
    """Pixels' x, (1, 1, size), and y, (1, size, 1)."""
    along = ((2 * np.arange(image_size, dtype=np.int32) + 1) * (SIDE // 2)) // image_size - SIDE // 2
    return along[None, None, :], along[None, :, None]


def coverage(distance: Levels, image_size: int) -> Levels:
    """0 .. FULL: a ramp one pixel wide around distance 0."""
    pitch = SIDE // image_size
    near = np.clip(distance, np.int16(-pitch), np.int16(pitch))
    cover: Levels = np.clip((near * np.int16(image_size) >> 5) + np.int16(FULL // 2), 0, FULL)
    return cover


def cross(u: Levels, v: Levels, r: Levels) -> Levels:
    u, v = np.abs(u), np.abs(v)
    inside: Levels = np.minimum(r - np.maximum(u, v), (r >> 2) + (r >> 4) - np.minimum(u, v))
    return inside


def ring(u: Levels, v: Levels, r: Levels) -> Levels:
    return (r >> 2) - np.abs(disc(u, v, (r >> 1) + (r >> 2)))


def triangle(u: Levels, v: Levels, r: Levels) -> Levels:
    """Equilateral, inscribed in the circle of radius r; 111 / 128 stands for the sine of 60 degrees."""
    u = np.abs(u)
    inside: Levels = (r >> 1) + np.minimum(-v, (v >> 1) - (u - (u >> 3) - (u >> 7)))
    return inside


def square(u: Levels, v: Levels, r: Levels) -> Levels:
    inside: Levels = (r >> 1) + (r >> 2) - np.maximum(np.abs(u), np.abs(v))
    return inside


def disc(u: Levels, v: Levels, r: Levels) -> Levels:
    """(r^2 - u^2 - v^2) / 2r, which is the distance near the edge, cut at +-8191; r from 16 to 2048."""
    x, y, radius = u.astype(np.int32), v.astype(np.int32), r.astype(np.int32)
    distance = ((radius * radius - x * x - y * y) >> 6) * ((1 << 14) // (2 * radius)) >> 8
    inside: Levels = np.clip(distance, -8191, 8191).astype(np.int16)
    return inside


def bar(u: Levels, v: Levels, length: Levels, width: Levels) -> Levels:
    """A rectangle of half sides `length` and `width`."""
    inside: Levels = np.minimum(length - np.abs(u), width - np.abs(v))
    return inside


def _wave(phase: Levels) -> Levels:
    """A triangle wave of one period, 0 .. 512, zero in the middle of the period."""
    wave: Levels = np.abs((phase & (PERIOD - 1)) - PERIOD // 2)
    return wave


def stripes(s: Levels, t: Levels) -> Levels:
    return _wave(s) - PERIOD // 4


def checks(s: Levels, t: Levels) -> Levels:
    a, b = stripes(s, t), stripes(t, s)
    inside: Levels = np.maximum(np.minimum(a, -b), np.minimum(-a, b))
    return inside


def plain(s: Levels, t: Levels) -> Levels:
    return np.full(np.broadcast_shapes(s.shape, t.shape), -PERIOD, dtype=np.int16)


def dots(s: Levels, t: Levels) -> Levels:
    """Discs of radius 409 phase units, which cover half of the plane."""
    p, q = _wave(s).astype(np.int32), _wave(t).astype(np.int32)
    return ((409 * 409 - p * p - q * q) * 5 >> 12).astype(np.int16)


def zigzag(s: Levels, t: Levels) -> Levels:
    return _wave(s + _wave(t)) - PERIOD // 4


SHAPES: tuple[Callable[[Levels, Levels, Levels], Levels], ...] = (cross, ring, triangle, square, disc)
"""Distance in units from (u, v) to the edge of a figure of radius r."""

TEXTURES: tuple[Callable[[Levels, Levels], Levels], ...] = (stripes, plain, checks, dots, zigzag)
"""Distance in phase units to the edge of the pattern's lit half, at a phase."""
