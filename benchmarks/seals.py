"""Files that are known to be as they were written, by a digest at their end. Free of torch.

What is sealed can still be opened by what reads its content: a zip archive, as torch writes, may be followed by more.
"""

from __future__ import annotations

import hashlib

_MARK = b"\0sha256\0"


class SealError(Exception):
    """Content that is truncated, altered, of another name, or of a version that wrote no digest."""


def sealed(content: bytes, name: str) -> bytes:
    """`content` and, behind it, a digest over it and `name`: what it is of."""
    return content + _MARK + _digest(content, name)


def unsealed(data: bytes, name: str) -> bytes:
    """The content that `sealed` was given. Raises SealError unless it was the same, under the same name.

    >>> unsealed(sealed(b"content", "name"), "name")
    b'content'
    """
    end = len(data) - len(_MARK) - hashlib.sha256().digest_size
    content, seal = data[: max(end, 0)], data[max(end, 0) :]
    if seal != _MARK + _digest(content, name):
        raise SealError("truncated or altered, or written by an earlier version, without a digest")
    return content


def is_sealed(data: bytes, name: str) -> bool:
    try:
        unsealed(data, name)
    except SealError:
        return False
    return True


def _digest(content: bytes, name: str) -> bytes:
    total = hashlib.sha256(name.encode() + b"\0")
    total.update(content)
    return total.digest()
