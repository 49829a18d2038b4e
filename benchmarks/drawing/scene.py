"""How an image comes about: ground, clutter, figures, occlusion, lighting, noise, in this order.

A class is a shape, a texture of the ground and a layout of the figures. The three tones of figure and ground are
dealt to them at random, so that every pixel's mean colour is the same for every class.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.drawing.counter import Draws, Ints, Levels, keys
from benchmarks.drawing.plane import PERIOD, SHAPES, SIDE, TEXTURES, TURN, bar, centres, coverage, rotate
from benchmarks.drawing.presets import SPLITS, Difficulty, Preset

T = TypeVar("T", np.int16, np.int32)

_CHUNK_PIXELS = 1 << 16
"""Pixels drawn at once: few enough that planes of 16-bit integers stay in a core's cache."""

_TONE_ORDERS = np.array([(0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0)], dtype=np.int32)


class Layout(NamedTuple):
    """Where the figures stand and their radius, in 256ths of the group's scale."""

    name: str
    places: tuple[tuple[int, int], ...]
    radius: int


LAYOUTS = (
    Layout("one", ((0, 0),), 160),
    Layout("pair", ((-150, 0), (150, 0)), 120),
    Layout("three", ((0, -174), (-151, 87), (151, 87)), 104),
    Layout("four", ((-141, -141), (141, -141), (-141, 141), (141, 141)), 96),
    Layout("row", ((-220, 0), (0, 0), (220, 0)), 88),
)


class Class(NamedTuple):
    """Indices into SHAPES, TEXTURES and LAYOUTS."""

    shape: int
    texture: int
    layout: int

    @property
    def name(self) -> str:
        shape, texture = SHAPES[self.shape].__name__, TEXTURES[self.texture].__name__
        return f"{LAYOUTS[self.layout].name}, {shape}, {texture}"


@cache
def class_table() -> tuple[Class, ...]:
    """All classes, those of few different shapes, textures and layouts first: 8 of two each, 27 of three, and so on."""
    crossed = (Class(*indices) for indices in product(range(len(SHAPES)), range(len(TEXTURES)), range(len(LAYOUTS))))
    return tuple(sorted(crossed, key=lambda indices: (max(indices), sum(indices) % len(SHAPES), indices)))


