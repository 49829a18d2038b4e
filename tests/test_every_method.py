"""The exam that every registered method sits; nothing here knows how a method works."""

from __future__ import annotations

import io
import random
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.training import Problem
from methods import METHODS, load_method
from methods.contract import InapplicableError, Method, MethodOptions, Searched
from methods.quantization.cost import bops
from tests.problems import JOINT, SPACE, differing, make_method, make_problem, run_search, search, snapshot

QUANTIZING = [name for name in METHODS if name != "float"]
SEARCHING = [name for name in METHODS if load_method(name).searches]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SEARCHING),
    ("metamix", {"meta_loss": "last", "fixed_meta_state": False, "mixture": "hard"}),
    ("metamix", {"scale": "paper", "warmup_share": 0.0, "start": "float"}),
    ("metamix", {"branches": "highest", "statistics_batches": 1}),
    ("differentiable", {"alternate": True}),
    ("differentiable", {"relaxation": "gumbel"}),
    ("hawq", {"activation_traces": False, "error": "mean"}),
    ("hawq", {"assignment": "trace-ordered", "probes": "separate"}),
]


def options_for(name: str, problem: Problem) -> dict[str, Any]:
    """What a method cannot do without: a given policy, here the cheapest."""
    if name != "given":
        return {}
    cheapest = {layer: list(choices[0]) for layer, choices in problem.candidates.items()}
    return {"policy": {"schema": 1, "layers": cheapest}}


def searched(name: str, problem: Problem, options: dict[str, Any] | None = None) -> Searched:
    method = make_method(name, problem, options or options_for(name, problem))
    run_search(search(problem, method))
    return method.result()


@pytest.mark.parametrize(
    ("space", "ceiling"),
    [(SPACE, 0.0), (SPACE, 0.3), (JOINT, 0.2), (JOINT, 0.7)],
    ids=["least", "low", "joint", "high"],
)
@pytest.mark.parametrize("name", QUANTIZING)
def test_it_keeps_the_ceiling_and_names_the_searchable_layers(name, ceiling, space):
    problem = make_problem(space=space, ceiling=ceiling)
    if name == "metamix" and (space, ceiling) == (JOINT, 0.2):
        with pytest.raises(InapplicableError, match="with 4-bit weights"):  # the one width that it gives weights
            searched(name, problem)
        return
    policy = searched(name, problem).policy
    assert policy is not None
    assert list(policy) == [layer.name for layer in problem.ledger if not layer.pinned]
    assert bops(problem.ledger, policy) <= problem.ceiling
    for layer in problem.ledger:
        tied = [other.name for other in problem.ledger if other.tie and other.tie == layer.tie and not other.pinned]
        assert len({policy[name].activation for name in tied}) <= 1
    if name != "uniform-lsq":  # which may take any activation width, the coarse space notwithstanding
        assert all(bits in problem.candidates[layer] for layer, bits in policy.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_and_nothing_global_is_touched(name):
    torch.manual_seed(1)
    before = global_state()
    problem = make_problem()
    first = searched(name, problem)
    assert same(global_state(), before)
    torch.manual_seed(2)  # what others drew before must not matter
    again = make_problem()
    second = searched(name, again)
    assert (first.policy, first.report) == (second.policy, second.report)
    assert differing(snapshot(problem), snapshot(again)) == []


def global_state() -> dict[str, Any]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002 (the global state is what is looked at)
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": str(state),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def same(one: Any, other: Any) -> bool:
    """Equality through containers, bit for bit in tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def saved(value: Any) -> Any:
    """As a checkpoint keeps it: written, and read as weights only."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("stop", [1, 6])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value) if value else "")
def test_a_search_can_be_taken_up_in_the_middle(name, options, stop):
    problem = make_problem()
    method = make_method(name, problem, options)
    loop = search(problem, method)
    run_search(loop, stop)
    kept = saved(
        {"model": problem.model.state_dict(), "loop": loop.state_dict(), "account": problem.account.state_dict()}
    )
    run_search(loop)

    other = make_problem()
    taken_up = make_method(name, other, options)
    resumed = search(other, taken_up)
    other.model.load_state_dict(kept["model"])
    other.account.load_state_dict(kept["account"])
    resumed.load_state_dict(kept["loop"])
    run_search(resumed)

    assert loop.step > stop
    assert (resumed.step, resumed.curve) == (loop.step, loop.curve)
    assert same(taken_up.state_dict(), method.state_dict())
    assert differing(snapshot(problem), snapshot(other)) == []
    first, second = method.result(), taken_up.result()
    assert (first.policy, first.report) == (second.policy, second.report)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value) if value else "")
def test_measuring_a_price_changes_nothing(name, options):
    problem = make_problem()
    method = make_method(name, problem, options)
    run_search(search(problem, method), 3)
    for index, parameter in enumerate(problem.model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.25) if index % 2 else None
    phase = method.phase()
    assert phase is not None
    problem._prices.clear()
    before = (snapshot(problem), deepcopy(method.state_dict()), torch.get_rng_state(), problem.model.training)
    assert problem.price(phase) > 0
    assert differing(before[0], snapshot(problem)) == []
    assert same(before[1:], (method.state_dict(), torch.get_rng_state(), problem.model.training))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value) if value else "")
def test_a_search_spends_no_more_than_its_share(name, options):
    problem = make_problem(steps=30.5, share=0.77)
    method = make_method(name, problem, options)
    loop = search(problem, method)
    run_search(loop)
    account = problem.account
    assert 0 < account.spent_macs <= account.search_macs
    if loop.stopped:  # what was left did not pay another step
        assert account.spent_macs + problem.price(method.phase()) > account.search_macs


@pytest.mark.parametrize("name", SEARCHING)
def test_a_result_is_had_once_the_least_steps_are_done(name):
    problem = make_problem()
    method = make_method(name, problem)
    run_search(search(problem, method), load_method(name).min_steps)
    policy = method.result().policy
    assert policy is not None
    assert bops(problem.ledger, policy) <= problem.ceiling


@pytest.mark.parametrize("name", METHODS)
def test_its_state_fits_the_network_it_goes_on_from(name):
    problem = make_problem()
    state = searched(name, problem).state
    if state is not None:
        assert state.keys() == problem.model.state_dict().keys()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


@pytest.mark.parametrize("name", METHODS)
def test_its_class_says_what_the_harness_asks(name):
    kind = load_method(name)
    assert kind.version >= 1
    assert issubclass(kind.Options, MethodOptions)
    assert kind.searches == (kind.min_steps > 0)
    assert kind.Options.model_config["extra"] == "forbid"
    assert kind.Options.model_config["frozen"]
    assert (kind.__doc__ or "").strip()


def test_what_does_not_search_has_no_phase():
    for name in set(METHODS) - set(SEARCHING):
        problem = make_problem()
        method: Method = make_method(name, problem, options_for(name, problem))
        assert (method.phase(), method.state_dict()) == (None, {})
