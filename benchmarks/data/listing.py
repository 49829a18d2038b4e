"""Which images a folder in ImageNet's layout holds: as its manifest says, else as they lie there. Free of torch.

`prepare` writes the manifest, DIR/manifest.json, after decoding every image. With it no trial has to list a million
files at its start, and unreadable files are known beforehand. Beside it lie the files' own digests and times, see
benchmarks/data/digests.py.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.data.digests import Files, content_of
from benchmarks.data.folders import CACHE, DataError, class_names, images_folder, shown
from benchmarks.files import write_atomic
from benchmarks.suites.spec import DataSpec

MANIFEST = "manifest.json"
COPIES = "copies.json"
"""Beside the manifest of copies: whose they are, and their short side."""
SCHEMA = 2
SUFFIXES = {
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
"""Files that are read as images, in small or capital letters; which decoder reads one is decided by its content."""
PARTS = ("train", "val")
_NAMED = 5
"""How many unreadable images a message names."""
_SUFFIXES_NAMED = 8


@dataclass(frozen=True)
class Listing:
    """files: every image file. unreadable: path -> why; None if no image has been decoded yet.

    content: SHA-256 over the files' own, in their order; None if they have not been read. short_side: pixels that a
    cache's images were resized to; None: not resized. left_out: suffix -> how many files that are not read as images.
    """

    files: Files
    unreadable: Mapping[str, str] | None = None
    content: str | None = None
    short_side: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def classes(self, part: str) -> Iterator[tuple[str, list[str]]]:
        """Each class with the paths of its files in a part, by name, without those found unreadable."""
        bad = self.unreadable or {}
        for place, files in self.files.items():
            if place.startswith(f"{part}/"):
                yield place.split("/")[1], [path for name, _ in files if (path := f"{place}/{name}") not in bad]

    def paths(self, part: str) -> Iterator[str]:
        return (path for _, paths in self.classes(part) for path in paths)

    def count(self, part: str) -> int:
        return sum(len(files) for place, files in self.files.items() if place.startswith(f"{part}/"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, sizes and content, and over the names of what cannot be read.

        It does not depend on where the folder is. Zero bytes stand between entries, as no name has one.
        """
        places = ((place, files) for place, files in self.files.items() if files)
        blocks = ["\0".join([f"{place}/{name}\0{size}" for name, size in files]) for place, files in places]
        blocks += [f"without\0{path}" for path in sorted(self.unreadable or {})]
        blocks += [f"content\0{self.content}"] if self.content else []
        return hashlib.sha256("\0".join(blocks).encode(errors="surrogateescape")).hexdigest()


def listing_of(folder: Path, *, short_side: int | None, allow_bad_images: int) -> Listing:
    """The images of a folder that a suite may use. Without a manifest every file is read for the digest.

    Raises DataError for a manifest that does not fit, and for more unreadable images than are allowed.
    """
    if not (folder / MANIFEST).exists():
        if short_side is not None:
            raise DataError(f"{shown(folder)} has no copies of its images; {advice(folder, short_side)}")
        if allow_bad_images:
            raise DataError(f"{shown(folder)} has not been looked through for bad images; {advice(folder)}")
        found = scan(folder)
        return replace(found, content=content_of(folder, found.files))
    listing = read_manifest(folder)
    if listing.short_side != short_side:
        raise _other_size(folder, listing.short_side, short_side)
    bad = sorted(listing.unreadable or {})
    if len(bad) > allow_bad_images:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise DataError(
            f"{len(bad)} images in {shown(folder)} cannot be read: {', '.join(map(shown, bad[:_NAMED]))}{more}; "
            f"replace them and run prepare again, or leave them out with --allow-bad-images {len(bad)}"
        )
    return listing


def _other_size(folder: Path, there: int | None, wanted: int | None) -> DataError:
    found, asked = (f"with a short side of {side}" if side else "as they came" for side in (there, wanted))
    what = advice(folder, wanted) if wanted else f"add --set data.short_side={there}"
    return DataError(f"{shown(folder)} holds images {found}, the suite wants them {asked}; {what}")


def check_manifest(spec: DataSpec, folder: Path, *, allow_bad_images: int) -> None:
    """Raises DataError as `listing_of` does, before anything runs; without a manifest it checks nothing."""
    place = images_folder(folder, spec.short_side)
    if (place / MANIFEST).exists() or spec.short_side is not None or allow_bad_images:
        listing_of(place, short_side=spec.short_side, allow_bad_images=allow_bad_images)


def advice(folder: Path, cache: int | None = None) -> str:
    """Advice to run `prepare` again: on this folder or, for copies, on the folder of their originals."""
    run = "run: python runner.py prepare --suite imagenet-full --data"
    if named := re.fullmatch(CACHE.format(r"(\d+)"), folder.name):
        return f"{run} {_argument(folder.parent)} --cache {cache or named[1]}"
    if (folder / COPIES).exists():
        given = f"with --cache {cache or 'as before'} and --to {_argument(folder)}"
        return f"{run} and the folder that these are copies of, {given}"
    return f"{run} {_argument(folder)}" + (f" --cache {cache}" if cache else "")


def _argument(folder: Path) -> str:
    return shlex.quote(shown(folder))


