"""Where a dataset's files are and whether they are laid out right; free of torch, so that planning is fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.suites.plugins import DATASETS, plugged
from benchmarks.suites.spec import DataSpec

DATA_VARIABLE = "MPBENCH_DATA"
"""Environment variable that names the folder with one folder per dataset."""

_WITHOUT_FILES = {"digits"}
_GENERATED = {"procedural"}
_ADVICE = {
    "imagefolder": "name the folder that holds train/ and val/ with --data",
    "cifar10": "run: python runner.py prepare --suite cifar10",
    "cifar100": "run: python runner.py prepare --suite cifar100",
}
Warn = Callable[[str], None]
"""Called with one line about what was wrong and has been corrected."""

CACHE = "cache-{}"
"""Where a folder of images keeps copies brought to a short side."""


def default_folder(dataset: str) -> Path:
    """$MPBENCH_DATA/<dataset>, or ./data/<dataset> where the variable is not set."""
    return Path(os.environ.get(DATA_VARIABLE) or "data") / dataset


class DataError(Exception):
    """Data that is missing, empty, in the wrong layout or unreadable; the message says where and what to do."""


def to_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def shown(path: object) -> str:
    r"""A path as it may be printed: unprintable characters, line ends included, are written as escapes.

    >>> shown("a\nb c")
    'a\\nb c'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(path))


def find_folder(dataset: str, given: Path | None) -> Path | None:
    """The folder of a dataset's files: as given, else $MPBENCH_DATA/<dataset>, else ./data/<dataset>; None for digits.

    A plug-in's dataset may have none. Generated images are kept in the first of these that is named, whether or not it
    exists yet. Raises DataError naming the places that were looked at.
    """
    if dataset in _GENERATED:
        return given or default_folder(dataset)
    if given is not None and not given.is_dir():
        advice = "leave out --data" if dataset in _WITHOUT_FILES else "name another with --data"
        raise DataError(f"no data folder {shown(given)}; {_ADVICE.get(dataset, advice)}")
    if dataset in _WITHOUT_FILES:
        return None
    if given is not None:
        return given
    root = os.environ.get(DATA_VARIABLE)
    places = ([Path(root) / dataset] if root else []) + [Path("data") / dataset]
    for place in places:
        if place.is_dir():
            return place
    if dataset in plugged(DATASETS):
        return None
    variable = f"${DATA_VARIABLE}/{dataset}" + ("" if root else f" ({DATA_VARIABLE} is not set)")
    raise DataError(f"no data for {dataset!r}: looked in {variable} and in {places[-1].resolve()}; {_ADVICE[dataset]}")


def class_names(folder: Path) -> list[str]:
    """The class folders of DIR/train, sorted. Raises DataError unless DIR has train/<class>/ and val/<class>/."""
    for part in (folder / "train", folder / "val"):
        if not part.is_dir():
            raise DataError(
                f"{shown(folder)} is not in ImageNet's layout: no folder {shown(part)}; "
                "expected train/<class>/ and val/<class>/"
            )
        if not any(path.is_dir() for path in part.iterdir()):
            raise DataError(f"{shown(part)} is empty: expected a folder of images per class, {shown(part)}/<class>/")
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    if len(names) < 2:
        raise DataError(f"{shown(folder / 'train')} has {len(names)} class folder, at least 2 are needed")
    return names


def fit_classes(spec: DataSpec, folder: Path | None) -> DataSpec:
    """The dataset with its folder's number of classes; datasets that do not come from a folder stay as they are."""
    if folder is None or spec.dataset != "imagefolder":
        return spec
    return spec.model_copy(update={"classes": len(class_names(images_folder(folder, spec.short_side)))})


def images_folder(folder: Path, short_side: int | None) -> Path:
    """Where the images are: a cache of that short side in the folder, if one is wanted and there, else the folder."""
    cache = folder / CACHE.format(short_side)
    return cache if short_side is not None and cache.is_dir() else folder
