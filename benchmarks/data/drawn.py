"""Generated images on disk: drawn once, shared by processes, checked against a digest, read through memory maps.

A file is the SHA-256 of the pixels (32 bytes) and the pixels, (n, size, size, 3) bytes. Its name carries a fingerprint
of the first images as this machine draws them, so that no file of other images is used. Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.folders import DataError, Warn, to_stderr
from benchmarks.drawing.presets import PRESETS, SPLITS, Preset
from benchmarks.drawing.scene import draw
from benchmarks.files import file_lock, write_atomic
from benchmarks.suites.spec import ProceduralSpec

_DIGEST_BYTES = 32
_BLOCK = 1000
_FINGERPRINT_IMAGES = 8

Progress = Callable[[int], None]
"""Told how many more images have been drawn."""


def preset_of(spec: ProceduralSpec) -> Preset:
    """The preset, with the spec's changes."""
    return PRESETS[spec.preset].resized(image_size=spec.image_size, classes=spec.classes)


def open_images(
    spec: ProceduralSpec,
    split: str,
    folder: Path,
    progress: Progress = lambda _: None,
    warn: Warn = to_stderr,
) -> tuple[NDArray[np.uint8], str]:
    """A split's images, mapped read-only, and their SHA-256. Drawn if they are not there.

    A file that is damaged, or that holds other images than a preset's, is drawn again, and `warn` is told. Raises
    DataError where they cannot be kept, and where this machine draws other bytes than the preset's.
    """
    path = images_path(spec, split, folder)
    expected = preset_of(spec).digests.get(split) if is_pinned(spec, split) else None
    try:
        with file_lock(folder / f".{path.stem}.lock", wait=True):
            digest = _sound(path, spec, split)
            if digest is None or expected not in (None, digest):
                if path.exists():
                    warn(f"{path} is damaged; its images are drawn again")
                write_atomic(path, lambda file: _write(file, spec, split, progress))
                digest = _sound(path, spec, split)
    except OSError as error:
        raise DataError(
            f"cannot keep generated images in {folder}: {error.strerror or error}; name another folder with --data"
        ) from error
    if digest is None:
        raise DataError(f"{path} does not hold what was written to it; is the disk full or broken?")
    if expected not in (None, digest):
        raise DataError(
            f"this machine draws other images than {spec.preset} has ({split}: SHA-256 {digest}, expected {expected}); "
            f"numpy is {np.__version__}: please report this"
        )
    return np.memmap(path, np.uint8, "r", _DIGEST_BYTES, _shape(spec, split)), digest


def is_drawn(spec: ProceduralSpec, split: str, folder: Path) -> bool:
    """Whether a split's file is there; it is checked when it is opened."""
    return images_path(spec, split, folder).exists()


def is_pinned(spec: ProceduralSpec, split: str) -> bool:
    """Whether these images are exactly a preset's, whose digest is known."""
    preset = PRESETS[spec.preset]
    names = ("image_size", "classes", split)
    return all(getattr(spec, name) == getattr(preset, name) for name in names)


def images_path(spec: ProceduralSpec, split: str, folder: Path) -> Path:
    first = draw(preset_of(spec), split, np.arange(_FINGERPRINT_IMAGES))
    fingerprint = hashlib.sha256(first.tobytes()).hexdigest()[:12]
    return (
        folder / f"{spec.preset}-{spec.image_size}px-{spec.classes}-{split}-{_count(spec, split)}-{fingerprint}.images"
    )


def _count(spec: ProceduralSpec, split: str) -> int:
    assert split in SPLITS
    count: int = getattr(spec, split)
    return count


def _shape(spec: ProceduralSpec, split: str) -> tuple[int, int, int, int]:
    return _count(spec, split), spec.image_size, spec.image_size, 3


def _write(file: IO[bytes], spec: ProceduralSpec, split: str, progress: Progress) -> None:
    sha = hashlib.sha256()
    file.write(bytes(_DIGEST_BYTES))
    for block in _blocks(_count(spec, split)):
        pixels = draw(preset_of(spec), split, block).tobytes()
        sha.update(pixels)
        file.write(pixels)
        progress(len(block))
    file.seek(0)
    file.write(sha.digest())


def _blocks(count: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, count, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, count))


def _sound(path: Path, spec: ProceduralSpec, split: str) -> str | None:
    """The digest of the pixels; None if the file is missing, or not of the right length and digest."""
    if not path.exists():
        return None
    status = path.stat()
    if status.st_size != _DIGEST_BYTES + int(np.prod(_shape(spec, split))):
        return None
    return _checked(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _checked(path: Path, _changed: int, _size: int) -> str | None:
    """The digest of a file's pixels if it is the written one; cached, as a trial opens its data several times."""
    with path.open("rb") as file:
        written = file.read(_DIGEST_BYTES)
        sha = hashlib.sha256()
        while block := file.read(1 << 22):
            sha.update(block)
    return sha.hexdigest() if sha.digest() == written else None
