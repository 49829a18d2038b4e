"""Whether a folder still holds the images that were prepared: sizes and times of all, and digests. Free of torch.

A run checks the sizes of all files once, and hashes those whose time is not the manifest's: copying changes times, so
the digest decides. This misses a file that was changed but kept its size and time. `doctor` hashes a random sample;
only `prepare --check`, which hashes every file, is proof.
"""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.data.copies import restored
from benchmarks.data.digests import DIGESTS, THREADS, UNREAD, Digests, hash_file, read_digests, time_of, write_digests
from benchmarks.data.folders import DataError, Warn, images_folder, shown
from benchmarks.data.listing import MANIFEST, Listing, advice, left_out_of, left_out_text, listing_of, scan
from benchmarks.suites.spec import DataSpec

_NAMED = 5
"""How many changed images a message names."""

Progress = Callable[[str, int, int], None]
"""Called with a task's name, how much is done, and the total."""


class Sampled(NamedTuple):
    """hashed: how many files. changed: path of each changed file -> in what way."""

    hashed: int
    changed: Mapping[str, str]


def digests_of(folder: Path, listing: Listing) -> Digests:
    """The digests of the manifest's files. Raises DataError if they are missing or damaged."""
    try:
        return read_digests(folder, listing.content)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(folder / DIGESTS)} cannot be used ({error}); {advice(folder)}") from error


def require_unchanged(spec: DataSpec, folder: Path, *, allow_bad_images: int, progress: Progress, warn: Warn) -> None:
    """Check a folder once per run, before trials begin. Damaged copies are made again, with a warning.

    Raises DataError naming images that have changed since they were prepared.
    """
    place = images_folder(folder, spec.short_side)
    if not (place / MANIFEST).exists():
        text = left_out_text(left_out_of(place))
        warn(
            f"nobody has looked through the images in {shown(place)}, so that every trial hashes all of them first; "
            f"{advice(place)}{f'; {text}' if text else ''}"
        )
        return
    listing = listing_of(place, short_side=spec.short_side, allow_bad_images=allow_bad_images)
    digests = digests_of(place, listing)
    found = compared(place, listing, digests, progress)
    wrong = dict(found.changed)
    if listing.short_side is not None:
        index = {path: k for k, path in enumerate(_paths(listing)) if path in wrong}
        for path in list(wrong):
            restored(place, path, digests.of(index[path]), warn)
            wrong.pop(path)
    if wrong:
        raise changed_error(place, wrong)
    if found.times != digests.times:
        with suppress(OSError):  # a folder that cannot be written to: its files are hashed again next time
            write_digests(place, Digests(digests.each, found.times))


def changed_error(folder: Path, changed: Mapping[str, str]) -> DataError:
    named = [f"{shown(path)}: {why}" for path, why in sorted(changed.items())[:_NAMED]]
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return DataError(
        f"{len(changed)} images in {shown(folder)} are not as they were prepared ({'; '.join(named)}{more}); "
        f"put them back, or have the folder looked through again, after which it counts as other data; {advice(folder)}"
    )


@dataclass(frozen=True)
class Compared:
    """changed: path -> in what way. times: of every file, brought up to date where its digest is right."""

    changed: Mapping[str, str]
    times: array[int]


def compared(
    folder: Path, listing: Listing, digests: Digests, progress: Progress, *, hash_all: bool = False
) -> Compared:
    """Compare every file with its entry in the manifest; hash those whose time differs, or all of them.

    Files that were unreadable are not used; they are checked only with `hash_all`.
    """
    changed, times = dict[str, str](), digests.times[:]
    skipped = frozenset() if hash_all else frozenset(listing.unreadable or {})
    firsts, first = [], 0
    for rows in listing.files.values():
        firsts.append(first)
        first += len(rows)

    def look(place: str, rows: Sequence[tuple[str, int]], first: int) -> int:
        for index, (name, size) in enumerate(rows, first):
            path = f"{place}/{name}"
            if path in skipped:
                continue
            why, time = _look(f"{folder}/{path}", size, digests.of(index), None if hash_all else times[index])
            if why is None:
                times[index] = time
            else:
                changed[path] = why
        return len(rows)

    with ThreadPoolExecutor(THREADS) as pool:
        done = 0
        for count in pool.map(look, listing.files, listing.files.values(), firsts):
            done += count
            progress("comparing images", done, first)
    return Compared(changed, times)


def _look(path: str, size: int, digest: bytes, time: int | None) -> tuple[str | None, int]:
    """In what way a file differs from its entry, if it does, and its time. time: None to hash it in any case."""
    try:
        status = os.stat(path)  # noqa: PTH116 (half of a Path's time, for a million files)
    except OSError as error:
        gone = "it is gone" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
        return (None if digest == UNREAD else gone), 0
    if status.st_size != size:
        return f"it has {status.st_size:,} bytes instead of {size:,}", 0
    if time_of(status) != time and (now := hash_file(path)) != digest:
        return "it cannot be read any more" if now == UNREAD else "it holds other bytes", 0
    return None, time_of(status)


def sampled(folder: Path, listing: Listing, count: int) -> Sampled:
    """Hash some images, chosen at random anew each time. Raises DataError if their digests are missing."""
    digests, bad = digests_of(folder, listing), listing.unreadable or {}
    entries = [(path, size, index) for index, (path, size) in enumerate(_entries(listing)) if path not in bad]
    chosen = random.SystemRandom().sample(entries, min(count, len(entries)))
    looks = {path: _look(f"{folder}/{path}", size, digests.of(index), None)[0] for path, size, index in chosen}
    return Sampled(len(chosen), {path: why for path, why in looks.items() if why})


def everything(folder: Path, listing: Listing, progress: Progress) -> dict[str, str]:
    """Path -> in what way it has changed since it was prepared; every file is hashed, nothing is written."""
    changed = dict(compared(folder, listing, digests_of(folder, listing), progress, hash_all=True).changed)
    known = set(_paths(listing))
    later = {path: "it is not in the manifest, so that no trial uses it" for path in _paths(scan(folder))}
    return {**changed, **{path: why for path, why in later.items() if path not in known}}


def _entries(listing: Listing) -> Iterator[tuple[str, int]]:
    return ((f"{place}/{name}", size) for place, rows in listing.files.items() for name, size in rows)


def _paths(listing: Listing) -> Iterator[str]:
    return (path for path, _ in _entries(listing))
