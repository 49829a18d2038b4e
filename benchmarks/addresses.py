"""Addresses as they may be shown, kept or logged: without user, password and query."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/@]*@)?[^\s'\"<>]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)", re.DOTALL)
_MISTYPED = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?/{0,2})([^/\s@:=,{}\[\]]*:\S*)@(.+)", re.DOTALL)
"""An address whose `://` was left out or mistyped, and that carries a password all the same."""
_SHORTEST = 3
"""Characters; a shorter part of an address occurs in other text too, so it is not replaced there."""


def shown(address: str) -> str:
    """An address without its userinfo, query and fragment. What cannot be taken apart safely is left out whole.

    >>> shown("http://me:secret@example.org:5000/a?token=x"), shown("s3://bucket/folder"), shown("runs")
    ('http://example.org:5000/a', 's3://bucket/folder', 'runs')
    >>> shown("http://me:se/cret@example.org")
    'http://...'
    >>> shown("me:secret@example.org/a"), shown("http:/me:secret@example.org")
    ('example.org/a', 'http:/example.org')
    """
    if not (parts := _SCHEME.fullmatch(address)):
        return f"{found[1]}{found[3]}" if (found := _MISTYPED.fullmatch(address)) else address
    scheme, rest = parts.groups()
    authority, *after = re.split(r"(?=[/?#])", rest, maxsplit=1)
    path = "".join(after)
    if "@" in path and (":" in authority or "@" in authority):  # a password with a slash, or a path with an @
        return f"{scheme}..."
    return scheme + authority.rpartition("@")[2] + re.split(r"[?#]", path, maxsplit=1)[0]


def without_secrets(text: str, *addresses: str | None) -> str:
    """A text with every address in it as `shown`, and with *** for the secrets of `addresses` anywhere else in it.

    >>> without_secrets("no bucket key:secret in s3://key:secret@bucket", "s3://key:secret@bucket")
    'no bucket *** in s3://bucket'
    """
    for address in filter(None, addresses):
        text = text.replace(address, shown(address))
    text = _ADDRESS.sub(lambda found: shown(found[0]), text)
    secrets = {secret for address in filter(None, addresses) for secret in _secrets(address)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(address: str) -> set[str]:
    """The parts that `shown` leaves out, together and one by one, as written and decoded."""
    if parts := _SCHEME.fullmatch(address):
        userinfo = parts[2].rpartition("@")[0]
    elif parts := _MISTYPED.fullmatch(address):
        userinfo = parts[2]
    else:
        return set()
    _, colon, password = userinfo.partition(":")
    query = _query(address)
    found = {userinfo, password if colon else "", query, *(pair.partition("=")[2] for pair in query.split("&"))}
    return {secret for part in found for secret in (part, unquote(part)) if len(secret) >= _SHORTEST}


def _query(address: str) -> str:
    try:
        return urlsplit(address).query
    except ValueError:  # such as a bracket that is not closed
        return ""