def scan(folder: Path) -> Listing:
    """The images that lie in a folder. Raises DataError for classes without images, or of one part only."""
    places, left_out = _walk(folder)
    files = {place: sorted((name, _size(folder / place / name)) for name in names) for place, names in places.items()}
    return Listing(files, left_out=left_out)


def left_out_of(folder: Path) -> Mapping[str, int]:
    """Suffix -> how many files are not read as images; only names are read. Raises DataError as `scan` does."""
    return _walk(folder)[1]


def left_out_text(left_out: Mapping[str, int]) -> str:
    """What is left out, in one line, the most frequent first; empty if nothing is."""
    if not left_out:
        return ""
    ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count:,} {shown(suffix)}" for suffix, count in ranked[:_SUFFIXES_NAMED])
    more = sum(count for _, count in ranked[_SUFFIXES_NAMED:])
    kinds = ", ".join(sorted(SUFFIXES))
    return f"left out: {named}{f', {more:,} others' if more else ''}; only files ending in {kinds} are read"


def _walk(folder: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Names of image files by place, and the number of other files by suffix."""
    names, left_out, places = class_names(folder), Counter[str](), dict[str, list[str]]()
    for part in PARTS:
        with os.scandir(folder / part) as entries:
            left_out.update(_kind(entry) for entry in entries if not entry.is_dir())
        for name in _same(folder, part, names):
            places[f"{part}/{name}"] = _images(folder / part / name, left_out)
    return places, dict(sorted(left_out.items()))


def _same(folder: Path, part: str, names: Sequence[str]) -> Sequence[str]:
    if extra := sorted({path.name for path in (folder / part).iterdir() if path.is_dir()} - set(names)):
        raise DataError(f"{shown(folder / part)} has classes that train lacks: {', '.join(map(shown, extra[:5]))}")
    return names


def _images(place: Path, left_out: Counter[str]) -> list[str]:
    """Names of the files of a class with an image's suffix, unread; counts the other files."""
    found: list[str] = []
    with os.scandir(place) if place.is_dir() else _nothing() as entries:
        for entry in entries:
            if _suffix(entry.name) in SUFFIXES:
                found.append(entry.name)
            else:
                left_out[_kind(entry)] += 1
    if not found:
        raise DataError(f"no images in {shown(place)}; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found


@contextmanager
def _nothing() -> Iterator[Iterator[os.DirEntry[str]]]:
    yield iter(())


def _kind(entry: os.DirEntry[str]) -> str:
    return "folders" if entry.is_dir() else _suffix(entry.name) or "without a suffix"


def _suffix(name: str) -> str:
    dot = name.rfind(".")  # a twentieth of a Path's time, for a million names
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a dangling link, which counts as unreadable once it is read
        return 0


def write_manifest(folder: Path, listing: Listing) -> None:
    """Raises OSError where the folder cannot be written to."""
    body = {
        "schema": SCHEMA,
        "digest": listing.digest,
        "content": listing.content,
        "short_side": listing.short_side,
        "images": {part: listing.count(part) for part in PARTS},
        "left_out": listing.left_out,
        "unreadable": listing.unreadable,
        "files": listing.files,
    }
    write_atomic(folder / MANIFEST, lambda file: file.write(json.dumps(body).encode()))


def read_manifest(folder: Path) -> Listing:
    """Raises DataError for a manifest that is damaged, edited, of an earlier schema, or of other classes."""
    path = folder / MANIFEST
    try:
        with _no_collections():
            listing = _parsed(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{shown(path)} is no sound manifest ({error}); {advice(folder)}") from error
    if class_names(folder) != sorted({place.split("/")[1] for place in listing.files}):
        raise DataError(f"{shown(folder)} has other classes than {path.name} says; {advice(folder)}")
    return listing


def _parsed(text: bytes) -> Listing:
    """Raises ValueError, KeyError or TypeError for what is no manifest, or an altered one."""
    body = json.loads(text)
    if body["schema"] == 1:
        raise ValueError("it was made by an earlier version, which kept no digests of single files")
    if body["schema"] != SCHEMA:
        raise ValueError(f"schema {body['schema']}, expected {SCHEMA}")
    files, left_out = _checked(body["files"]), {str(suffix): int(count) for suffix, count in body["left_out"].items()}
    listing = Listing(files, dict(body["unreadable"]), body["content"], body["short_side"], left_out)
    if not isinstance(listing.content, str) or listing.digest != body["digest"]:
        raise ValueError("its files are not those that its digest stands for")
    return listing


@contextmanager
def _no_collections() -> Iterator[None]:
    """Switches garbage collection off: it would search millions of new lists again and again, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checked(files: dict[str, Any]) -> Files:
    """The files of a manifest, checked. Empties `files`: two copies of ImageNet's rows take half a gigabyte more.

    Raises ValueError and TypeError for places and names that could lead out of the folder.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for place in list(files):
        rows = [(name, size) for name, size in files.pop(place)]
        part, _, name = place.partition("/")
        if part not in PARTS or not _plain([name, *(name for name, _ in rows)]):
            raise ValueError(f"{place!r} is no place of images")
        found[place] = rows
    return found


def _plain(names: Sequence[str]) -> bool:
    """Whether these can be names of files in a folder: anything, a backslash too, that does not lead out of it."""
    return {"", ".", ".."}.isdisjoint(names) and not set("".join(names)) & {"/", "\0"}
