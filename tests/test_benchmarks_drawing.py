"""Generated images: what each depends on, that drawing knows no floats, and that nothing simple gives a class away."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.drawing import plane, scene
from benchmarks.drawing.counter import Draws, keys
from benchmarks.drawing.plane import FULL, SHAPES, SIDE, TEXTURES, centres, coverage, rotate, sine
from benchmarks.drawing.presets import MAX_CLASSES, PRESETS, SPLITS, Preset
from benchmarks.drawing.scene import class_table, draw, label_of
from tests.harness import ROOT
from tests.procedural_reference import reference_image

SMALL = PRESETS["procedural-20"]
GOLDEN = Path(__file__).parent / "golden" / "procedural.json"
"""SHA-256 of a few images. Remake: `python -c "import tests.test_benchmarks_drawing as t; t.write_golden()"`."""

GOLDEN_INDICES = (*range(40), 999, 12_345, 10**9)
"""Two rounds of the small preset's classes, and some far away."""

# Any index that the generator has; counts that meet several classes and need not fill a chunk.
indices = st.integers(0, 2**40 - 1)
splits, presets = st.sampled_from(SPLITS), st.sampled_from(sorted(PRESETS))


def digest(preset: Preset, split: str, which: tuple[int, ...] = GOLDEN_INDICES) -> str:
    return hashlib.sha256(draw(preset, split, np.array(which)).tobytes()).hexdigest()


def write_golden() -> None:
    found = {name: {split: digest(preset, split) for split in SPLITS} for name, preset in PRESETS.items()}
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@given(presets, splits, st.lists(indices, min_size=1, max_size=8))
def test_an_image_alone_is_the_image_in_any_company(name, split, which):
    together = draw(PRESETS[name], split, np.array(which))
    for image, index in zip(together, which, strict=True):
        assert np.array_equal(draw(PRESETS[name], split, np.array([index]))[0], image)


def test_a_run_longer_than_a_chunk_is_the_same_in_pieces():
    per_chunk = scene._CHUNK_PIXELS // SMALL.image_size**2
    whole = draw(SMALL, "train", np.arange(0, 20 * (per_chunk + 3), 20))  # all of one class
    assert np.array_equal(
        whole[per_chunk - 1 :], draw(SMALL, "train", np.arange(20 * (per_chunk - 1), 20 * (per_chunk + 3), 20))
    )


@given(presets, splits, splits, indices, indices)
def test_different_indices_or_splits_are_different_images(name, split, other_split, index, other):
    if (split, index) == (other_split, other):
        return
    first, second = (draw(PRESETS[name], s, np.array([i])) for s, i in ((split, index), (other_split, other)))
    assert not np.array_equal(first, second)


@given(st.integers(0, 2**63 - 1), st.lists(st.tuples(st.integers(0, 2), indices), min_size=2, max_size=50, unique=True))
def test_splits_and_indices_share_no_key(seed, places):
    found = {int(keys(seed, split, np.array([index]))[0]) for split, index in places}
    assert len(found) == len(places)


def test_seeds_differ():
    assert digest(SMALL, "train") != digest(replace(SMALL, seed=SMALL.seed + 1), "train")


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("split", SPLITS)
def test_images_are_those_of_the_golden_file(name, split):
    assert digest(PRESETS[name], split) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name][split]


def test_the_generator_is_splitmix64():
    # The reference implementation's first outputs from state 0 (Vigna, prng.di.unimi.it/splitmix64.c).
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    draws = Draws(np.zeros(1, np.uint64))
    assert [int(word) for word in draws.words(2)[0]] + [int(word) for word in draws.words(2)[0]] == expected


def test_words_beyond_those_made_at_once_go_on_in_order():
    key = keys(7, 0, np.array([3, 4]))
    whole = Draws(key).words(300)
    pieces = Draws(key)
    assert np.array_equal(np.concatenate([pieces.words(n) for n in (90, 6, 1, 203)], axis=1), whole)
    low_first = [*int(whole[0, 0]).to_bytes(8, "little"), int(whole[0, 1]) & 255]
    assert Draws(key).bytes(9)[0].tolist() == low_first


