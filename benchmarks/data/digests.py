"""Digests and times of a folder's image files, in one file beside its manifest. Free of torch and numpy.

DIR/manifest.digests has, for every file in the manifest's order, its SHA-256 (32 bytes; zeros where it cannot be read),
and then for every file its time of change in nanoseconds since 1970 (8 bytes, little-endian). The manifest's `content`
is the SHA-256 of the digests, so that neither of the two files can be changed without the other. Times may be changed:
they only decide which files are read again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.files import write_atomic

DIGESTS = "manifest.digests"
UNREAD = bytes(32)
"""In place of the digest of a file that cannot be read."""

Files = Mapping[str, Sequence[tuple[str, int]]]
"""`train/<class>` or `val/<class>` -> file names and sizes in bytes, both ascending by name."""

_DIGEST, _TIME = 32, 8
THREADS = 4 * (os.cpu_count() or 1)
"""Hashing and asking a file system for sizes let other threads run."""


@dataclass(frozen=True)
class Digests:
    """each: 32 bytes a file. times: nanoseconds since 1970, one a file."""

    each: bytes
    times: array[int]

    def of(self, index: int) -> bytes:
        return self.each[index * _DIGEST : (index + 1) * _DIGEST]

    @property
    def content(self) -> str:
        """SHA-256 over the files' own."""
        return hashlib.sha256(self.each).hexdigest()


def time_of(status: os.stat_result) -> int:
    """A file's time of change as it is kept: in nanoseconds since 1970, years beyond 2262 cut to that."""
    return max(-(2**63), min(status.st_mtime_ns, 2**63 - 1))


def hash_file(path: str | Path) -> bytes:
    """SHA-256 of a plain file's bytes; UNREAD if it is no plain file or cannot be read."""
    if not os.path.isfile(path):  # noqa: PTH113 (reading a pipe would never end)
        return UNREAD
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return UNREAD


def content_of(folder: Path, files: Files) -> str:
    """SHA-256 over the digests of all files, each of which is read."""
    with ThreadPoolExecutor(THREADS) as pool:
        blocks = pool.map(partial(_hash_all, folder), files, files.values())
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def _hash_all(folder: Path, place: str, rows: Sequence[tuple[str, int]]) -> bytes:
    return b"".join(hash_file(folder / place / name) for name, _ in rows)


def write_digests(folder: Path, digests: Digests) -> None:
    """Raises OSError where the folder cannot be written to."""
    body = digests.each + _little(digests.times).tobytes()
    write_atomic(folder / DIGESTS, lambda file: file.write(body))


def read_digests(folder: Path, content: str | None) -> Digests:
    """Raises OSError where they are missing and ValueError where their digests are not those of `content`."""
    body = (folder / DIGESTS).read_bytes()
    count, rest = divmod(len(body), _DIGEST + _TIME)
    digests = Digests(body[: count * _DIGEST], array("q"))
    if rest or digests.content != content:
        raise ValueError("its digests are not those that the manifest stands for")
    digests.times.frombytes(body[count * _DIGEST :])
    return Digests(digests.each, _little(digests.times))


def _little(times: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return times
    swapped = times[:]
    swapped.byteswap()
    return swapped
