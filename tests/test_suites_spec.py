"""What a trial's identity depends on, and what it does not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.messages import SuiteError
from benchmarks.planning import KINDS_OF_OLD, plan
from benchmarks.suites.spec import (
    ComputeSpec,
    OptimizerSpec,
    QuantizerSpec,
    Recipe,
    Space,
    TrialSpec,
    canonical_json,
    digest,
)
from benchmarks.suites.suite import load_suite
from tests.harness import ROOT, tiny_suite

GOLDEN = Path(__file__).parent / "golden" / "trial_ids.json"
"""Remade by `python -m tests.test_suites_spec`, after a change that is meant to change results."""

# Whole numbers that JSON's readers keep exactly; text of any kind; no NaN, which canonical JSON refuses.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def a_spec(**changes: Any) -> TrialSpec:
    spec = next(trial.spec for trial in plan(load_suite("smoke")).trials if trial.row == "metamix")
    return spec.model_copy(update=changes)


@given(values)
def test_canonical_json_says_the_value_and_nothing_else(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), values, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_matter(value, dice):
    keys = list(value)
    dice.shuffle(keys)
    assert canonical_json({key: value[key] for key in keys}) == canonical_json(value)


def test_what_is_no_number_has_no_identity():
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"lr": math.nan})


def test_a_digest_is_pinned():
    # printf '{"a":[1,2.5,null]}' | sha256sum, the first 16 digits
    assert digest({"a": [1, 2.5, None]}) == "d975df8927b51788"


def test_a_spec_survives_its_json():
    spec = a_spec()
    read = TrialSpec.model_validate(json.loads(spec.model_dump_json()))
    assert (read, read.id) == (spec, spec.id)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"draw": 1},
        {"protocol": 2},
        {"ceiling_bops": 1_000_000},
        {"kinds": "0123456789abcdef"},
        {"pretraining": None},
        {"compute": ComputeSpec(epochs=2, search_share=0.6)},
        {"compute": ComputeSpec(epochs=1, search_share=0.5)},
        {"space": Space(weights=(4,), activations=(3, 4))},
        {"recipe": Recipe(optimizer=OptimizerSpec(lr=0.002), batch_size=16, micro_batch=8)},
        {"recipe": Recipe(optimizer=OptimizerSpec(lr=0.001), batch_size=16, micro_batch=16)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_results_hang_on_changes_the_id(changes):
    assert a_spec(**changes).id != a_spec().id


@pytest.mark.parametrize("part", ["method", "model", "data", "quantizer"])
def test_every_part_of_a_part_is_hashed(part):
    spec = json.loads(a_spec().model_dump_json())
    base = digest(spec)
    for key, value in spec[part].items():
        changed = {**spec, part: {**spec[part], key: "other" if value != "other" else "another"}}
        assert digest(changed) != base, key


def test_a_quantizer_can_be_named_and_its_own_options_are_hashed_only_where_they_are_used():
    assert QuantizerSpec.model_validate("lsq+") == QuantizerSpec(parameterisation="lsq+")
    assert tiny_suite(quantizer="min-max").quantizer.parameterisation == "min-max"
    variants = [
        QuantizerSpec(),
        *(QuantizerSpec(parameterisation=name) for name in ("lsq+", "min-max", "beta-gamma")),
        QuantizerSpec(parameterisation="beta-gamma", sigmoid=True),
        QuantizerSpec(parameterisation="beta-gamma", offset="integer"),
    ]
    assert len({a_spec(quantizer=variant).id for variant in variants}) == len(variants)
    assert set(variants[0].model_dump()) == {"parameterisation", "gradient_scale", "signed", "padding"}
    for variant in variants:
        assert QuantizerSpec.model_validate(variant.model_dump()) == variant


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ("lsqplus", "lsq\\+"),
        ({"parameterisation": "min-max", "sigmoid": True}, "sigmoid is an option of beta-gamma, not of min-max"),
        ({"offset": "integer"}, "lsq has no offset"),
    ],
)
def test_options_that_a_quantizer_does_not_have_are_refused(quantizer, message):
    with pytest.raises(SuiteError, match=message):
        tiny_suite(quantizer=quantizer)


def test_other_kinds_of_grids_are_another_trial_from_the_same_float_start(monkeypatch):
    suite = tiny_suite(models=[{"name": "mobilenet_v3_small", "width": 0.1, "form": "small"}], methods=["random"])
    (before,) = plan(suite).trials
    first, second, *rest = before.ledger
    other = (first, replace(second, kind="signed" if second.kind != "signed" else "unsigned"), *rest)
    monkeypatch.setattr("benchmarks.planning.ledger_for", lambda *_: other)
    (after,) = plan(suite).trials
    assert after.id != before.id
    assert after.spec.start.key == before.spec.start.key
    assert after.spec.model_copy(update={"kinds": before.spec.kinds}).id == before.id


@pytest.mark.parametrize("name", KINDS_OF_OLD)
def test_networks_whose_kinds_never_changed_keep_their_ids(name):
    (trial,) = plan(tiny_suite(models=[{"name": name, "width": 0.25}], methods=["random"])).trials
    assert "kinds" not in trial.spec.model_dump()


def test_where_a_trial_runs_does_not_change_its_id():
    ids = [trial.id for trial in plan(load_suite("smoke")).trials]
    elsewhere = load_suite("smoke", {"resources.threads": 4, "resources.gpus": 1, "resources.cpus": 2})
    renamed = load_suite("smoke", {"suite": "other", "description": "another"})
    assert [trial.id for trial in plan(elsewhere).trials] == ids
    assert [trial.id for trial in plan(renamed).trials] == ids
    fields = set(TrialSpec.model_fields)
    assert fields.isdisjoint({"engine", "device", "threads", "out", "data_dir", "resources", "ranks", "compile"})


def test_a_row_of_another_name_or_more_draws_keeps_the_ids_there_are():
    labelled = tiny_suite(methods=["uniform-lsq", {"name": "random", "label": "dice", "draws": 3}])
    plain = tiny_suite(methods=["uniform-lsq", "random"])
    assert {trial.id for trial in plan(plain).trials} < {trial.id for trial in plan(labelled).trials}


def test_trials_of_one_model_and_seed_share_their_float_start():
    trials = plan(load_suite("smoke", {"seeds": [0, 1]})).trials
    keys = {seed: {trial.spec.start.key for trial in trials if trial.spec.seed == seed} for seed in (0, 1)}
    assert [len(found) for found in keys.values()] == [1, 1]
    assert keys[0] != keys[1]


def test_published_weights_are_one_start_for_every_seed():
    trials = plan(load_suite("imagenet-full")).trials
    assert len({trial.spec.start.key for trial in trials}) == 3


def test_ids_do_not_hang_on_the_hash_seed_of_the_process():
    script = "from benchmarks.planning import *; from benchmarks.suites.suite import *; "
    script += "print([t.id for t in plan(load_suite('smoke')).trials])"
    command = [sys.executable, "-c", script]
    found = {
        subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{[trial.id for trial in plan(load_suite('smoke')).trials]}\n"}


def ids() -> dict[str, dict[str, str]]:
    return {name: {trial.label: trial.id for trial in plan(load_suite(name)).trials} for name in ("smoke", "quick")}


def test_ids_are_the_golden_ones():
    # A difference means that old records no longer count: raise a version on purpose, then remake the file.
    assert ids() == json.loads(GOLDEN.read_text(encoding="utf-8")), "python -m tests.test_suites_spec remakes them"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(ids(), indent=1) + "\n", encoding="utf-8")
    print(GOLDEN)
