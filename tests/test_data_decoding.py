"""Image files to pixels: which kinds are tried, how their modes are converted, and errors for damage of any kind."""

from __future__ import annotations

import ast
import io
import random
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data import decoding
from benchmarks.data.decoding import FORMATS, UnreadableError, check, decode, decoded
from tests.harness import ROOT

RAMP = (np.arange(1600).reshape(40, 40) * 40).astype(np.uint16)
"""From 0 to 63,960."""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(rows: NDArray[Any] | bytes, side: int, *, bits: int, photometric: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF of one channel, by the TIFF 6.0 specification, in either byte order."""
    pixels = rows if isinstance(rows, bytes) else rows.tobytes()
    short, long = 3, 4
    tags = [(256, long, side), (257, long, side), (258, short, bits), (259, short, 1), (262, short, photometric),
            (273, long, 8), (277, short, 1), (278, long, side), (279, long, len(pixels))]  # fmt: skip
    fields = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{'H2x' if kind == short else 'I'}", value)
        for tag, kind, value in tags
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(tags)) + fields + bytes(4)


def grey_alpha_16() -> bytes:
    """A PNG of 16-bit grey with alpha, which Pillow reads and does not write."""
    rows = b"".join(b"\0" + np.stack([row, row], axis=-1).astype(">u2").tobytes() for row in RAMP)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 40, 40, 16, 4, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


DEEP = {
    "png": saved(Image.fromarray(RAMP), "PNG"),
    "tiff": saved(Image.fromarray(RAMP), "TIFF"),
    "tiff lzw": saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "tiff little": tiff(RAMP.astype("<u2"), 40, bits=16),
    "tiff big": tiff(RAMP.astype(">u2"), 40, bits=16, order=">"),
    "pgm": b"P5 40 40 65535\n" + RAMP.astype(">u2").tobytes(),
    "pgm 12 bit": b"P5 40 40 4095\n" + (RAMP // 16).astype(">u2").tobytes(),
    "pgm text": b"P2 40 40 65535\n" + b" ".join(b"%d" % value for value in RAMP.ravel()),
    "png grey and alpha": grey_alpha_16(),
    "ppm": b"P6 40 40 65535\n" + np.stack([RAMP] * 3, axis=-1).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", DEEP)
def test_16_bits_become_8_by_their_own_range(kind):
    check(DEEP[kind])
    pixels = np.asarray(decode(DEEP[kind])).astype(float)
    assert pixels.shape == (40, 40, 3)
    # Rounded it is half a level off; the high byte, which Pillow takes of two channels and more, and 12 bits brought to
    # 16 are less than one off.
    assert np.abs(pixels - RAMP[..., None] / 257).max() < 1
    assert (pixels == 255).mean() < 0.01


@given(st.integers(0, 65535))
def test_a_level_of_16_bits_is_the_nearest_of_8(value):
    content = saved(Image.fromarray(np.full((1, 1), value, np.uint16)), "PNG")
    assert decode(content).getpixel((0, 0)) == (round(value / 257),) * 3


def test_12_bits_of_a_tiff_are_scaled_by_their_own_range():
    pairs = np.array([[0xFFF, 0x800], [0, 0xFFF]], np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    assert np.asarray(decode(tiff(packed, 2, bits=12)))[..., 0].tolist() == [[255, 128], [0, 255]]


def test_white_is_zero_where_a_tiff_says_so():
    levels = np.asarray(decode(tiff(RAMP.astype("<u2"), 40, bits=16, photometric=0)))[..., 0]
    assert (levels == 255 - np.asarray(decode(DEEP["tiff little"]))[..., 0]).all()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "32-bit whole numbers"),
        (saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "floating-point"),
        (b"Pf 2 2\n-1.0\n" + np.ones(4, np.float32).tobytes(), "floating-point"),
    ],
    ids=["I", "F", "pfm"],
)
def test_an_image_that_does_not_say_which_value_is_white_is_refused(content, named):
    for look in (check, decode):
        with pytest.raises(UnreadableError, match=named):
            look(content)


def in_mode(mode: str) -> Image.Image:
    """Orange, or a grey, half of it transparent where the mode has transparency."""
    image = Image.new("RGBA", (4, 2), (240, 120, 0, 255))
    image.paste((240, 120, 0, 0), (0, 0, 2, 2))
    if mode == "1":
        return image.convert("L").point(lambda level: 255 * (level > 0)).convert("1")
    if mode == "P":
        return image.convert("RGB").quantize(4)
    return image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("1", "PNG", (255, 255, 255)),
        ("L", "PNG", (142, 142, 142)),
        ("LA", "PNG", (142, 142, 142)),
        ("P", "PNG", (240, 120, 0)),
        ("P", "GIF", (240, 120, 0)),
        ("RGBA", "PNG", (240, 120, 0)),
        ("RGBA", "WEBP", (240, 120, 0)),
        ("RGBA", "TIFF", (240, 120, 0)),
        ("CMYK", "TIFF", (240, 120, 0)),
        ("RGB", "BMP", (240, 120, 0)),
        ("RGB", "PPM", (240, 120, 0)),
        ("1", "PPM", (255, 255, 255)),
    ],
)
def test_other_modes_become_rgb_and_transparency_is_dropped(mode, kind, expected):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = saved(in_mode(mode), kind, **options)
    check(content)
    assert np.abs(np.asarray(decode(content)).astype(int) - expected).max() <= 1  # grey and CMYK are rounded


def test_a_palette_s_transparent_colours_show():
    image = in_mode("P")
    for transparency in (0, bytes(256)):
        assert decode(saved(image, "PNG", transparency=transparency)).tobytes() == image.convert("RGB").tobytes()


def test_exif_s_orientation_is_ignored_but_in_tiffs():
    image, exif = Image.new("RGB", (8, 4), "red"), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert decode(saved(image, "JPEG", exif=exif)).size == (8, 4)
    assert decode(saved(image, "PNG", exif=exif)).size == (8, 4)
    assert decode(saved(image, "TIFF", exif=exif)).size == (4, 8)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    check(content)
    assert np.abs(np.asarray(decode(content)).astype(int) - (255, 0, 0)).max() <= 1  # MPO's frames are JPEGs


# Kinds.


def test_content_decides_and_not_the_name(tmp_path):
    (tmp_path / "photograph.JPEG").write_bytes(saved(Image.new("RGB", (3, 5)), "TIFF"))
    assert decoded(tmp_path / "photograph.JPEG").size == (3, 5)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


OTHERS = {kind: saved(Image.new("RGB", (16, 16)), kind) for kind in ("JPEG2000", "TGA", "ICO", "PCX", "SGI", "PDF")}


@pytest.mark.parametrize("content", [EPS, *OTHERS.values()], ids=["EPS", *OTHERS])
def test_other_kinds_are_never_tried(tmp_path, monkeypatch, content):
    def started(*arguments: Any, **_options: Any) -> None:
        raise AssertionError(f"{arguments} was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    (tmp_path / "x.JPEG").write_bytes(content)
    for look in (lambda: decoded(tmp_path / "x.JPEG"), lambda: check(content)):
        with pytest.raises(UnreadableError, match="no image of a known kind"):
            look()


def test_images_are_opened_in_one_place_that_names_the_kinds():
    found = [
        (path.relative_to(ROOT).as_posix(), {keyword.arg for keyword in node.keywords})
        for package in ("benchmarks", "methods", "reports", "docs")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert found == [("benchmarks/data/decoding.py", {"formats"})]


# Damage.


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1) + b"IDAT\0" + struct.pack(">I", zlib.crc32(b"IDAT\0"))


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_in_one_line(side):
    with pytest.raises(UnreadableError) as caught:
        check(png_header(side, side))
    assert str(caught.value) == "it has more than 89,478,485 pixels; make it smaller"


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    with (tmp_path / "x.tif").open("wb") as file:
        file.truncate(decoding.LARGEST_FILE + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(UnreadableError, match="1,073,741,825 bytes"):
        decoded(tmp_path / "x.tif")


@pytest.mark.parametrize(
    "error",
    [RecursionError("x"), MemoryError(), OverflowError("a\nb\x1b[31m"), KeyError(4), AssertionError(), SystemError()],
)
def test_whatever_a_decoder_raises_is_a_reason_in_one_line(monkeypatch, error):
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    for look in (check, decode):
        with pytest.raises(UnreadableError) as caught:
            look(b"")
        assert str(caught.value).isprintable()
        assert str(caught.value)


def samples() -> Iterator[tuple[str, bytes]]:
    """A small file of each kind, and of kinds within kinds, whose decoders differ."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 18, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    yield "JPEG", saved(rgb, "JPEG")
    yield "progressive JPEG", saved(rgb, "JPEG", progressive=True)
    yield "CMYK JPEG", saved(rgb.convert("CMYK"), "JPEG")
    yield "PNG", saved(rgb, "PNG")
    yield "palette PNG", saved(rgb.convert("P"), "PNG", transparency=3)
    yield "WEBP", saved(rgb, "WEBP")
    yield "lossless WEBP", saved(rgb.convert("RGBA"), "WEBP", lossless=True)
    yield "BMP", saved(rgb, "BMP")
    yield "palette BMP", saved(rgb.convert("P"), "BMP")
    yield "PPM", saved(rgb, "PPM")
    yield "GIF", saved(rgb, "GIF")
    yield "GIFs", saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)])
    yield "TIFF", saved(rgb, "TIFF")
    for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
        yield f"TIFF {compression}", saved(rgb, "TIFF", compression=compression)
    yield "TIFF group4", saved(rgb.convert("1"), "TIFF", compression="group4")
    yield from DEEP.items()


