"""Files with a digest at their end, which shows whether they are as they were written. Free of torch.

Programs that read the content can still open a sealed file: more bytes may follow a zip archive, which torch writes.
"""

from __future__ import annotations

import hashlib

_MARK = b"\0sha256\0"


class SealError(Exception):
    """Content that is truncated, altered, sealed under another name, or from a version that wrote no digest."""


def sealed(content: bytes, name: str) -> bytes:
    """`content`, followed by a digest over it and `name`, which says what it belongs to."""
    return content + _MARK + _digest(content, name)


def unsealed(data: bytes, name: str) -> bytes:
    """The content that `sealed` was given. Raises SealError if content or name are different.

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
