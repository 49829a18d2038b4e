"""The generated images, drawn from docs/procedural.md alone: pure Python, whole numbers, one pixel at a time.

Nothing is shared with benchmarks/drawing. The steps and the names are those of the document; speed is no aim.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

Point = tuple[int, int]
Colour = tuple[int, ...]
Range = tuple[int, int]


class Preset(NamedTuple):
    """What the document calls a preset: its size, its seed and its difficulty."""

    seed: int
    classes: int
    size: int
    position: int
    scale: Range
    rotation: int
    period: Range
    contrast: Range
    colour: int
    lighting: int
    clutter: int
    occlusion: Range
    noise: Range


PRESETS = {
    "procedural-20": Preset(
        seed=20,
        classes=20,
        size=32,
        position=350,
        scale=(1350, 1800),
        rotation=128,
        period=(800, 1200),
        contrast=(36, 64),
        colour=20,
        lighting=56,
        clutter=3,
        occlusion=(200, 450),
        noise=(4, 26),
    ),
    "procedural-100": Preset(
        seed=100,
        classes=100,
        size=64,
        position=450,
        scale=(1150, 1650),
        rotation=128,
        period=(400, 700),
        contrast=(30, 60),
        colour=24,
        lighting=64,
        clutter=4,
        occlusion=(250, 550),
        noise=(8, 40),
    ),
}
SPLITS = ("train", "validation", "test")

# Words

WORD = (1 << 64) - 1
G = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """The output function of SplitMix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


class Words:
    """The words of one image, taken in turn."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        self.key = mix((seed + G * (SPLITS.index(split) * 2**40 + index)) & WORD)
        self.taken = 0

    def word(self) -> int:
        """The next word."""
        self.taken += 1
        return mix((self.key + self.taken * G) & WORD)

    def within(self, low: int, high: int) -> int:
        """The document's [low, high]."""
        return low + ((self.word() >> 32) * (high - low + 1) >> 32)


# Turning

PI, ONE = 314159265358979323846264338328, 10**29
"""Pi and one in fixed point."""


def sine_entry(a: int) -> int:
    """round(16384 sin(2 pi a / 256)) for 0 <= a < 256, by the power series in fixed point."""
    x = 2 * PI * (a - 256 if a > 128 else a) // 256
    term = total = x
    for n in range(2, 60, 2):
        term = -term * x // ONE * x // (ONE * n * (n + 1))
        total += term
    return (2 * 16384 * total + ONE) // (2 * ONE)


SINE = tuple(sine_entry(a) for a in range(256))


def sin(a: int) -> int:
    """The sine of `a` 256ths of a turn, in 16384ths."""
    return SINE[a % 256]


def cos(a: int) -> int:
    """The cosine of `a` 256ths of a turn, in 16384ths."""
    return sin(a + 64)


def turn(x: int, y: int, a: int) -> Point:
    """The point (x, y) in axes turned by `a`."""
    c, s = cos(a), sin(a)
    return (x * c >> 14) + (y * s >> 14), (y * c >> 14) - (x * s >> 14)


# Coverage and distances


def clip(a: int, low: int, high: int) -> int:
    """`a` cut to low ... high."""
    return low if a < low else high if a > high else a


def cover(d: int, size: int) -> int:
    """Coverage of a pixel, 0 to 128, from the distance `d`."""
    p = 4096 // size
    return clip((clip(d, -p, p) * size >> 5) + 64, 0, 128)