def damaged(content: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Flipped, cut or spliced with another file; most of the damage near the beginning, where headers are."""
    kind = dice.randrange(4)
    reach = min(len(content), dice.choice((64, 512, 1 << 30)))
    if kind == 0:
        changed = bytearray(content)
        for _ in range(dice.randint(1, 8)):
            changed[dice.randrange(reach)] = dice.choice((0, 255, dice.randrange(256)))
        return bytes(changed)
    if kind == 1:
        return content[: dice.randrange(reach)]
    at = dice.randrange(reach)
    if kind == 2:
        other = dice.choice(others)
        return content[:at] + other[dice.randrange(len(other)) :]
    return content[:at] + dice.randbytes(dice.randint(1, 16)) + content[at:]


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_named_and_never_a_traceback(seed, capfd):
    dice, files = random.Random(seed), dict(samples())
    said: list[str] = []
    for content in files.values():
        for _ in range(8):
            harmed = damaged(content, list(files.values()), dice)
            for look in (check, decode):
                try:
                    look(harmed)
                except UnreadableError as error:
                    said.append(str(error))
    assert len(said) > 100
    assert all(line and line.isprintable() for line in said)
    assert capfd.readouterr() == ("", "")


def test_the_kinds_are_those_that_the_documents_name():
    assert FORMATS == ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
