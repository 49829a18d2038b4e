"""Files that are written whole or not at all, and locks that processes share. Free of torch."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

ABANDONED_SECONDS = 24 * 3600.0
"""After this time another machine's unfinished file counts as left behind."""

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}", re.DOTALL)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file that then appears at `path` whole or not at all, also through a kill or a full disk.

    Once it returns, file and name are on the disk and survive a power failure. Unfinished files of killed writers in
    the same folder are removed. Raises OSError that names the file.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{token_hex(4)}")
    try:
        with _begin(temporary) as file:
            write(file)
            file.flush()
            _sync(file.fileno())
        _rename(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _begin(path: Path) -> BinaryIO:
    return path.open("xb")


_sync, _rename = os.fsync, os.replace


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it durably; in an existing folder, remove what killed writers left."""
    if folder.is_dir():
        _forget_once(folder)
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, unless its file system cannot do that for folders."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(number)


@cache
def _forget_once(folder: Path) -> None:
    _forget(folder, None)


def forget_unfinished(path: Path) -> None:
    """Remove unfinished files that killed processes left while writing `path`."""
    _forget(path.parent, path.name)


def _forget(folder: Path, name: str | None) -> None:
    """Remove unfinished files of killed writers from a folder, of one name or of any.

    Only on its own machine, and in its container, is a process known to be gone; a file of another machine counts as
    left behind once it is a day old.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            found = _UNFINISHED.fullmatch(entry.name)
            if not found or (name is not None and found["name"] != name):
                continue
            with suppress(FileNotFoundError):
                here = found["machine"] == _machine()
                gone = here and not Path("/proc", found["pid"]).exists()
                if gone or time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                    Path(entry.path).unlink()


@cache
def _machine() -> str:
    """An id of this machine, boot and container: in another one, process numbers mean other processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def write_text_atomic(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Content of a regular file of at most `most` bytes. Raises OSError, also for a pipe, a device, or a link.

    follow: whether a link is as good as the file that it leads to. A pipe is never waited for.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        number = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "it is a link, which is not followed here", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with os.fdopen(number, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`; yields whether it was obtained. The system frees it however a process ends.

    Raises OSError for a file system without locks, with what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise OSError(error.errno, _NO_LOCKS, str(path)) from None
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield True


_NO_LOCKS = (
    "its file system has no locks, without which two runs would write the same files: choose an output folder on "
    "another, or have it mounted with locks (NFS: start rpc.statd; Lustre: mount with -o flock)"
)
