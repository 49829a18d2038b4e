"""Policies: what they hold, how they are written as JSON, and what is refused with which message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.quantization.policy import SCHEMA, LayerBits, Policy, PolicyError
from tests.strategies import layer_bits

# Any text may name a layer: dots, quotes, no ASCII. Lone surrogates cannot be written as UTF-8.
NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
POLICIES = st.dictionaries(NAMES, layer_bits(low=1), max_size=6).map(Policy)


@given(POLICIES)
def test_json_gives_the_policy_back_in_its_order(policy: Policy) -> None:
    back = Policy.from_json(policy.to_json())
    assert back == policy
    assert list(back) == list(policy)
    assert hash(back) == hash(policy)


@given(POLICIES)
def test_a_policy_is_written_and_read_as_a_file(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> None:
    path = tmp_path_factory.mktemp("policies") / "policy.json"
    path.write_text(policy.to_json(), encoding="utf-8")
    assert Policy.read(path) == policy


@given(POLICIES)
def test_a_policy_equals_the_mapping_that_it_was_made_of(policy: Policy) -> None:
    assert policy == dict(policy)
    assert len(policy) == len(list(policy))
    assert all(isinstance(bits, LayerBits) for bits in policy.values())


@given(st.dictionaries(NAMES, layer_bits(), min_size=2, max_size=6))
def test_order_does_not_change_equality_or_hash(layers: dict[str, LayerBits]) -> None:
    forward, backward = Policy(layers), Policy(dict(reversed(layers.items())))
    assert forward == backward
    assert hash(forward) == hash(backward)


def test_one_layer_s_bits_make_another_policy() -> None:
    assert Policy({"a": (4, 3)}) != Policy({"a": (3, 4)})
    assert Policy({"a": (4, 3)}) != Policy({"b": (4, 3)})


def test_a_policy_keeps_what_it_was_given_when_that_changes() -> None:
    layers = {"conv": (4, 3)}
    policy = Policy(layers)
    layers["conv"] = (8, 8)
    assert policy["conv"] == LayerBits(weight=4, activation=3)


def test_an_unknown_layer_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="stem"):
        Policy({"conv": (4, 3)})["stem"]


def test_repr_shows_the_bits() -> None:
    assert repr(Policy({"conv": (4, 3)})) == "Policy({'conv': (4, 3)})"


BAD_BITS: list[Any] = [0, 9, -1, 4.0, "4", None, True, [4]]


@pytest.mark.parametrize("bad", BAD_BITS, ids=repr)
@pytest.mark.parametrize("place", [0, 1])
def test_bits_that_are_no_integer_in_one_to_eight_are_refused(bad: Any, place: int) -> None:
    pair: list[Any] = [4, 4]
    pair[place] = bad
    with pytest.raises(PolicyError, match=r"layer 'conv': bits must be two integers in 1\.\.8, got "):
        Policy.from_dict({"schema": SCHEMA, "layers": {"conv": pair}})


@pytest.mark.parametrize("pair", [[], [4], [4, 4, 4], 4, "44", None, {"weight": 4, "activation": 4}], ids=repr)
def test_anything_but_a_pair_is_refused(pair: Any) -> None:
    with pytest.raises(PolicyError, match="layer 'conv': bits must be two integers"):
        Policy.from_dict({"schema": SCHEMA, "layers": {"conv": pair}})


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        4,
        "policy",
        {},
        {"layers": {}},
        {"schema": SCHEMA},
        {"schema": SCHEMA + 1, "layers": {}},
        {"schema": str(SCHEMA), "layers": {}},
        {"schema": SCHEMA, "layers": [["conv", [4, 4]]]},
    ],
    ids=repr,
)
def test_another_schema_is_refused_and_ours_is_shown(data: Any) -> None:
    with pytest.raises(PolicyError, match=f'not a policy: expected {{"schema": {SCHEMA}, "layers"'):
        Policy.from_json(json.dumps(data))


@given(st.text(max_size=20))
def test_text_is_a_policy_or_a_policy_error(text: str) -> None:
    with pytest.raises(PolicyError, match="not a policy"):  # 20 characters are too few for a policy
        Policy.from_json(text)


@given(POLICIES, st.data())
def test_a_truncated_policy_is_refused(policy: Policy, data: st.DataObject) -> None:
    text = policy.to_json().rstrip()
    with pytest.raises(PolicyError, match="not a policy"):
        Policy.from_json(text[: data.draw(st.integers(0, len(text) - 1))])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read the policy .*missing\.json: No such file"):
        Policy.read(tmp_path / "missing.json")


def test_a_folder_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot read the policy"):
        Policy.read(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema": 1, "layers": {"conv": [4, 99]}}', b"\xff\xfe\x00"])
def test_what_is_wrong_inside_a_file_is_told_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=r"bad\.json: "):
        Policy.read(path)
