"""Decodes an image file to pixels with Pillow; every fault of a file raises the same kind of error. Free of torch.

Which decoder reads a file is decided by its content, never by its name, and only the kinds in FORMATS are tried. Of a
file with several frames or pages the first is taken. What is done with pixels that are not 8-bit RGB:

- grey, palette, CMYK and Lab images are converted as Pillow does it; colour profiles are ignored.
- transparency is dropped: the colours under it show, as with torchvision's own folder of images.
- 16-bit grey is scaled to 8 bits by its own range (12-bit TIFFs by theirs), and inverted where a TIFF says that white
  is zero. Of 16-bit colour Pillow takes the high byte.
- 32-bit and floating-point images are refused: such a file does not say which value is white.
- EXIF's orientation is ignored, as in common ImageNet training, except that Pillow itself turns TIFFs.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""Pillow's names. Its other decoders are never tried: one starts Ghostscript, and few see much use."""

LARGEST_FILE = 2**30
"""Bytes. The largest image that is decoded, four channels of 16 bits, fits in it uncompressed."""

NO_FILE = "it is no file, or a link to none"

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 258, 262, 0
_LONGEST_REASON = 200

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow logs bad files to the terminal


class UnreadableError(Exception):
    """A file that holds no whole image; the message says why in one line, not which."""


def decoded(path: Path) -> Image.Image:
    """The image in RGB, 8 bits a channel. Raises UnreadableError."""
    return decode(read_file(path))


def read_file(path: Path) -> bytes:
    """A plain file's content. Raises UnreadableError for what is no file, is too large or cannot be read."""
    require_file(path)
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise UnreadableError(f"it has {size:,} bytes; an image may have {LARGEST_FILE:,}")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise UnreadableError(reason_of(error)) from error


def require_file(path: Path) -> None:
    """Raises UnreadableError unless it is a plain file: reading a pipe would never end."""
    if not path.is_file():
        raise UnreadableError(NO_FILE)


def check(content: bytes) -> None:
    """Raises UnreadableError unless a file's content is a whole image.

    All of it is decoded, JPEGs to an eighth of their size, which takes a third of the time.
    """
    decode(content, smallest=True)


def decode(content: bytes, *, smallest: bool = False) -> Image.Image:
    """A file's content as an image in RGB. Raises UnreadableError.

    smallest: JPEGs to an eighth of their size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which is not read here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                if smallest:
                    file.draft("RGB", (1, 1))
                return _rgb(file)
    except UnreadableError:
        raise
    except Exception as error:  # a decoder raises what it likes for a damaged file
        raise UnreadableError(reason_of(error)) from error


def _rgb(file: Image.Image) -> Image.Image:
    with _quiet() if file.format == "TIFF" else nullcontext():
        file.load()
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        return _eight_bits(file).convert("RGB")
    if file.mode in ("I", "F"):
        kind = "32-bit whole numbers" if file.mode == "I" else "floating-point numbers"
        raise UnreadableError(f"its pixels are {kind}, of which it does not say which is white; save it with 8 bits")
    if file.mode in ("La", "RGBa"):
        return file.convert(file.mode.upper()).convert("RGB")  # colours as before they were multiplied by alpha
    return file.convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, libtiff's C code prints nothing about damaged files to the terminal."""
    try:
        terminal = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(silence)


def _eight_bits(file: Image.Image) -> Image.Image:
    """An image of one 16-bit channel, scaled to 0..255 by the largest value that it can hold, rounded."""
    import numpy as np

    top, inverted = 65535, False
    if file.format == "TIFF":
        tags = file.tag_v2  # type: ignore[attr-defined]
        top = 2 ** tags.get(_TIFF_BITS, (16,))[0] - 1
        inverted = tags.get(_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO) == _TIFF_WHITE_IS_ZERO
    levels = (np.asarray(file).astype(np.uint32) * 255 + top // 2) // top
    grey = np.minimum(levels, 255).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)


def reason_of(error: BaseException) -> str:
    """Why an image cannot be read, in one line of printable characters."""
    if isinstance(error, UnidentifiedImageError):  # names the file, or where in memory it is
        return "it is no image of a known kind"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
    if isinstance(error, MemoryError):
        return "memory does not suffice to decode it"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join("".join(char if char.isprintable() else " " for char in said).split())
    return line[:_LONGEST_REASON] or type(error).__name__
