"""What is drawn: counts, sizes and difficulties of the generated datasets. Free of numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace

SPLITS = ("train", "validation", "test")
MAX_CLASSES = 125
"""Five shapes, five textures and five layouts, crossed."""

Range = tuple[int, int]
"""Smallest and largest value, both included; drawn uniformly."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How much images of one class may vary. Lengths in 4096ths of the image's side, colours in grey levels.

    position: largest shift of the figures' middle, either way along x and y.
    scale: half of the extent of the group of figures.
    rotation: largest turn of group, figures and texture, either way, in 256ths of a turn; 128 is any angle.
    period: of the texture.
    contrast: grey levels between neighbours of the three tones (figure, two of the ground).
    colour: largest deviation of each channel of each tone from its grey.
    lighting: largest gain at the image's edge over its middle, in 256ths, from a ramp in any direction.
    clutter: bars behind the figures. occlusion: half sides of the patch before them. noise: its largest amplitude.
    """

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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A generated dataset. seed: of the generator; digests: SHA-256 of each split's bytes, (n, size, size, 3)."""

    seed: int
    classes: int
    image_size: int
    train: int
    validation: int
    test: int
    difficulty: Difficulty
    digests: dict[str, str]

    def resized(self, *, image_size: int, classes: int) -> Preset:
        return replace(self, image_size=image_size, classes=classes)


PRESETS = {
    "procedural-20": Preset(
        seed=20,
        classes=20,
        image_size=32,
        train=12_000,
        validation=2_000,
        test=10_000,
        difficulty=Difficulty(
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
        digests={
            "train": "5513bed0cc1fb0b95db29179a2ebb45b18ed63c20a31a120092b70940424e565",
            "validation": "2f15ed11ebce18119d3d8ff6580efe2fa4cbc25c3ad8851bbf352a9bf821c986",
            "test": "6fd867e86349acd0b137028b9e0faa0c78a7195b8b984c04512438b55b88690c",
        },
    ),
    "procedural-100": Preset(
        seed=100,
        classes=100,
        image_size=64,
        train=60_000,
        validation=5_000,
        test=10_000,
        difficulty=Difficulty(
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
        digests={
            "train": "31c03331cc39037971cf901fd14eec3e2e50b94e0788fffa8bd0655a4d2bb1f4",
            "validation": "6cb688aff94f2a573590490e62578cca8e4303c898b852753f55e23675e40b13",
            "test": "9c356a99e2a88b416453b3cc40212846dd8e0e8bd021a260580938fa9fafffba",
        },
    ),
}
