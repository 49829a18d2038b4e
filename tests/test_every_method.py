"""The tests that every method must pass; nothing here knows how a method works.

They run on all registered methods, or on those that `--method` names, plug-ins too: `python runner.py check METHOD`.
"""

from __future__ import annotations

import gc
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase as HypothesisPhase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import benchmarks.trials.trial
from benchmarks.data import Dataset
from benchmarks.data.opening import load_dataset
from benchmarks.planning import Plan, plan
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import Space, canonical_json
from benchmarks.suites.suite import load_suite
from benchmarks.trials.harness import Harness
from benchmarks.trials.problem import Problem
from benchmarks.trials.training import WeightTraining
from methods import METHODS, load_method
from methods.contract import InapplicableError, Method, MethodOptions, Searched
from methods.quantization.cost import bops, with_pins
from tests.harness import Finished, cli, comparable, run_with_ray, start, write_suite
from tests.problems import (
    BLOCKS,
    JOINT,
    SPACE,
    differing,
    finetuning,
    make_method,
    make_problem,
    run_search,
    search,
    snapshot,
    watched,
)
from tests.sharing import built_once
from tests.strategies import Block, blocks
from tests.tally import tallied


class Examinee(NamedTuple):
    """A method under options of its own."""

    name: str
    options: Mapping[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.name}{json.dumps(dict(self.options)) if self.options else ''}"

    def on(self, problem: Problem) -> Method:
        return make_method(self.name, problem, self.options or needed(self.name, problem))

    @property
    def kind(self) -> type[Method]:
        return load_method(self.name)


def needed(name: str, problem: Problem) -> dict[str, Any]:
    """What a method cannot do without: a given policy, here the cheapest."""
    if name != "given":
        return {}
    cheapest = {layer: list(choices[0]) for layer, choices in problem.candidates.items()}
    return {"policy": {"schema": 1, "layers": cheapest}}


