"""Addresses: which parts are shown, and that secrets are not."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.addresses import shown, without_secrets

SECRETS = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), min_size=12, max_size=24)
SCHEMES = st.sampled_from(["http", "https", "postgresql+psycopg2", "s3", "sftp", "mysql"])


def addresses(scheme: str, secret: str) -> list[str]:
    """A secret wherever addresses carry one, decoded as it may not be, and encoded as it should be."""
    safe = quote(secret, safe="")
    return [
        f"{scheme}://{user}{each}@host:80/path" for user in ("me:", ":", "") for each in (secret, safe) if user or each
    ] + [f"{scheme}://host/path?token={safe}&x=1", f"{scheme}://host/path#{safe}", f"{scheme}://me:{safe}@host"]


@given(SCHEMES, SECRETS)
def test_no_part_of_a_secret_is_shown(scheme: str, secret: str):
    for address in addresses(scheme, secret):
        if address.startswith(f"{scheme}://{secret}@"):  # a bare token may hold a slash: then it is the host
            continue
        seen = shown(address)
        assert quote(secret, safe="") not in seen
        assert secret not in seen
        message = f"no '{address}' at {address}: {secret!r} was refused"
        told = without_secrets(message, address)
        assert address not in told
        assert f"{secret}@" not in told


@given(SCHEMES, st.from_regex(r"[a-z]{1,9}(:[0-9]{1,4})?(/[a-z0-9._-]{0,9}){0,3}", fullmatch=True))
def test_an_address_without_secrets_is_shown_as_it_is(scheme: str, place: str):
    address = f"{scheme}://{place}"
    assert shown(address) == address
    assert without_secrets(f"see {address}, there", address) == f"see {address}, there"


def test_what_is_no_address_is_left_alone():
    for text in ("a@b.org", "runs/a?b#c", "sqlite:////home/me@work/mlflow.db", "10 % of x://", "file:///data/a@2x.png"):
        assert without_secrets(text) == text


def test_secrets_are_left_out_where_they_stand_alone():
    address = "s3://AKIA77:wJal%2Fr+9@bucket/x?endpoint=abc123"
    told = without_secrets("Invalid bucket name AKIA77:wJal/r+9 for key wJal%2Fr+9 at abc123", address)
    assert told == "Invalid bucket name *** for key *** at ***"


@pytest.mark.parametrize("start", ["", "//", "postgresql:", "https:/", "s3:"])
def test_an_address_that_is_mistyped_shows_no_password(start):
    address = f"{start}somebody:Tr0ub4dor@db.example.org:5432/runs"
    assert shown(address) == f"{start}db.example.org:5432/runs"
    assert "Tr0ub4dor" not in without_secrets(f"takes no {address}, Tr0ub4dor", address)


def test_a_quote_in_a_password_ends_no_address():
    told = without_secrets("no answer from 'http://me:it's\"me@host:80/a', tried twice")
    assert told == "no answer from 'http://host:80/a', tried twice"


def test_what_options_are_given_is_no_address():
    for text in ("recipe.x={a: b@c}", "uniform:w4a4", "quick", "a,b", "hawq:x", "me@host", "data={dataset: x, y: z@w}"):
        assert shown(text) == text
