"""What `prepare` does to a folder of images: look at every one of them, and make smaller copies. Free of torch."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from benchmarks.data.decoding import UnreadableError, check, decoded, require_file
from benchmarks.data.folders import DataError
from benchmarks.data.listing import COPIES, PARTS, Listing, scan, write_manifest
from benchmarks.files import write_text_atomic
from benchmarks.stopping import end_with_parent

T = TypeVar("T")

JPEG_QUALITY = 90
_SAMPLE = 200
_CHUNK = 16
_FEW = 128
"""So many images are done before other processes have started."""
_SPARE = 1.05

IMAGENET = {"train": 1_281_167, "val": 50_000}
"""Images of ILSVRC 2012 (Russakovsky et al., IJCV 2015), which has 1000 classes."""

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


class _Look(NamedTuple):
    digest: str
    wrong: str | None


def look_through(
    folder: Path, progress: Progress, *, short_side: int | None = None, left_out: Mapping[str, str] | None = None
) -> Listing:
    """Decode every image of a folder and write its manifest.

    left_out: path -> why, of images that copies could not be made of: unreadable as well. Raises DataError for a folder
    in another layout, or one that cannot be written to.
    """
    files = scan(folder).files
    paths = [f"{place}/{name}" for place, rows in files.items() for name, _ in rows]
    looks = _everywhere(partial(_look, folder), paths, partial(progress, "looking at images"))
    lines = "\n".join(f"{path} {look.digest}" for path, look in looks)
    content = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()  # names need not be UTF-8
    unreadable = {**(left_out or {}), **{path: look.wrong for path, look in looks if look.wrong}}
    listing = Listing(files, unreadable, content, short_side)
    try:
        write_manifest(folder, listing)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}'s manifest: {error.strerror}; make the folder writable, or copy the images"
        ) from error
    return listing


def _look(folder: Path, path: str) -> _Look:
    digest = ""
    try:
        require_file(folder / path)
        content = (folder / path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        check(content)
    except OSError as error:
        return _Look("", f"{error.strerror or error}")
    except UnreadableError as error:
        return _Look(digest, str(error))
    return _Look(digest, None)


def remarks(listing: Listing) -> Iterator[str]:
    """What somebody should know about these images before training on them."""
    classes = len(listing.files) // len(PARTS)
    if classes == 1000 and listing.files and all(place.split("/")[1].startswith("n") for place in listing.files):
        for part, expected in IMAGENET.items():
            if (count := listing.count(part)) != expected:
                yield f"{part} has {count:,} images, ImageNet (ILSVRC 2012) has {expected:,}"
    counts = {place: len(rows) for place, rows in listing.files.items() if place.startswith("train/")}
    least = min(counts, key=lambda place: counts[place])
    if counts[least] * 10 < fmean(counts.values()):
        yield f"{least} has {counts[least]} images, a class has {fmean(counts.values()):.0f} on average"


class CacheSize(NamedTuple):
    """Bytes that a cache will take, estimated from a sample, and bytes that are free."""

    needed: int
    free: int


def cache_size(folder: Path, listing: Listing, short_side: int, place: Path) -> CacheSize:
    """Before anything is written. Raises DataError where there is no room."""
    paths = [path for part in PARTS for path in listing.paths(part)]
    sample = paths[:: max(1, len(paths) // _SAMPLE)]
    each = fmean(_sizes(folder, sample, short_side))
    needed = round(each * sum(not _copy_of(path, place).exists() for path in paths))
    there = place
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed * _SPARE:
        raise DataError(
            f"the cache needs {needed / 1e9:.2f} GB, {there} has {free / 1e9:.2f} GB; name another with --to"
        )
    return CacheSize(needed, free)


def _sizes(folder: Path, paths: Sequence[str], short_side: int) -> Iterator[int]:
    """Bytes of copies; nothing of what cannot be read."""
    for path in paths:
        try:
            yield len(_shrunk(folder / path, short_side))
        except UnreadableError:
            yield 0


def make_cache(folder: Path, listing: Listing, short_side: int, place: Path, progress: Progress) -> Listing:
    """Copies with that short side as JPEGs in the same layout; those that are there already stay.

    Smaller images keep their size. What cannot be read is left out, and the copies' manifest says so too. Raises
    DataError for a folder that holds anything but copies of these images at this size.
    """
    _claim(place, {"short_side": short_side, "source": listing.digest})
    for name in listing.files:
        (place / name).mkdir(parents=True, exist_ok=True)
    paths = [path for part in PARTS for path in listing.paths(part)]
    try:
        tried = _everywhere(partial(_copy, folder, place, short_side), paths, partial(progress, "making copies"))
    except OSError as error:
        raise DataError(
            f"cannot write to {place}: {error.strerror}; make room and run the same command again"
        ) from error
    left_out = {**(listing.unreadable or {}), **{path: why for path, why in tried if why}}
    return look_through(place, progress, short_side=short_side, left_out=left_out)


def _claim(place: Path, what: dict[str, Any]) -> None:
    """Have a folder say whose copies it holds. Raises DataError if it holds something else."""
    marker = place / COPIES
    try:
        held = json.loads(marker.read_bytes()) if marker.exists() else None
    except ValueError:
        held = {}
    if held != what and (held is not None or (place.is_dir() and any(place.iterdir()))):
        raise DataError(
            f"{place} holds something else than copies of these images at this size; empty it or name another"
        )
    write_text_atomic(marker, json.dumps(what))


def _copy_of(path: str, place: Path) -> Path:
    return place / (path if path.lower().endswith((".jpg", ".jpeg")) else f"{path}.jpg")


def _copy(folder: Path, place: Path, short_side: int, path: str) -> str | None:
    """Why an image cannot be copied; None if it can, or was before."""
    target = _copy_of(path, place)
    if target.exists():
        return None
    try:
        content = _shrunk(folder / path, short_side)
    except UnreadableError as error:
        return str(error)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return None


def _shrunk(path: Path, short_side: int) -> bytes:
    """The image as a JPEG with that short side, or at its own size if that is smaller."""
    image = decoded(path)
    scale = short_side / min(image.size)
    if scale < 1:
        width, height = (max(short_side, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    out = BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _everywhere(
    work: Callable[[str], T], paths: Sequence[str], progress: Callable[[int, int], None]
) -> list[tuple[str, T]]:
    """`work` of every path, in order, on all cores where there is enough for them.

    Raises DataError where a process that works is killed.
    """
    found: list[tuple[str, T]] = []
    try:
        with ExitStack() as stack:
            results: Iterable[T] = map(work, paths)
            if len(paths) > _FEW:
                # Processes of their own, not forked from this one: its other threads may hold locks.
                spawning = multiprocessing.get_context("spawn")
                pool = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), spawning, end_with_parent))
                results = pool.map(work, paths, chunksize=_CHUNK)
            for path, result in zip(paths, results, strict=True):
                found.append((path, result))
                progress(len(found), len(paths))
    except BrokenProcessPool as error:
        after = f" soon after {found[-1][0]}" if found else ""
        raise DataError(
            f"a process that reads images was killed{after}; is memory short? run the same command again"
        ) from error
    return found