def label_of(preset: Preset, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes take turns, so that any run of images is balanced."""
    labels: NDArray[np.int64] = np.asarray(indices) % preset.classes
    return labels


def draw(preset: Preset, split: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images (n, size, size, 3), RGB; each depends on (preset, split, its index) alone."""
    indices = np.asarray(indices, dtype=np.int64)
    labels = label_of(preset, indices)
    images = np.empty((len(indices), preset.image_size, preset.image_size, 3), dtype=np.uint8)
    for label in np.unique(labels):
        (places,) = np.nonzero(labels == label)
        for chunk in _chunks(places, max(1, _CHUNK_PIXELS // preset.image_size**2)):
            draws = Draws(keys(preset.seed, SPLITS.index(split), indices[chunk]))
            images[chunk] = _draw_class(preset.difficulty, class_table()[label], draws, preset.image_size)
    return images


def _chunks(places: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _draw_class(difficulty: Difficulty, kind: Class, draws: Draws, size: int) -> NDArray[np.uint8]:
    """Images of one class, (n, size, size, 3)."""
    x, y = centres(size)
    tones = _tones(difficulty, draws)
    group = _Group(difficulty, draws)
    image = _paint(tones[1], tones[2], _ground(difficulty, kind, draws, x, y, size))
    for _ in range(difficulty.clutter):
        _cover(image, _strip(draws, x, y, size), _colour(draws))
    _cover(image, _figures(group, kind, x, y, size), tones[0])
    _cover(image, _patch(difficulty, draws, x, y, size), _colour(draws))
    _light(difficulty, draws, image, x, y)
    _add_noise(difficulty, draws, image)
    return np.moveaxis(np.clip(image, 0, 255).astype(np.uint8), 1, -1)


def _tones(difficulty: Difficulty, draws: Draws) -> list[Levels]:
    """Three colours, each (n, 3, 1, 1): greys a contrast apart, dealt in random order, each channel a little off."""
    middle, contrast = draws.between(96, 160), draws.between(*difficulty.contrast)
    order = _TONE_ORDERS[draws.between(0, len(_TONE_ORDERS) - 1)[:, 0]]
    off = draws.between(-difficulty.colour, difficulty.colour, 9).reshape(-1, 3, 3)
    tones = ((middle + contrast * (order - 1))[:, :, None] + off).astype(np.int16)
    return [tones[:, k, :, None, None] for k in range(3)]


def _colour(draws: Draws) -> Levels:
    """Any colour that is neither very dark nor very bright, (n, 3, 1, 1)."""
    return draws.between(48, 208, 3)[:, :, None, None].astype(np.int16)


class _Group:
    """Where the figures' middle is, how large they are and how they are turned; each (n, 1, 1)."""

    def __init__(self, difficulty: Difficulty, draws: Draws) -> None:
        self.x, self.y = (_plane(draws.between(-difficulty.position, difficulty.position)) for _ in range(2))
        self.scale = _plane(draws.between(*difficulty.scale))
        self.angle = _plane(draws.between(-difficulty.rotation, difficulty.rotation))
        self.figure_angle = _plane(draws.between(-difficulty.rotation, difficulty.rotation))


def _plane(values: NDArray[T]) -> NDArray[T]:
    return values[:, :, None]


def _ground(difficulty: Difficulty, kind: Class, draws: Draws, x: Ints, y: Ints, size: int) -> Levels:
    """Coverage of the ground's second tone, (n, size, size)."""
    period = _plane(draws.between(*difficulty.period))
    angle = _plane(draws.between(-difficulty.rotation, difficulty.rotation))
    frequency = (PERIOD << 10) // period
    s, t = rotate(x * frequency >> 10, y * frequency >> 10, angle)
    offsets = draws.between(0, PERIOD - 1, 2).astype(np.int16)
    phases = TEXTURES[kind.texture](s + _plane(offsets[:, :1]), t + _plane(offsets[:, 1:]))
    return coverage((phases * period >> 10).astype(np.int16), size)


def _figures(group: _Group, kind: Class, x: Ints, y: Ints, size: int) -> Levels:
    """Coverage of the union of all figures."""
    layout = LAYOUTS[kind.layout]
    radius = (group.scale * layout.radius >> 8).astype(np.int16)
    nearest: Levels | None = None
    for right, down in layout.places:
        place = rotate(group.scale * right >> 8, group.scale * down >> 8, -group.angle)
        u, v = rotate(x - group.x - place[0], y - group.y - place[1], group.figure_angle)
        distance = SHAPES[kind.shape](u, v, radius)
        nearest = distance if nearest is None else np.maximum(nearest, distance)
    assert nearest is not None
    return coverage(nearest, size)


def _strip(draws: Draws, x: Ints, y: Ints, size: int) -> Levels:
    """Coverage of a thin bar anywhere, in any direction."""
    return _bar(draws, x, y, size, (SIDE // 10, SIDE // 4), (SIDE // 64, SIDE // 32))


def _patch(difficulty: Difficulty, draws: Draws, x: Ints, y: Ints, size: int) -> Levels:
    """Coverage of the rectangle that hides a part of the image."""
    return _bar(draws, x, y, size, difficulty.occlusion, difficulty.occlusion)


def _bar(draws: Draws, x: Ints, y: Ints, size: int, length: tuple[int, int], width: tuple[int, int]) -> Levels:
    right, down = (_plane(draws.between(-SIDE // 2, SIDE // 2)) for _ in range(2))
    u, v = rotate(x - right, y - down, _plane(draws.between(0, TURN - 1)))
    half_sides = (_plane(draws.between(*sides)).astype(np.int16) for sides in (length, width))
    return coverage(bar(u, v, *half_sides), size)


def _paint(first: Levels, second: Levels, cover: Levels) -> Levels:
    """(n, 3, size, size): `first` where `cover` is 0, `second` where it is FULL."""
    return first + ((second - first) * cover[:, None] >> 7)


def _cover(image: Levels, cover: Levels, colour: Levels) -> None:
    difference = colour - image
    difference *= cover[:, None]
    difference >>= 7
    image += difference


def _light(difficulty: Difficulty, draws: Draws, image: Levels, x: Ints, y: Ints) -> None:
    """A linear ramp over the image, brighter on one side and darker on the other."""
    strength = _plane(draws.between(0, difficulty.lighting))
    towards, _ = rotate(x, y, _plane(draws.between(0, TURN - 1)))
    lit = image.view(np.uint16)
    lit *= (128 + ((towards * strength) >> 12)).astype(np.uint16)[:, None]
    lit >>= 7


def _add_noise(difficulty: Difficulty, draws: Draws, image: Levels) -> None:
    """Uniform, of the image's own amplitude, every pixel and channel by itself."""
    amplitude = draws.between(*difficulty.noise)[:, :, None, None].astype(np.int16)
    grain = draws.bytes(image[0].size).reshape(image.shape).astype(np.int16)
    grain -= 128
    grain *= amplitude
    grain >>= 7
    image += grain
