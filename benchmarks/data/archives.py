"""ImageNet's official archives into DIR/{train,val}/<class>/. Free of torch.

The three files are those of ILSVRC 2012: train is a tar of one tar per class, val one tar of all images, and the
development kit says which image of val is of which class. Only plain files are taken from an archive, under the last
part of their names, into folders named after WordNet's synsets; a class appears whole or not at all.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from benchmarks.data.folders import DataError

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"

_DAMAGED = (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What tarfile raises for files that are no archives, or truncated; ValueError for names that no file can have."""

_WNID = re.compile(r"n\d{8}", re.ASCII)

Progress = Callable[[str, int, int], None]
"""Called with a task's name, how much is done, and the total."""


def unpack(archives: Path, folder: Path, progress: Progress) -> None:
    """Unpack what is not unpacked yet. Raises DataError for archives that are missing, damaged or unexpected."""
    for name in (TRAIN, VAL, DEVKIT):
        if not (archives / name).is_file():
            raise DataError(f"no {name} in {archives}; get it from image-net.org (ILSVRC 2012), an account is needed")
    needed = sum((archives / name).stat().st_size for name in (TRAIN, VAL))
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (folder / "train").is_dir() and (free := shutil.disk_usage(there).free) < needed:
        raise DataError(f"unpacking needs {needed / 1e9:.1f} GB, {there} has {free / 1e9:.1f} GB; name another --data")
    try:
        classes = val_classes(archives / DEVKIT)
        _unpack_train(archives / TRAIN, set(classes), folder / "train", progress)
        _unpack_val(archives / VAL, classes, folder / "val", progress)
    except OSError as error:
        raise DataError(f"cannot unpack the archives in {archives} into {folder}: {error}") from error


def _unpack_train(archive: Path, classes: set[str], train: Path, progress: Progress) -> None:
    total, left = archive.stat().st_size, set(classes)
    with _opened(archive) as outer:
        for member in outer:
            name = PurePosixPath(member.name).name
            content = outer.extractfile(member) if member.isfile() and name.endswith(".tar") else None
            if content is None or name.removesuffix(".tar") not in classes:
                raise DataError(f"{archive} holds {member.name!r}, which is no tar of a class of {DEVKIT}")
            done = train / name.removesuffix(".tar")
            if not done.is_dir():
                with tarfile.open(fileobj=content) as inner, _whole(done) as part:
                    for image, file in _files(inner):
                        _copy(file, part / image)
            left.discard(done.name)
            progress("unpacking train", member.offset + member.size, total)
    if left:
        raise DataError(f"{archive} lacks {len(left)} of {len(classes)} classes, such as {min(left)}; fetch it again")


def _unpack_val(archive: Path, classes: list[str], val: Path, progress: Progress) -> None:
    """The k-th image by name is of class `classes[k]`."""
    if val.is_dir():
        return
    left = set(range(1, len(classes) + 1))
    with _opened(archive) as images, _whole(val) as part:
        for name, file in _files(images):
            number = PurePosixPath(name).stem.rpartition("_")[2]
            if not number.isdecimal() or not 1 <= int(number) <= len(classes):
                expected = f"ILSVRC2012_val_00000001.JPEG to _{len(classes):08d}"
                raise DataError(f"{archive} holds {name!r}; expected {expected}")
            if int(number) not in left:
                raise DataError(f"{archive} holds two images with the number {number}; fetch it again")
            left.remove(int(number))
            place = part / classes[int(number) - 1]
            place.mkdir(exist_ok=True)
            _copy(file, place / name)
            progress("unpacking val", len(classes) - len(left), len(classes))
        if left:
            raise DataError(f"{archive} lacks {len(left)} of {len(classes)} images; fetch it again")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """An open archive. Raises DataError if it is none or truncated, also while it is read inside."""
    try:
        with tarfile.open(archive) as found:
            yield found
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # tarfile writes a line per kind of archive that it tried
        raise DataError(f"cannot unpack {archive}: {reason}; fetch it again") from error


def val_classes(devkit: Path) -> list[str]:
    """The class of each image of val, in the order of their names, from the development kit.

    Raises DataError for a kit that is damaged or lacks them.
    """
    with _opened(devkit) as kit:
        found = {PurePosixPath(member.name).name: kit.extractfile(member) for member in kit if member.isfile()}
        truth, meta = found.get("ILSVRC2012_validation_ground_truth.txt"), found.get("meta.mat")
        if truth is None or meta is None:
            raise DataError(f"{devkit} lacks the ground truth of val or meta.mat; is it the kit for tasks 1 and 2?")
        numbers, table = truth.read(), meta.read()
    try:
        return _named(numbers, table)
    except Exception as error:  # scipy raises what it likes for a file that is none of MATLAB's
        raise DataError(f"{devkit} does not say val's classes as ILSVRC 2012 does ({error!r}); get it again") from error


def _named(numbers: bytes, table: bytes) -> list[str]:
    """The class name for each line of the ground truth. Raises ValueError for names that are no synset's."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
    names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    if odd := [name for name in names.values() if not _WNID.fullmatch(name)]:
        raise ValueError(f"{odd[0]!r} is no class; expected n and eight digits")
    return [names[int(line)] for line in numbers.split()]


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Plain files with the last part of their names; links, devices and folders are skipped."""
    for member in archive:
        file, name = archive.extractfile(member) if member.isfile() else None, PurePosixPath(member.name).name
        if file is not None and name not in ("", ".", ".."):
            yield name, file


def _copy(file: IO[bytes], path: Path) -> None:
    with path.open("wb") as out:
        shutil.copyfileobj(file, out)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is full."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