@given(st.integers(-1000, 1000), st.integers(0, 1000))
def test_integers_lie_in_their_range_and_reach_its_ends(low, span):
    drawn = Draws(keys(1, 0, np.arange(20))).between(low, low + span, 500)
    assert drawn.min() >= low
    assert drawn.max() <= low + span
    if span < 100:  # 10,000 draws miss one of 101 values with probability below 1e-40
        assert set(range(low, low + span + 1)) == set(drawn.ravel().tolist())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_run_of_images_is_balanced_in_its_labels(name):
    preset = PRESETS[name]
    for start in (0, 7, 12_345):
        counts = np.bincount(label_of(preset, np.arange(start, start + 3 * preset.classes)), minlength=preset.classes)
        assert counts.tolist() == [3] * preset.classes
    assert all(getattr(preset, split) % preset.classes == 0 for split in SPLITS)


def test_classes_differ_in_shape_texture_or_layout():
    table = class_table()
    assert len(set(table)) == len(table) == MAX_CLASSES
    for count in (
        20,
        100,
    ):  # no shape, texture or layout makes up most of the classes, or is missing where others are not
        for factor in zip(*table[:count], strict=True):
            shares = np.bincount(factor)
            assert shares.min() > 0
            assert shares.max() < count / 2


# Drawing knows integers only.


def float_uses(tree: ast.Module) -> Iterator[str]:
    """Whatever could make a float: such constants, true division, powers, and names of float types and functions."""
    forbidden = {
        *("float", "complex", "float16", "float32", "float64", "double", "longdouble", "half", "single", "math"),
        *("sin", "cos", "tan", "sqrt", "exp", "log", "power", "mean", "std", "var", "average", "divide", "true_divide"),
        *("arctan2", "hypot", "linspace", "random", "interp", "round", "rint", "floor", "ceil", "reciprocal", "pi"),
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield f"line {node.lineno}: {node.value}"
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div | ast.Pow):
            yield f"line {node.lineno}: {type(node.op).__name__}"
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in forbidden:
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "drawing").glob("*.py")), ids=lambda path: path.name)
def test_drawing_has_no_floating_point(path):
    # Squares in `draw` are of Python integers, which have no float.
    uses = [use for use in float_uses(ast.parse(path.read_text(encoding="utf-8"))) if not use.endswith("Pow")]
    assert uses == []


@pytest.mark.parametrize(
    "line", ["x = 0.5", "x = a / b", "a /= 2", "np.sqrt(a)", "a.mean()", "a.astype(float)", "math.sin(1)"]
)
def test_the_scan_finds_floating_point(line):
    assert list(float_uses(ast.parse(line))) != []


def test_no_value_in_drawing_is_a_float():
    seen: set[str] = set()
    wrong: list[str] = []

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if "drawing" not in frame.f_code.co_filename or event == "exception":
            return look
        for name, value in [*frame.f_locals.items(), ("result", argument)]:
            if isinstance(value, np.ndarray | np.generic):
                seen.add(str(value.dtype))
            if isinstance(value, float) or (
                isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "iub"
            ):
                wrong.append(f"{frame.f_code.co_name}: {name} is {value!r}")
        return look

    class_table()  # cached: its sort is not drawing
    before = sys.gettrace()
    sys.settrace(look)
    try:
        draw(PRESETS["procedural-100"], "train", np.arange(100))
    finally:
        sys.settrace(before)
    assert wrong == []
    assert {"int16", "int32", "uint64", "uint8"} <= seen


class WideNumpy:
    """numpy with 32 bits where drawing has 16."""

    int16, uint16 = np.int32, np.uint32

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@settings(max_examples=20)
@given(presets, st.lists(indices, min_size=20, max_size=40))
def test_sixteen_bits_are_enough(name, which):
    narrow = draw(PRESETS[name], "test", np.array(which))
    with mock.patch.object(plane, "np", WideNumpy()), mock.patch.object(scene, "np", WideNumpy()):
        assert np.array_equal(draw(PRESETS[name], "test", np.array(which)), narrow)