def disc(u: int, v: int, r: int) -> int:
    """Distance of a disc of radius `r`."""
    return clip(((r * r - u * u - v * v) >> 6) * (16384 // (2 * r)) >> 8, -8191, 8191)


def bar(u: int, v: int, length: int, width: int) -> int:
    """Distance of a bar of these half sides."""
    return min(length - abs(u), width - abs(v))


def figure(shape: int, u: int, v: int, r: int) -> int:
    """Distance of a figure of radius `r`."""
    a, b = abs(u), abs(v)
    if shape == 0:  # cross
        return min(r - max(a, b), (r >> 2) + (r >> 4) - min(a, b))
    if shape == 1:  # ring
        return (r >> 2) - abs(disc(u, v, (r >> 1) + (r >> 2)))
    if shape == 2:  # triangle
        return (r >> 1) + min(-v, (v >> 1) - (a - (a >> 3) - (a >> 7)))
    if shape == 3:  # square
        return (r >> 1) + (r >> 2) - max(a, b)
    return disc(u, v, r)


def wave(p: int) -> int:
    """512 at whole periods, 0 half-way between."""
    return abs(p % 1024 - 512)


def ground(texture: int, s: int, t: int) -> int:
    """Distance of a texture at phases (s, t), 1024 to a period."""
    if texture == 0:  # stripes
        return wave(s) - 256
    if texture == 1:  # plain
        return -1024
    if texture == 2:  # checks
        big_s, big_t = wave(s) - 256, wave(t) - 256
        return max(min(big_s, -big_t), min(-big_s, big_t))
    if texture == 3:  # dots
        return (409 * 409 - wave(s) ** 2 - wave(t) ** 2) * 5 >> 12
    return wave(s + wave(t)) - 256  # zigzag


LAYOUTS: tuple[tuple[tuple[Point, ...], int], ...] = (
    (((0, 0),), 160),
    (((-150, 0), (150, 0)), 120),
    (((0, -174), (-151, 87), (151, 87)), 104),
    (((-141, -141), (141, -141), (-141, 141), (141, 141)), 96),
    (((-220, 0), (0, 0), (220, 0)), 88),
)
"""The places of the figures and their radius, in 256ths of the group's scale."""
ORDERS = ((0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0))
CLASSES = sorted(product(range(5), repeat=3), key=lambda triple: (max(triple), sum(triple) % 5, triple))


# An image


class Canvas:
    """The levels of one image, and the coordinates of its pixels' centres."""

    def __init__(self, size: int, level: Colour) -> None:
        self.size = size
        centres = [((2 * k + 1) * 2048) // size - 2048 for k in range(size)]
        self.centres = [(x, y) for y in centres for x in centres]
        self.pixels = [list(level) for _ in self.centres]

    def blend(self, pixel: int, colour: Colour, d: int) -> None:
        """Blend one pixel towards `colour` under the coverage at distance `d`."""
        if m := cover(d, self.size):
            self.pixels[pixel] = [v + ((c - v) * m >> 7) for v, c in zip(self.pixels[pixel], colour, strict=True)]

    def draw_bar(self, words: Words, lengths: Range, widths: Range) -> None:
        """Draw a bar of random place, angle, half sides and colour."""
        right, down = words.within(-2048, 2048), words.within(-2048, 2048)
        angle = words.within(0, 255)
        length, width = words.within(*lengths), words.within(*widths)
        colour = tuple(words.within(48, 208) for _ in range(3))
        for pixel, (x, y) in enumerate(self.centres):
            u, v = turn(x - right, y - down, angle)
            self.blend(pixel, colour, bar(u, v, length, width))


def draw_tones(words: Words, preset: Preset) -> list[Colour]:
    """Step 1: the tone of the figures and the two of the ground."""
    middle = words.within(96, 160)
    contrast = words.within(*preset.contrast)
    order = ORDERS[words.within(0, 3)]
    tones = []
    for rank in order:
        deviations = [words.within(-preset.colour, preset.colour) for _ in range(3)]
        tones.append(tuple(middle + contrast * (rank - 1) + deviation for deviation in deviations))
    return tones


def reference_image(preset: str, split: str, index: int) -> bytes:
    """Image `index` of a split of the preset of this name: rows of RGB pixels, top row first."""
    p = PRESETS[preset]
    words = Words(p.seed, split, index)
    shape, texture, layout = CLASSES[index % p.classes]

    # 1 Tones, 2 Group
    first, second, third = draw_tones(words, p)
    group_x, group_y = words.within(-p.position, p.position), words.within(-p.position, p.position)
    scale = words.within(*p.scale)
    group_angle, figure_angle = words.within(-p.rotation, p.rotation), words.within(-p.rotation, p.rotation)

    # 3 Ground
    period = words.within(*p.period)
    angle = words.within(-p.rotation, p.rotation)
    offset_s, offset_t = words.within(0, 1023), words.within(0, 1023)
    f = 2**20 // period
    canvas = Canvas(p.size, second)
    for pixel, (x, y) in enumerate(canvas.centres):
        s, t = turn(x * f >> 10, y * f >> 10, angle)
        canvas.blend(pixel, third, ground(texture, s + offset_s, t + offset_t) * period >> 10)

    # 4 Clutter
    for _ in range(p.clutter):
        canvas.draw_bar(words, (409, 1024), (64, 128))

    # 5 Figures
    places, radius = LAYOUTS[layout]
    r = scale * radius >> 8
    turned = [turn(scale * right >> 8, scale * down >> 8, -group_angle) for right, down in places]
    for pixel, (x, y) in enumerate(canvas.centres):
        points = [turn(x - group_x - right, y - group_y - down, figure_angle) for right, down in turned]
        canvas.blend(pixel, first, max(figure(shape, u, v, r) for u, v in points))

    # 6 Occlusion
    canvas.draw_bar(words, p.occlusion, p.occlusion)

    # 7 Lighting
    strength, angle = words.within(0, p.lighting), words.within(0, 255)
    for pixel, (x, y) in enumerate(canvas.centres):
        e, _ = turn(x, y, angle)
        canvas.pixels[pixel] = [v * (128 + (e * strength >> 12)) >> 7 for v in canvas.pixels[pixel]]

    # 8 Noise
    amplitude = words.within(*p.noise)
    plane = p.size * p.size
    noise = b"".join(words.word().to_bytes(8, "little") for _ in range(3 * plane // 8))
    return bytes(
        clip(canvas.pixels[pixel][channel] + ((noise[channel * plane + pixel] - 128) * amplitude >> 7), 0, 255)
        for pixel in range(plane)
        for channel in range(3)
    )
