"""Which images a folder in ImageNet's layout holds: as its manifest says, else as they lie there. Free of torch.

`prepare` writes the manifest, DIR/manifest.json, after decoding every image. With it, nobody walks through a million
files at the start of each trial, and what cannot be read is known beforehand.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.data.folders import CACHE, DataError, class_names, images_folder
from benchmarks.files import write_atomic
from benchmarks.suites.spec import DataSpec

MANIFEST = "manifest.json"
COPIES = "copies.json"
"""Beside the manifest of copies: whose they are, and their short side."""
SCHEMA = 1
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm"}
PARTS = ("train", "val")
_NAMED = 5
"""How many unreadable images a message names."""

Files = Mapping[str, Sequence[tuple[str, int]]]
"""`train/<class>` or `val/<class>` -> file names and sizes in bytes, both ascending by name."""


@dataclass(frozen=True)
class Listing:
    """files: every image file. unreadable: path -> why; None where nobody has looked.

    content: SHA-256 over the files' own. short_side: pixels that a cache's images were brought to; None: as they came.
    """

    files: Files
    unreadable: Mapping[str, str] | None = None
    content: str | None = None
    short_side: int | None = None

    def classes(self, part: str) -> Iterator[tuple[str, list[str]]]:
        """Each class with the paths of its files in a part that nobody has found unreadable, by name."""
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
        """SHA-256 over names and sizes, and over the names of what is left out: independent of where the folder is."""
        places = ((place, files) for place, files in self.files.items() if files)
        blocks = ["\n".join([f"{place}/{name} {size}" for name, size in files]) for place, files in places]
        blocks += [f"without {path}" for path in sorted(self.unreadable or {})]
        return hashlib.sha256("\n".join(blocks).encode(errors="surrogateescape")).hexdigest()


def listing_of(folder: Path, *, short_side: int | None, allow_bad_images: int) -> Listing:
    """What a suite may use of a folder.

    Raises DataError for a manifest that does not fit, and for more unreadable images than are allowed.
    """
    if not (folder / MANIFEST).exists():
        if short_side is not None:
            raise DataError(f"{folder} has no copies of its images; {_command(folder, short_side)}")
        if allow_bad_images:
            raise DataError(f"{folder} has not been looked through for bad images; {_command(folder)}")
        return scan(folder)
    listing = read_manifest(folder)
    if listing.short_side != short_side:
        raise _other_size(folder, listing.short_side, short_side)
    bad = sorted(listing.unreadable or {})
    if len(bad) > allow_bad_images:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise DataError(
            f"{len(bad)} images in {folder} cannot be read: {', '.join(bad[:_NAMED])}{more}; replace them and run "
            f"prepare again, or leave them out with --allow-bad-images {len(bad)}"
        )
    return listing


def _other_size(folder: Path, there: int | None, wanted: int | None) -> DataError:
    found, asked = (f"with a short side of {side}" if side else "as they came" for side in (there, wanted))
    advice = _command(folder, wanted) if wanted else f"add --set data.short_side={there}"
    return DataError(f"{folder} holds images {found}, the suite wants them {asked}; {advice}")


def check_manifest(spec: DataSpec, folder: Path, *, allow_bad_images: int) -> None:
    """Raises DataError as `listing_of` does, before anything runs; where there is no manifest it looks at nothing."""
    place = images_folder(folder, spec.short_side)
    if (place / MANIFEST).exists() or spec.short_side is not None or allow_bad_images:
        listing_of(place, short_side=spec.short_side, allow_bad_images=allow_bad_images)


def _command(folder: Path, cache: int | None = None) -> str:
    """What looks through a folder again, or makes copies in it again: `prepare` of the folder that they are of."""
    run = "run: python runner.py prepare --suite imagenet-full --data"
    if named := re.fullmatch(CACHE.format(r"(\d+)"), folder.name):
        return f"{run} {folder.parent} --cache {cache or named[1]}"
    if (folder / COPIES).exists():
        return f"{run} and the folder that these are copies of, with --cache {cache or 'as before'} and --to {folder}"
    return f"{run} {folder}" + (f" --cache {cache}" if cache else "")


def scan(folder: Path) -> Listing:
    """The images that lie in a folder. Raises DataError for classes without images, or of one part only."""
    names = class_names(folder)
    return Listing(
        {f"{part}/{name}": _images(folder / part, name) for part in PARTS for name in _same(folder, part, names)}
    )


def _same(folder: Path, part: str, names: Sequence[str]) -> Sequence[str]:
    if extra := sorted({path.name for path in (folder / part).iterdir() if path.is_dir()} - set(names)):
        raise DataError(f"{folder / part} has classes that train lacks: {', '.join(extra[:5])}")
    return names


def _images(part: Path, name: str) -> list[tuple[str, int]]:
    folder = part / name
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not found:
        raise DataError(f"no images in {folder}; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return sorted((path.name, _size(path)) for path in found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing, which is found unreadable when it is looked at
        return 0


def write_manifest(folder: Path, listing: Listing) -> None:
    """Raises OSError where the folder cannot be written to."""
    body = {
        "schema": SCHEMA,
        "digest": listing.digest,
        "content": listing.content,
        "short_side": listing.short_side,
        "images": {part: listing.count(part) for part in PARTS},
        "unreadable": listing.unreadable,
        "files": listing.files,
    }
    write_atomic(folder / MANIFEST, lambda file: file.write(json.dumps(body).encode()))


def read_manifest(folder: Path) -> Listing:
    """Raises DataError for a manifest that is damaged, edited, or of other classes than the folder."""
    path = folder / MANIFEST
    try:
        with _no_collections():
            listing = _parsed(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no sound manifest ({error}); {_command(folder)}") from error
    if class_names(folder) != sorted({place.split("/")[1] for place in listing.files}):
        raise DataError(f"{folder} has other classes than {path.name} says; {_command(folder)}")
    return listing


def _parsed(text: bytes) -> Listing:
    """Raises ValueError, KeyError or TypeError for what is no manifest, or an altered one."""
    body = json.loads(text)
    if body["schema"] != SCHEMA:
        raise ValueError(f"schema {body['schema']}, expected {SCHEMA}")
    listing = Listing(_checked(body["files"]), dict(body["unreadable"]), body["content"], body["short_side"])
    if listing.digest != body["digest"]:
        raise ValueError("its files are not those that its digest stands for")
    return listing


@contextmanager
def _no_collections() -> Iterator[None]:
    """Millions of new lists without a cycle among them would be searched for garbage again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checked(files: dict[str, Any]) -> Files:
    """Empties `files`: ImageNet's rows would fill half a gigabyte beside their copy.

    Raises ValueError and TypeError for places and names that could lead out of the folder.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for place in list(files):
        rows = [(name, size) for name, size in files.pop(place)]
        part, _, name = place.partition("/")
        if part not in PARTS or not _plain([name, *(name for name, _ in rows)]):
            raise ValueError(f"{place} is no place of images")
        found[place] = rows
    return found


def _plain(names: Sequence[str]) -> bool:
    return {"", ".", ".."}.isdisjoint(names) and not set("".join(names)) & {"/", "\\", "\0"}