# Geometry.


def test_the_table_of_sines_is_one():
    angles = np.arange(-300, 600, dtype=np.int32)
    expected = [round(16384 * math.sin(2 * math.pi * k / 256)) for k in angles.tolist()]
    assert sine(angles).tolist() == expected


@given(st.integers(-SIDE, SIDE), st.integers(-SIDE, SIDE), st.integers(-256, 256))
def test_turning_keeps_lengths(x, y, angle):
    point = (np.array([value], np.int32) for value in (x, y))
    u, v = rotate(*point, np.array([angle], np.int32))
    # Each of u and v is off by up to two floors, below 2, and by the table's rounding, below 8192 * 2 * 2^-15 = 0.5.
    assert abs(math.hypot(int(u[0]), int(v[0])) - math.hypot(x, y)) < math.hypot(2.5, 2.5)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_figure_covers_its_own_and_stays_in_its_circle(shape):
    size, radius = 256, 1500
    x, y = centres(size)
    u, v = np.broadcast_arrays(x[0].astype(np.int16), y[0].astype(np.int16))
    cover = coverage(shape(u, v, np.int16(radius)), size)
    outside = np.hypot(u, v) > radius * 1.1 + SIDE / size
    assert not cover[outside].any()
    assert cover.max() == FULL
    # Between a third and all of the disc: none is a speck, so that shapes differ in form and not in size alone.
    assert 0.3 < (cover.sum() / FULL) * (SIDE / size) ** 2 / (math.pi * radius**2) < 1.01


@pytest.mark.parametrize("texture", [t for t in TEXTURES if t is not plane.plain], ids=lambda texture: texture.__name__)
def test_a_texture_lights_half_of_the_plane(texture):
    phases = np.arange(0, 4096, 4, dtype=np.int16)  # four periods, 256 places each
    s, t = np.broadcast_arrays(phases[None, :], phases[:, None])
    # Edges fall on 1 place in 64 or fewer; dots have their radius rounded to a unit, 0.3 % of the area.
    assert (texture(s, t) > 0).mean() == pytest.approx(0.5, abs=1 / 64)


def test_plain_ground_has_one_tone():
    assert (plane.plain(np.zeros((2, 3), np.int16), np.zeros((2, 1), np.int16)) < 0).all()


# Nothing simple gives a class away.


def test_no_pixel_and_no_mean_colour_knows_the_class():
    count = 400
    images = draw(SMALL, "train", np.arange(20 * count)).astype(np.float64)
    labels = label_of(SMALL, np.arange(20 * count))
    by_class = np.stack([images[labels == label].mean(0) for label in range(20)])
    error = images.std(0) / math.sqrt(count)
    # 20 x 3,072 means of 400 images each, near normal: the largest of 61,440 standard normals passes 5.5 once in 400
    # such tests; drawing is frozen, so this either holds for ever or never.
    assert (np.abs(by_class - images.mean(0)) / error).max() < 5.5
    colours = images.mean((1, 2))
    colour_means = np.stack([colours[labels == label].mean(0) for label in range(20)])
    assert (np.abs(colour_means - colours.mean(0)) / (colours.std(0) / math.sqrt(count))).max() < 4.5


# The document is complete.

DOCUMENT_INDICES = tuple(1019 * k + 117 for k in range(12))
"""Twelve classes of either preset; those of procedural-100 have every shape, every texture and every layout. Some of
the images are lit beyond level 255, so that it shows when levels are cut."""


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_implementation_from_the_document_alone_draws_the_same_bytes(name):
    for k, index in enumerate(DOCUMENT_INDICES):
        split = SPLITS[k % len(SPLITS)]
        (image,) = draw(PRESETS[name], split, np.array([index]))
        assert reference_image(name, split, index) == image.tobytes(), (split, index)
