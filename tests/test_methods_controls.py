"""The controls: maximal random policies, given ones, and the float network."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from methods.allocation import CeilingError, groups_of
from methods.contract import Searched
from methods.controls import GivenOptions, MacGreedy, read_policy
from methods.quantization.cost import Layer, bops
from methods.quantization.policy import LayerBits, Policy, PolicyError
from tests.problems import JOINT, SPACE, make_method, make_problem


def drawn(**changes: object) -> tuple[object, Policy]:
    problem = make_problem(**changes)  # type: ignore[arg-type]
    policy = make_method("random", problem).result().policy
    assert policy is not None
    return problem, policy


@pytest.mark.parametrize("space", [SPACE, JOINT], ids=["activations", "joint"])
@pytest.mark.parametrize("seed", range(4))
def test_no_increment_of_a_random_policy_fits_any_more(space, seed):
    problem, policy = drawn(space=space, seed=seed, ceiling=0.4)
    cost = bops(problem.ledger, policy)
    for group in groups_of(problem.ledger, problem.candidates):
        own = sum(bops_of(problem, name, policy[name]) for name in group.layers)
        dearer = sorted(
            extra
            for choice in group.choices
            if (extra := sum(bops_of(problem, n, b) for n, b in zip(group.layers, choice, strict=True)) - own) > 0
        )
        assert not dearer or cost + dearer[0] > problem.ceiling


def bops_of(problem: object, name: str, bits: LayerBits) -> int:
    (layer,) = [layer for layer in problem.ledger if layer.name == name]
    return layer.macs * bits.weight * bits.activation


def test_seeds_and_draws_have_policies_of_their_own():
    policies = [drawn(seed=seed, ceiling=0.5)[1] for seed in range(6)]
    assert policies[0] == drawn(seed=0, ceiling=0.5)[1]
    assert len(set(policies)) > 1


def test_a_random_policy_at_the_least_and_the_most():
    least, policy = drawn(ceiling=0.0)
    assert bops(least.ledger, policy) == least.ceiling
    _, policy = drawn(ceiling=1.0)
    assert set(policy.values()) == {LayerBits(4, 8)}
    problem = make_problem(ceiling=0.0)
    problem.ceiling -= 1
    with pytest.raises(CeilingError, match=f"{problem.ceiling + 1} BOPs, above the ceiling of {problem.ceiling}"):
        make_method("random", problem).result()


def greedy(macs: list[int], ceiling: int) -> list[int]:
    """Activation bits that `mac-greedy` gives to layers of these MACs, with 4-bit weights and A3, A4, A8."""
    ledger = tuple(Layer(f"{index}", "conv", macs=m, weights=1, kind="unsigned") for index, m in enumerate(macs))
    candidates = {layer.name: [LayerBits(4, bits) for bits in (3, 4, 8)] for layer in ledger}
    problem = SimpleNamespace(ledger=ledger, candidates=candidates, ceiling=4 * ceiling)
    policy = MacGreedy(problem, None).result().policy  # type: ignore[arg-type]
    assert policy is not None
    return [bits.activation for bits in policy.values()]


def test_mac_greedy_lowers_the_dearest_layer_and_fills_up_from_the_cheapest():
    # Ceilings in MACs x activation bits. All at 8: 80 + 40 + 8 = 128.
    assert greedy([10, 5, 1], 128) == [8, 8, 8]
    assert greedy([10, 5, 1], 127) == [4, 8, 8]  # the first is the dearest: 40 + 40 + 8
    assert greedy([10, 5, 1], 87) == [3, 8, 8]  # 40 against 40: the first in graph order goes on, to 30 + 40 + 8
    assert greedy([10, 5, 1], 77) == [4, 4, 8]  # now the second is the dearer, to 30 + 20 + 8; 10 more fill it up to 68
    assert greedy([10, 5, 1], 57) == [3, 3, 8]  # 58 is one too many: the second again, to 53, and 5 more do not fit
    assert greedy([10, 5, 1], 49) == [3, 3, 4]  # only the last has anything left to give


def test_mac_greedy_says_what_the_cheapest_policy_costs():
    with pytest.raises(CeilingError, match="costs 192 BOPs, above the ceiling of 188 BOPs"):
        greedy([10, 5, 1], 47)


@pytest.mark.parametrize("ceiling", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("space", [SPACE, JOINT], ids=["activations", "joint"])
def test_mac_greedy_leaves_nothing_that_one_more_increment_could_use(space, ceiling):
    problem = make_problem(space=space, ceiling=ceiling)
    policy = make_method("mac-greedy", problem).result().policy
    assert policy is not None
    cost = bops(problem.ledger, policy)
    for group in groups_of(problem.ledger, problem.candidates):
        own = sum(bops_of(problem, name, policy[name]) for name in group.layers)
        costs = {sum(bops_of(problem, n, b) for n, b in zip(group.layers, c, strict=True)) for c in group.choices}
        assert all(cost - own + other > problem.ceiling for other in costs if other > own)


def test_the_float_control_has_no_policy_and_starts_from_the_start():
    assert make_method("float", make_problem()).result() == Searched(policy=None)


POLICY = Policy({"a": (4, 3), "b": (4, 8)})


def test_a_policy_is_read_from_a_policy_file_or_a_record(tmp_path):
    (tmp_path / "policy.json").write_text(POLICY.to_json())
    (tmp_path / "record.json").write_text(json.dumps({"id": "1", "result": {"policy": POLICY.to_dict()}}))
    assert read_policy(tmp_path / "policy.json") == read_policy(tmp_path / "record.json") == POLICY


def test_the_content_of_a_given_policy_is_what_counts_not_its_path(tmp_path):
    (tmp_path / "a.json").write_text(POLICY.to_json())
    (tmp_path / "b.json").write_text(POLICY.to_json())
    options = [GivenOptions.model_validate({"policy": str(tmp_path / name)}) for name in ("a.json", "b.json")]
    assert options[0] == options[1]
    assert options[0].model_dump() == {"policy": POLICY.to_dict()}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 9}', '{"result": {"policy": null}}', '{"schema":1,"layers":{"a":[4]}}']
)
def test_what_is_no_policy_is_refused_with_the_files_name(text, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PolicyError, match=r"p\.json"):
        read_policy(tmp_path / "p.json")
    with pytest.raises(ValidationError, match=r"p\.json"):
        GivenOptions.model_validate({"policy": str(tmp_path / "p.json")})


def test_a_given_policy_must_name_the_networks_layers():
    problem = make_problem()
    names = list(problem.candidates)

    def check(layers: dict[str, tuple[int, int]]) -> None:
        GivenOptions(policy=Policy(layers).to_dict()).check(problem.ledger)

    check(dict.fromkeys(names, (4, 4)))
    with pytest.raises(PolicyError, match=f"unknown layer 'x{names[0]}'.*did you mean '{names[0]}'"):
        check({f"x{names[0]}": (4, 4), **dict.fromkeys(names[1:], (4, 4))})
    with pytest.raises(PolicyError, match=f"no bits for {names[-1]}"):
        check(dict.fromkeys(names[:-1], (4, 4)))
