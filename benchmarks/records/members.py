"""Files in tar and zip archives, one at a time and within limits; nothing is unpacked.

An archive may come from anybody. So one file is in memory at a time, headers are bounded too, and everything is read to
the end, where the checksums of gzip, bzip2 and xz are.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from benchmarks.records.record import LARGEST_RECORD, RecordError

MOST_FILES = 100_000
MOST_BYTES = 2**30
"""Most bytes to read from an archive's files: enough for the records of twenty thousand trials."""

MOST_EXPANSION = 500
"""Most bytes that an archive may hold, in multiples of its own size; records of one suite reach 70."""

SMALL = 64 * 2**20
"""Bytes that a compressed archive may hold in any case, however small it is."""

_HEADER = 2**20
_BLOCK = 512
_XZ_MEMORY = 256 * 2**20
_ZIPPED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


class _Bytes(Protocol):
    """A source of bytes, read in order."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class ArchiveError(RecordError):
    """An archive that is damaged or too large, or a file that is no archive; the message says what to do."""


@dataclass(frozen=True)
class Member:
    """A file in an archive. label: archive and name, for messages. regular: neither link, device nor folder."""

    name: str
    label: str
    size: int
    regular: bool
    folder: bool
    read: Callable[[], bytes]
    """Its content; only until the next member is asked for."""


def members(path: Path) -> Iterator[Member]:
    """Every member of a tar or zip archive, in its order. Raises ArchiveError, also while iterating."""
    with _said(path):
        yield from _counted(path)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turns every error in reading an archive into an ArchiveError of one line that names it."""
    try:
        yield
    except ArchiveError:
        raise
    except RuntimeError as error:  # zipfile raises it for passwords and for unknown compression
        raise ArchiveError(f"{path}: {error}; make the archive without a password, as tar.gz or plain zip") from None
    except OSError as error:  # bz2 raises it, without a number, for damage
        what = error.strerror or f"a damaged archive ({error}); fetch it again"
        raise ArchiveError(f"{path}: {what}") from None
    except Exception as error:  # noqa: BLE001 (tarfile and zipfile let through what int, decode and struct raise)
        what = str(error) or type(error).__name__
        raise ArchiveError(f"{path}: a damaged archive ({what}); fetch it again") from None


def is_archive(path: Path) -> bool:
    """Whether a file begins as a tar archive, packed or not, or is a zip archive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(_BLOCK)
    return any(map(start.startswith, _FORMATS)) or zipfile.is_zipfile(path) or _begins_a_tar(start)


def _begins_a_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _counted(path: Path) -> Iterator[Member]:
    total = 0
    for number, member in enumerate(_zipped(path) if _is_zip(path) else _tarred(path), 1):
        if number > MOST_FILES:
            raise ArchiveError(f"{path}: more than {MOST_FILES:,} files; split it")

        def read(member: Member = member) -> bytes:
            nonlocal total
            total += member.size
            if member.size > LARGEST_RECORD:
                raise ArchiveError(f"{member.label}: {member.size:,} bytes; a record has at most {LARGEST_RECORD:,}")
            if total > MOST_BYTES:
                raise ArchiveError(f"{path}: its records have more than {MOST_BYTES:,} bytes; split it")
            with _said(path):
                return member.read()

        yield Member(member.name, member.label, member.size, member.regular, member.folder, read)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
    return not any(map(start.startswith, _FORMATS)) and zipfile.is_zipfile(path)


def _zipped(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():

            def read(info: zipfile.ZipInfo = info) -> bytes:
                if info.compress_type not in _ZIPPED:  # lzma in a zip has no memory limit
                    raise NotImplementedError(f"{info.filename} has a compression method that is not read here")
                return archive.read(info)

            kind = stat.S_IFMT(info.external_attr >> 16)
            regular = not info.is_dir() and kind in (0, stat.S_IFREG)
            yield Member(info.filename, _label(path, info.filename), info.file_size, regular, info.is_dir(), read)


def _tarred(path: Path) -> Iterator[Member]:
    with path.open("rb") as file, closing(_unpacked(file)) as unpacked:
        stream = _Stream(unpacked, path)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as archive:  # type: ignore[call-overload]
            while (info := archive.next()) is not None:
                stream.allow(info.size)

                def read(info: tarfile.TarInfo = info) -> bytes:
                    content = archive.extractfile(info)
                    assert content is not None
                    return _whole(content.read(), info)

                regular = info.isreg() and not info.issparse()
                yield Member(info.name, _label(path, info.name), info.size, regular, info.isdir(), read)
        stream.finish()


def _whole(content: bytes, info: tarfile.TarInfo) -> bytes:
    if len(content) != info.size:
        raise EOFError(f"{info.name} is cut short")
    return content


def _label(path: Path, name: str) -> str:
    """A member's name made printable: it may hold anything, even a terminal's commands."""
    return f"{path}:{''.join(c if c.isprintable() else repr(c)[1:-1] for c in name)}"


def _unpacked(file: BinaryIO) -> _Bytes:
    start = file.read(8)
    file.seek(0)
    return next((opened(file) for magic, opened in _FORMATS.items() if start.startswith(magic)), file)


class _Stream:
    """The stream that tarfile reads from. Raises ArchiveError if the headers between two files are too large."""

    def __init__(self, file: _Bytes, path: Path) -> None:
        self._file, self._path, self._ended = file, path, False
        self._left = _HEADER
        self._all = max(MOST_EXPANSION * path.stat().st_size, SMALL)

    def allow(self, size: int) -> None:
        """Let the next file's `size` bytes pass, and the header behind it."""
        self._left = size + _BLOCK + _HEADER

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        self._all -= len(data)
        self._ended |= not data
        if self._left < 0:
            raise ArchiveError(f"{self._path}: a header of more than {_HEADER:,} bytes; no archive of records has such")
        if self._all < 0:
            raise ArchiveError(f"{self._path}: holds more than {MOST_EXPANSION} times its size; no records do so")
        return data

    def finish(self) -> None:
        """Read what is left, so that the packer's checksum is checked. Raises EOFError where the end is missing."""
        if self._ended:
            raise EOFError("its end is missing")
        self._left = self._all + 1
        while data := self.read(2**16):
            if data.strip(b"\0"):
                raise EOFError("there is more behind its end")


class _Xz:
    """Reads xz as lzma.LZMAFile does, in bounded memory: a file's header may ask for gigabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ready = file, b""
        self._decoder = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while len(self._ready) < size:
            if self._decoder.eof:
                rest = (self._decoder.unused_data or self._file.read(2**16)).lstrip(b"\0")
                if not rest:
                    break
                self._decoder = self._new()
            else:
                rest = self._file.read(2**16) if self._decoder.needs_input else b""
                if not rest and self._decoder.needs_input:
                    raise EOFError("it is cut short")
            self._ready += self._decoder.decompress(rest, max_length=2**16)
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


_FORMATS: dict[bytes, Callable[[BinaryIO], _Bytes]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": _Xz,
}
"""How a packed tar archive is unpacked, by its first bytes."""
