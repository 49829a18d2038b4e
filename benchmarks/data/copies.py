"""Copies of images at a short side, as JPEGs: how one is made, where it lies, and made again. Free of torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.data.decoding import UnreadableError, decoded
from benchmarks.data.folders import CACHE, DataError, Warn, shown
from benchmarks.data.listing import COPIES, advice
from benchmarks.files import forget_unfinished, write_text_atomic

JPEG_QUALITY = 90


def claim(place: Path, source: Path, short_side: int, digest: str) -> None:
    """Note in a folder whose copies it holds. Raises DataError if it holds something else.

    source: the folder of the images, where copies that get damaged are made again from. digest: of its listing.
    """
    what = {"short_side": short_side, "source": digest}
    if place.is_dir():
        forget_unfinished(place / COPIES)  # else a folder that a killed process had begun would seem another's
    held = _held(place)
    same = held is not None and {key: held.get(key) for key in what} == what
    if not same and (held is not None or (place.is_dir() and any(place.iterdir()))):
        raise DataError(
            f"{shown(place)} holds something else than copies of these images as they are now, at this size; "
            "empty it or name another (copies that an earlier version made are made anew, too)"
        )
    write_text_atomic(place / COPIES, json.dumps({**what, "folder": str(source.resolve())}))


def _held(place: Path) -> dict[str, Any] | None:
    """A folder's note on its copies; None if it has none."""
    try:
        held = json.loads((place / COPIES).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def require_own_copies(paths: Sequence[str], place: Path) -> None:
    """Raises DataError for two images whose copies would have one name, such as a.png and a.png.jpg."""
    if len(paths) == len({copy_of(path, place) for path in paths}):
        return
    taken: dict[Path, str] = {}
    for path in paths:
        if (other := taken.setdefault(copy_of(path, place), path)) != path:
            raise DataError(f"copies of {shown(other)} and {shown(path)} would have the same name; rename one")


def copy_of(path: str, place: Path) -> Path:
    return place / (path if path.lower().endswith((".jpg", ".jpeg")) else f"{path}.jpg")


def write_copy(folder: Path, place: Path, short_side: int, path: str) -> str | None:
    """Copy an image unless it has a copy; returns why that failed, or None."""
    target = copy_of(path, place)
    if target.exists():
        return None
    try:
        content = shrunk(folder / path, short_side)
    except UnreadableError as error:
        return str(error)
    _put(target, content)
    return None


def _put(target: Path, content: bytes, writer: str = "") -> None:
    """Write a file that appears whole or not at all. writer: a suffix that differs between concurrent writers."""
    short = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]  # its name may already be as long as names can be
    part = target.with_name(f".{short}{writer}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def shrunk(path: Path, short_side: int) -> bytes:
    """The image as a JPEG with that short side, or at its own size if that is smaller. Raises UnreadableError."""
    image = decoded(path)
    scale = short_side / min(image.size)
    if scale < 1:
        width, height = (max(short_side, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    out = BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def restored(place: Path, path: str, digest: bytes, warn: Warn) -> bytes:
    """The content of a damaged copy, made again from its image to the same bytes.

    It is saved if the folder is writable. Raises DataError if the image is missing, or gives other bytes.
    """
    held = _held(place) or {}
    for folder in _sources(place, held):
        for name in (path, path.removesuffix(".jpg")):
            with suppress(UnreadableError):
                content = shrunk(folder / name, held["short_side"])
                if hashlib.sha256(content).digest() == digest:
                    with suppress(OSError):
                        _put(place / path, content, f"-{os.getpid()}")
                    warn(f"the copy {shown(place / path)} was damaged; it is made again from {shown(folder / name)}")
                    return content
    raise DataError(
        f"the copy {shown(place / path)} is damaged, and its image is not there, or has changed; {advice(place)}"
    )


def _sources(place: Path, held: dict[str, Any]) -> list[Path]:
    """Where the originals of these copies may be: beside the copies, and where they were when they were copied."""
    if not isinstance(held.get("short_side"), int) or held["short_side"] < 1:
        return []
    around = [place.parent] if place.name == CACHE.format(held.get("short_side")) else []
    return [*around, *([Path(held["folder"])] if isinstance(held.get("folder"), str) else [])]
