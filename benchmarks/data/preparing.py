"""What `prepare` does with a folder of images: decode every one, and make smaller copies. Free of torch."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TypeVar

from benchmarks.data.comparing import compared, digests_of
from benchmarks.data.copies import claim, copy_of, require_own_copies, shrunk, write_copy
from benchmarks.data.decoding import NO_FILE, UnreadableError, check, read_file, reason_of
from benchmarks.data.digests import Digests, hash_file, time_of, write_digests
from benchmarks.data.folders import DataError, Warn, shown, to_stderr
from benchmarks.data.listing import PARTS, Listing, read_manifest, scan, write_manifest
from benchmarks.stopping import end_with_parent

T = TypeVar("T")

_SAMPLE = 200
_CHUNK = 16
_FEW = 128
"""With no more images than this, starting other processes takes longer than the work."""
_SPARE = 1.05

IMAGENET = {"train": 1_281_167, "val": 50_000}
"""Images of ILSVRC 2012 (Russakovsky et al., IJCV 2015), which has 1000 classes."""

Progress = Callable[[str, int, int], None]
"""Called with a task's name, how much is done, and the total."""


class _Look(NamedTuple):
    """time: of the file's last change, before it was read, in nanoseconds since 1970."""

    digest: bytes
    time: int
    wrong: str | None


def look_through(
    folder: Path, progress: Progress, *, short_side: int | None = None, left_out: Mapping[str, str] | None = None
) -> Listing:
    """Decode every image of a folder and write its manifest and its files' digests.

    left_out: path -> why, of images that copies could not be made of: unreadable as well. Raises DataError for a folder
    in another layout, or one that cannot be written to.
    """
    found = scan(folder)
    paths = [f"{place}/{name}" for place, rows in found.files.items() for name, _ in rows]
    looks = _everywhere(partial(_look, folder), paths, partial(progress, "looking at images"))
    digests = Digests(b"".join(look.digest for _, look in looks), array("q", (look.time for _, look in looks)))
    unreadable = {**(left_out or {}), **{path: look.wrong for path, look in looks if look.wrong}}
    listing = replace(found, unreadable=unreadable, content=digests.content, short_side=short_side)
    try:
        write_digests(folder, digests)
        write_manifest(folder, listing)
    except OSError as error:
        raise DataError(
            f"cannot write {shown(folder)}'s manifest: {error.strerror}; make the folder writable, or copy the images"
        ) from error
    return listing


def _look(folder: Path, path: str) -> _Look:
    try:
        time = time_of((folder / path).stat())
        content = read_file(folder / path)
    except (OSError, UnreadableError) as error:
        return _Look(hash_file(folder / path), 0, NO_FILE if isinstance(error, FileNotFoundError) else reason_of(error))
    digest = hashlib.sha256(content).digest()
    try:
        check(content)
    except UnreadableError as error:
        return _Look(digest, time, str(error))
    return _Look(digest, time, None)


def remarks(listing: Listing) -> Iterator[str]:
    """What users should know about these images before training on them."""
    classes = len(listing.files) // len(PARTS)
    if classes == 1000 and listing.files and all(place.split("/")[1].startswith("n") for place in listing.files):
        for part, expected in IMAGENET.items():
            if (count := listing.count(part)) != expected:
                yield f"{part} has {count:,} images, ImageNet (ILSVRC 2012) has {expected:,}"
    counts = {place: len(rows) for place, rows in listing.files.items() if place.startswith("train/")}
    least = min(counts, key=lambda place: counts[place])
    if counts[least] * 10 < fmean(counts.values()):
        yield f"{shown(least)} has {counts[least]} images, a class has {fmean(counts.values()):.0f} on average"


class CacheSize(NamedTuple):
    """Bytes that a cache will take, estimated from a sample, and bytes that are free."""

    needed: int
    free: int


def cache_size(folder: Path, listing: Listing, short_side: int, place: Path) -> CacheSize:
    """The size of a cache, estimated before anything is written. Raises DataError if there is no room for it."""
    paths = [path for part in PARTS for path in listing.paths(part)]
    sample = paths[:: max(1, len(paths) // _SAMPLE)]
    each = fmean(_sizes(folder, sample, short_side)) if sample else 0.0
    needed = round(each * sum(not copy_of(path, place).exists() for path in paths))
    there = place
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed * _SPARE:
        raise DataError(
            f"the cache needs {needed / 1e9:.2f} GB, {shown(there)} has {free / 1e9:.2f} GB; name another with --to"
        )
    return CacheSize(needed, free)


def _sizes(folder: Path, paths: Sequence[str], short_side: int) -> Iterator[int]:
    """Sizes of copies in bytes; unreadable images are skipped."""
    for path in paths:
        try:
            yield len(shrunk(folder / path, short_side))
        except UnreadableError:
            yield 0


def make_cache(
    folder: Path, listing: Listing, short_side: int, place: Path, progress: Progress, warn: Warn = to_stderr
) -> Listing:
    """Make copies with that short side, as JPEGs in the same layout; existing copies stay if they are whole.

    Smaller images keep their size. Unreadable images are left out, which the copies' manifest says too. Damaged copies
    are made again, with a call of `warn` each. Raises DataError for a folder that holds anything but copies of
    these images at this size.
    """
    paths = [path for part in PARTS for path in listing.paths(part)]
    require_own_copies(paths, place)
    claim(place, folder, short_side, listing.digest)
    for name in listing.files:
        (place / name).mkdir(parents=True, exist_ok=True)
    try:
        for damaged in _damaged(place, paths, progress):
            warn(f"the copy {shown(damaged)} was damaged; it is made again")
            damaged.unlink()
        tried = _everywhere(partial(write_copy, folder, place, short_side), paths, partial(progress, "making copies"))
    except OSError as error:
        raise DataError(
            f"cannot write to {shown(place)}: {error.strerror}; make room and run the same command again"
        ) from error
    left_out = {**(listing.unreadable or {}), **{path: why for path, why in tried if why}}
    return look_through(place, progress, short_side=short_side, left_out=left_out)


def _damaged(place: Path, paths: Sequence[str], progress: Progress) -> list[Path]:
    """Existing copies that have changed since they were written; without a manifest, those that cannot be decoded."""
    try:
        listing = read_manifest(place)
        found = compared(place, listing, digests_of(place, listing), progress, hash_all=True)
        return [place / path for path in found.changed if (place / path).exists()]
    except DataError:  # the copies were not finished, or their manifest is damaged too
        there = [path for path in paths if copy_of(path, place).exists()]
        looks = _everywhere(partial(_unsound, place), there, partial(progress, "looking at copies"))
        return [copy_of(path, place) for path, unsound in looks if unsound]


def _unsound(place: Path, path: str) -> bool:
    try:
        check(read_file(copy_of(path, place)))
    except UnreadableError:
        return True
    return False


def _everywhere(
    work: Callable[[str], T], paths: Sequence[str], progress: Callable[[int, int], None]
) -> list[tuple[str, T]]:
    """Each path with the result of `work`, in order; on all cores if there are enough paths.

    Raises DataError if a working process is killed.
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
        after = f" soon after {shown(found[-1][0])}" if found else ""
        raise DataError(
            f"a process that reads images was killed{after}; is memory short? run the same command again"
        ) from error
    return found