VARIANTS = [
    Examinee("metamix", {"meta_loss": "last", "fixed_meta_state": False, "mixture": "hard"}),
    Examinee("metamix", {"scale": "paper", "warmup_share": 0.0, "start": "float"}),
    Examinee("metamix", {"branches": "highest", "statistics_batches": 1}),
    Examinee("differentiable", {"alternate": True}),
    Examinee("differentiable", {"relaxation": "gumbel"}),
    Examinee("hawq", {"error": "mean"}),
    Examinee("hawq", {"assignment": "trace-ordered", "probes": "separate"}),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`each` runs over all methods, `searching` over those that search and their variants, `quantizing` over those."""
    named = [Examinee(*given) for given in metafunc.config.getoption("examinees")]
    all_of = named or [Examinee(name) for name in METHODS]
    searching = [e for e in all_of if e.kind.searches]
    groups = {
        "each": all_of,
        "quantizing": [e for e in all_of if e.kind.quantizes],
        "searching": searching if named else [*searching, *VARIANTS],
        "plain": [e for e in all_of if not e.kind.searches],
    }
    for group, examinees in groups.items():
        if group in metafunc.fixturenames:
            metafunc.parametrize(group, examinees, ids=str)


def searched(examinee: Examinee, problem: Problem) -> Searched:
    """Its whole search, nothing of it outside a step."""
    with watched(problem):
        method = examinee.on(problem)
        run_search(search(problem, method))
        return method.result()


SPACES = [SPACE, JOINT, Space(weights=(4,), activations=(2, 3, 4, 8)), Space(weights=(3, 8), activations=(8,))]


# Searches take half a second: five for every method, and none for shrinking, which would take hundreds. One block alone
# would leave nothing to search for.
@settings(max_examples=5, phases=[HypothesisPhase.generate])
@given(network=blocks().filter(lambda plan: len(plan) > 1), space=st.sampled_from(SPACES), ceiling=st.floats(0, 1))
def test_it_keeps_any_feasible_ceiling_and_names_the_searchable_layers(
    quantizing: Examinee, network: list[Block], space: Space, ceiling: float
) -> None:
    problem = make_problem(blocks=network, space=space, ceiling=ceiling)
    try:
        found = searched(quantizing, problem)
    except InapplicableError:  # it may say that it does not apply
        return
    policy = found.policy
    assert policy is not None
    assert list(policy) == [layer.name for layer in problem.ledger if not layer.pinned]
    assert bops(problem.ledger, policy) <= problem.ceiling
    for layer in problem.ledger:
        tied = [other.name for other in problem.ledger if other.tie and other.tie == layer.tie and not other.pinned]
        assert len({policy[name].activation for name in tied}) <= 1
    if quantizing.name != "uniform-lsq":  # which may take any activation width, the coarse space notwithstanding
        assert all(bits in problem.candidates[layer] for layer, bits in policy.items())
    canonical_json(dict(found.report))  # JSON, and every number finite


def test_the_same_seed_gives_the_same_and_nothing_global_is_touched(each: Examinee) -> None:
    torch.manual_seed(1)
    before = global_state()
    problem = make_problem()
    first = searched(each, problem)
    assert same(global_state(), before)
    torch.manual_seed(2)  # what others drew before must not matter
    again = make_problem()
    second = searched(each, again)
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


class WholeSearch(NamedTuple):
    """A search from its first to its last step: what was saved on the way, and what it came to."""

    states: Mapping[str, Any]
    step: int
    curve: list[Any]
    method: dict[str, Any]
    network: Mapping[str, torch.Tensor]
    found: Searched


def whole_search(examinee: Examinee) -> WholeSearch:
    return _whole_search(examinee.kind, examinee.name, json.dumps(dict(examinee.options)))


@cache
def _whole_search(_kind: type[Method], name: str, options: str) -> WholeSearch:
    """One for all the steps after which it is taken up. _kind: tells methods of one name apart."""
    problem = make_problem()
    method = Examinee(name, json.loads(options)).on(problem)
    loop = search(problem, method)
    states = []
    for _ in loop.run():
        account, model = problem.account.state_dict(), problem.model.state_dict()
        states.append(saved({"model": model, "loop": loop.state_dict(), "account": account}))
    kept = {"first": states[0], "middle": states[len(states) // 2], "last": states[-1]}
    state = deepcopy(method.state_dict())
    return WholeSearch(kept, loop.step, loop.curve, state, snapshot(problem), method.result())


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_search_can_be_taken_up_after_any_step(searching: Examinee, where: str) -> None:
    whole = whole_search(searching)
    other = make_problem()
    taken_up = searching.on(other)
    resumed = search(other, taken_up)
    kept = deepcopy(whole.states[where])
    other.model.load_state_dict(kept["model"])
    other.account.load_state_dict(kept["account"])
    resumed.load_state_dict(kept["loop"])
    run_search(resumed)
    assert (resumed.step, resumed.curve) == (whole.step, whole.curve)
    assert same(taken_up.state_dict(), whole.method)
    assert differing(whole.network, snapshot(other)) == []
    second = taken_up.result()
    assert (whole.found.policy, whole.found.report) == (second.policy, second.report)


def test_measuring_a_price_changes_nothing(searching: Examinee) -> None:
    problem = make_problem()
    method = searching.on(problem)
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


def test_it_spends_no_more_than_its_share(searching: Examinee) -> None:
    problem = make_problem(steps=30.5, share=0.77)
    method = searching.on(problem)
    loop = search(problem, method)
    run_search(loop)
    account = problem.account
    assert 0 < account.spent_macs <= account.search_macs
    if loop.stopped:  # what was left did not pay another step
        phase = method.phase()
        assert phase is not None
        assert account.spent_macs + problem.price(phase) > account.search_macs


def test_it_is_charged_what_its_work_costs_by_layer_shapes(searching: Examinee) -> None:
    # Stride 1: torch's second derivative of a strided convolution computes a larger kernel's and cuts it.
    problem = make_problem(blocks=[replace(block, stride=1) for block in BLOCKS])
    method = searching.on(problem)
    with tallied() as tally, tally.pausing(problem, "price_of"):
        run_search(search(problem, method))
    assert tally.macs == pytest.approx(problem.account.spent_macs, rel=0.01)


def test_no_step_leaves_gradients_behind(searching: Examinee) -> None:
    problem = make_problem()
    method = searching.on(problem)
    for _ in search(problem, method).run():
        assert [name for name, p in problem.model.named_parameters() if p.grad is not None] == []


def test_all_that_is_in_use_learns_in_fine_tuning_and_nothing_else_does(each: Examinee) -> None:
    problem = make_problem()
    found = searched(each, problem)
    tuned = finetuning(problem, found)
    bits = None if found.policy is None else with_pins(problem.ledger, found.policy)
    training = WeightTraining(tuned, bits, total=4)
    gradients: dict[str, torch.Tensor | None] = {}

    def keep(*_: Any, **__: Any) -> None:
        gradients.update({name: p.grad for name, p in tuned.model.named_parameters()})

    tuned.model.train()
    with mock.patch.object(tuned, "step", keep):
        tuned.run(training, tuned.batches(WeightTraining.PHASE, "finetune").next(), WeightTraining.PHASE)
    learning = {name for name, grad in gradients.items() if grad is not None}
    used = {layer.name for layer in problem.ledger}
    idle = {name for name, module in tuned.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)} - used
    expected = {name for name in gradients if not any(name.startswith(f"{layer}.") for layer in idle)}
    if bits is None:
        expected = {name for name in expected if "_quantizer." not in name}
    assert learning == expected
    assert all(grad is None or bool(torch.isfinite(grad).all()) for grad in gradients.values())


def test_a_result_is_had_once_the_least_steps_are_done(searching: Examinee) -> None:
    problem = make_problem()
    method = searching.on(problem)
    run_search(search(problem, method), searching.kind.min_steps)
    policy = method.result().policy
    assert policy is not None
    assert bops(problem.ledger, policy) <= problem.ceiling


def test_its_state_fits_the_network_it_goes_on_from(each: Examinee) -> None:
    problem = make_problem()
    state = searched(each, problem).state
    if state is not None:
        assert state.keys() == problem.model.state_dict().keys()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_its_class_says_what_the_harness_asks(each: Examinee) -> None:
    kind = each.kind
    assert kind.version >= 1
    assert isinstance(kind.chooses, bool)
    assert issubclass(kind.Options, MethodOptions)
    assert kind.searches == (kind.min_steps > 0)
    assert kind.Options.model_config["extra"] == "forbid"
    assert kind.Options.model_config["frozen"]
    assert (kind.__doc__ or "").strip()


def test_what_does_not_search_has_no_phase(plain: Examinee) -> None:
    method = plain.on(make_problem())
    assert (method.phase(), method.state_dict()) == (None, {})


# Whole trials, on generated images so that there is a folder to read them from.

PICTURES = {
    "dataset": "procedural",
    "preset": "procedural-20",
    "image_size": 16,
    "classes": 4,
    "train": 96,
    "validation": 16,
    "test": 32,
    "augment": "crop-flip",
}


PATHS = {"fused": ("fused", False), "plain": ("plain", False), "compiled": ("fused", True)}
"""What records say of each way to quantize, `--path`."""


@pytest.fixture(scope="session")
def entered(request: pytest.FixtureRequest) -> list[Examinee]:
    named = [Examinee(*given) for given in request.config.getoption("examinees")]
    return named or [Examinee(name) for name in METHODS]


@pytest.fixture(scope="session")
def pictures(entered: list[Examinee], pytestconfig: pytest.Config) -> Finished:
    """A suite of all examinees, and the folder where it has run from end to end."""
    return built_once("exam", partial(run_exam, entered, pytestconfig.getoption("--path")))


def run_exam(entered: list[Examinee], path: str, folder: Path) -> Finished:
    changes = {
        "data": PICTURES,
        "compute": {"epochs": 3, "search_share": 0.9},
        "resources": {"compile": path == "compiled"},
    }
    bare = plan_of(write_suite(folder, methods=["float"], **changes)).trials[0].ledger
    policy = {"schema": 1, "layers": {layer.name: [4, 3] for layer in bare if not layer.pinned}}
    methods = [
        {"name": e.name, "options": dict(e.options) or ({"policy": policy} if e.name == "given" else {})}
        for e in entered
    ]
    suite = write_suite(folder, methods=methods, **changes)
    out = folder / "out"
    ran = cli("--suite", suite, "--engine", "local", "--data", folder / "images", "--out", out)
    assert ran.code == 0, ran.err
    records = [json.loads(file.read_text()) for file in (out / "tiny" / "records").glob("*.json")]
    environments = [record["observed"]["environment"] for record in records]
    assert {(e["quantizer"], e["compile"]) for e in environments} == {PATHS[path]}
    return Finished(suite, out, ran)


def plan_of(suite: Path) -> Plan:
    return plan(load_suite(str(suite)))


def records_of(examinee: Examinee, out: Path) -> dict[str, Any]:
    return comparable(out / "tiny" / "records")[f"{examinee.name} 0"]


@pytest.fixture(scope="session")
def elsewhere(pictures: Finished) -> Path:
    """The same suite through Ray, with its images in a folder of another name."""
    return built_once("exam elsewhere", partial(run_exam_elsewhere, pictures.suite))


def run_exam_elsewhere(suite: Path, folder: Path) -> Path:
    process = start(run_with_ray, suite, folder / "out", "--data", str(folder / "drawn again"))
    process.join(600)
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder / "out"


def test_neither_the_engine_nor_the_data_s_path_matters(each: Examinee, pictures: Finished, elsewhere: Path) -> None:
    spec, result = records_of(each, pictures.out)
    assert result["status"] == "ok", result["reason"]
    assert records_of(each, elsewhere) == (spec, result)


def fresh(pictures: Finished, folder: Path) -> tuple[Workspace, Runtime]:
    """A folder that has the images and the float starts, and saves after every step."""
    shutil.copytree(pictures.out / "float", folder / "float")
    images, compiled = pictures.suite.parent / "images", load_suite(str(pictures.suite)).resources.compile
    return Workspace(folder, "tiny"), Runtime(images, compile=compiled, checkpoint_seconds=0)


def test_a_killed_trial_ends_as_if_it_had_not_been(each: Examinee, pictures: Finished, tmp_path: Path) -> None:
    (chosen,) = [t for t in plan_of(pictures.suite).trials if t.spec.method.name == each.name]
    workspace, runtime = fresh(pictures, tmp_path)
    dice = random.Random(each.name)
    for steps in (dice.randint(1, 5), dice.randint(2, 8)):
        life = benchmarks.trials.trial.run(chosen.spec, workspace, runtime)
        for _ in range(steps):
            next(life)
        life.close()
    for _ in benchmarks.trials.trial.run(chosen.spec, workspace, runtime):
        pass
    record = workspace.records.get(chosen.id)
    assert record is not None
    assert record.observed["restarts"] == 2
    assert comparable(workspace.records.folder)[f"{each.name} 0"] == records_of(each, pictures.out)


def test_the_test_split_is_out_of_reach(each: Examinee, pictures: Finished, tmp_path: Path) -> None:
    (chosen,) = [t for t in plan_of(pictures.suite).trials if t.spec.method.name == each.name]
    seen: list[Harness] = []
    data: list[Dataset] = []

    def noting(make: Callable[..., None]) -> Callable[..., None]:
        def made(self: Harness, **parts: Any) -> None:
            make(self, **parts)
            seen.append(self)

        return made

    def loaded(*args: Any, **kwargs: Any) -> Dataset:
        data.append(load_dataset(*args, **kwargs))
        return data[-1]

    workspace, runtime = fresh(pictures, tmp_path)
    with (
        mock.patch.object(Harness, "__init__", noting(Harness.__init__)),
        mock.patch.object(Problem, "__init__", noting(Problem.__init__)),
        mock.patch("benchmarks.data.opening.load_dataset", loaded),
    ):
        for _ in benchmarks.trials.trial.run(chosen.spec, workspace, runtime):
            pass
    hidden = (data[0].validation, data[0].test)
    assert any(isinstance(one, Problem) for one in seen)
    for one in seen:
        reached = list(reachable(one))
        assert any(found is data[0].train for found in reached)
        assert not any(found is split for found in reached for split in hidden)


def reachable(root: Any) -> Iterator[Any]:
    """Every object that `root` leads to, but for modules, classes and what functions find in their module."""
    waiting, known = [root], {id(root)}
    while waiting:
        found = waiting.pop()
        yield found
        if isinstance(found, FunctionType):
            inner = [*(found.__closure__ or ()), *(found.__defaults__ or ())]
        else:
            inner = gc.get_referents(found)
        for one in inner:
            if id(one) not in known and not isinstance(one, ModuleType | type):
                known.add(id(one))
                waiting.append(one)
