"""The command `check`: each method here has one planted fault, which a question of test_every_method.py must catch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import benchmarks.trials.trial
import tests.test_every_method as exam
from benchmarks.commands.check import examine
from benchmarks.data import Subset
from benchmarks.data.opening import load_dataset
from benchmarks.planning import candidates_of, plan
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import DataSpec
from benchmarks.trials.compute import UnpaidWorkError
from benchmarks.trials.problem import Problem
from methods import METHODS, known_methods
from methods.contract import Batch, FixedChoice, Phase, Searched
from methods.hawq import Hawq
from methods.metamix import MetaMix
from methods.quantization.cost import bops
from methods.quantization.policy import Policy
from tests.harness import cli, copy_float_starts, tiny_suite
from tests.problems import make_problem, run_search, search, watched
from tests.test_every_method import Examinee


def looked(method: Any) -> None:
    """Run the network on a few images, as a method that scores policies would."""
    with torch.no_grad():
        method.problem.model(method.problem.train.load(torch.arange(4).numpy(), None)[0])


class LooksWhenBuilt(MetaMix):
    """Runs the network before its first step."""

    def __init__(self, problem: Any, options: Any) -> None:
        super().__init__(problem, options)
        looked(self)


class LooksBetweenSteps(MetaMix):
    """Runs the network while it is asked for its phase."""

    def phase(self) -> Phase | None:
        looked(self)
        return super().phase()


class LooksAtTheEnd(MetaMix):
    """Runs the network to choose its result."""

    def result(self) -> Searched:
        looked(self)
        return super().result()


class PlansWhenBuilt(MetaMix):
    """Asks for prices before there is a step to run."""

    def __init__(self, problem: Any, options: Any) -> None:
        super().__init__(problem, options)
        self.phase()


class WorksMoreLater(MetaMix):
    """Its third step costs more than the one that was priced."""

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        if self.taken == 2:
            with torch.no_grad():
                self.problem.model(batch[0].images)
        return super().step(batch, phase)


@pytest.mark.parametrize("cheat", [LooksWhenBuilt, LooksBetweenSteps, LooksAtTheEnd, WorksMoreLater])
def test_work_outside_the_priced_step_is_caught(cheat: type[MetaMix]) -> None:
    with pytest.raises(UnpaidWorkError, match=r"outside its step|forward MACs per image"):
        from_end_to_end(cheat)


def from_end_to_end(kind: type[MetaMix]) -> Problem:
    problem = make_problem()
    with watched(problem):
        method = problem.build(kind, {})
        run_search(search(problem, method))
        method.result()
    return problem


def test_an_honest_method_is_not_disturbed() -> None:
    looked(SimpleNamespace(problem=from_end_to_end(MetaMix)))  # afterwards nobody watches


@pytest.mark.parametrize(
    ("cheat", "error", "message"),
    [
        (LooksAtTheEnd, "UnpaidWorkError", "outside its step"),
        (PlansWhenBuilt, "RuntimeError", "no step of bit-meta can be run while the method is built; plan in phase()"),
    ],
)
def test_in_a_trial_it_is_the_method_s_failure_and_the_record_says_what(
    tmp_path, monkeypatch, cheat, error, message
) -> None:
    (chosen,) = plan(tiny_suite(methods=["metamix"])).trials
    workspace = Workspace(copy_float_starts(tmp_path), "tiny")
    monkeypatch.setattr(benchmarks.trials.trial, "load_method", lambda _name: cheat)
    for _ in benchmarks.trials.trial.run(chosen.spec, workspace, Runtime()):
        pass
    record = workspace.records.get(chosen.id)
    assert record is not None
    assert record.result["status"] == "failed"
    assert record.result["reason"]["type"] == error
    assert message in record.result["reason"]["message"]


class Dearest(FixedChoice):
    """Every layer at its highest widths, whatever the ceiling."""

    chooses: ClassVar[bool] = True

    def result(self) -> Searched:
        return Searched(Policy({name: choices[-1] for name, choices in self.problem.candidates.items()}))


class Between(FixedChoice):
    """Widths that the space leaves out."""

    chooses: ClassVar[bool] = True

    def result(self) -> Searched:
        return Searched(Policy({name: (4, 5) for name in self.problem.candidates}))


class BetweenByRight(Between):
    """As it may that does not choose among the space's."""

    chooses: ClassVar[bool] = False


@pytest.mark.parametrize(("kind", "status"), [(Between, "failed"), (BetweenByRight, "ok")])
def test_bits_outside_the_space_fail_a_method_that_chooses(tmp_path, monkeypatch, kind, status) -> None:
    (chosen,) = plan(tiny_suite(methods=["random"], ceilings=["uniform:w4a5"])).trials
    workspace = Workspace(copy_float_starts(tmp_path), "tiny")
    monkeypatch.setattr(benchmarks.trials.trial, "load_method", lambda _name: kind)
    for _ in benchmarks.trials.trial.run(chosen.spec, workspace, Runtime()):
        pass
    record = workspace.records.get(chosen.id)
    assert record is not None
    assert record.result["status"] == status
    if status == "failed":
        first = next(layer.name for layer in chosen.ledger if not layer.pinned)
        message = f"the policy gives {first} w4a5, the space has w4a3, w4a4, w4a8"
        assert record.result["reason"] == {"type": "PolicyError", "message": message}


def test_a_policy_one_percent_over_the_ceiling_is_over_it_in_the_record(tmp_path, monkeypatch) -> None:
    (chosen,) = plan(tiny_suite(methods=["random"])).trials
    candidates = candidates_of(chosen.spec.space, chosen.ledger)
    spent = bops(chosen.ledger, {name: choices[-1] for name, choices in candidates.items()})
    workspace = Workspace(copy_float_starts(tmp_path), "tiny")
    monkeypatch.setattr(benchmarks.trials.trial, "load_method", lambda _name: Dearest)
    for ceiling, status in ((int(spent / 1.01), "over_ceiling"), (spent, "ok")):
        spec = chosen.spec.model_copy(update={"ceiling_bops": ceiling})
        for _ in benchmarks.trials.trial.run(spec, workspace, Runtime()):
            pass
        (record,) = [found for found in workspace.records if found.trial_spec == spec]
        assert record.result["status"] == status


# Faults that questions of the exam catch.


class AStepTooFar(FixedChoice):
    """Raises its layers until one more is above the ceiling, and takes that one too."""

    chooses: ClassVar[bool] = True

    def result(self) -> Searched:
        ledger, ceiling = self.problem.ledger, self.problem.ceiling
        policy = {name: choices[0] for name, choices in self.problem.candidates.items()}
        for name, choices in self.problem.candidates.items():
            if bops(ledger, policy) <= ceiling:
                policy[name] = choices[-1]
        return Searched(Policy(policy))


class DrawsFromTheGlobalGenerator(Hawq):
    """Takes its probes from torch's global generator."""

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        self.probe = torch.default_generator
        return super().step(batch, phase)


class ForgetsItsCounter(MetaMix):
    """Leaves what it has done out of its state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "taken": 0})


class LeavesGradients(MetaMix):
    """Does not clear the gradients of its last backward pass."""

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        logs = super().step(batch, phase)
        next(self.problem.model.parameters()).grad = torch.zeros_like(next(self.problem.model.parameters()))
        return logs


class SkipsALayer(FixedChoice):
    """Its policy lacks the last searchable layer."""

    chooses: ClassVar[bool] = True

    def result(self) -> Searched:
        names = list(self.problem.candidates)[:-1]
        return Searched(Policy({name: self.problem.candidates[name][0] for name in names}))


PLANTED = {
    AStepTooFar: "it keeps any feasible ceiling and names the searchable layers",
    SkipsALayer: "it keeps any feasible ceiling and names the searchable layers",
    DrawsFromTheGlobalGenerator: "the same seed gives the same and nothing global is touched",
    ForgetsItsCounter: "a search can be taken up after any step",
    LeavesGradients: "no step leaves gradients behind",
}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda kind: kind.__name__)
def test_a_planted_fault_fails_its_question(planted, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "planted_methods", sys.modules[__name__])
    monkeypatch.setitem(METHODS, "planted", f"planted_methods:{planted.__name__}")
    known_methods.cache_clear()
    question = questions()[PLANTED[planted]]
    try:
        with pytest.raises((AssertionError, BaseExceptionGroup)):
            question(Examinee("planted"))
    finally:
        known_methods.cache_clear()


def questions() -> dict[str, Any]:
    """What each question asks -> the question, as a function of the examinee."""
    found = {
        name.removeprefix("test_").replace("_", " "): function
        for name, function in vars(exam).items()
        if name.startswith("test_")
    }
    ceiling = found["it keeps any feasible ceiling and names the searchable layers"]
    resumed = found["a search can be taken up after any step"]
    return {
        **found,
        "it keeps any feasible ceiling and names the searchable layers": lambda e: ceiling(quantizing=e),
        "a search can be taken up after any step": lambda e: resumed(e, "middle"),
    }


def test_the_split_that_leaks_is_found() -> None:
    data = load_dataset(DataSpec(dataset="digits", image_size=8, classes=10), None)
    problem = make_problem()
    problem.train = data.train
    assert not any(found is data.test for found in exam.reachable(problem))
    leaks: list[Callable[[Any], None]] = [
        lambda method: setattr(method, "kept", {"deep": [data.test]}),
        lambda method: setattr(method, "score", lambda: len(data.test)),
        lambda method: setattr(method.problem, "train", Subset(data.test, torch.arange(3).numpy())),
    ]
    for leak in leaks:
        problem = make_problem()
        method = problem.build(MetaMix, {})
        leak(method)
        assert any(found is data.test for found in exam.reachable(problem))


def test_a_check_asks_every_question_and_says_what_failed() -> None:
    asked: list[tuple[str, str]] = []
    assert examine("mac-greedy", {}, lambda *answer: asked.append(answer), only="class or phase").failed == []
    assert ("ok", "its class says what the harness asks") in asked
    assert ("ok", "what does not search has no phase") in asked
    failed = examine("metamix", {"statistics_batches": 500}, lambda *answer: asked.append(answer), only="price").failed
    assert [question for question, _ in failed] == ["measuring a price changes nothing"]
    assert "leave its share no selection" in failed[0][1]
    assert ("FAILED", "measuring a price changes nothing") in asked


def test_an_unknown_method_or_option_is_wrong_use() -> None:
    assert cli("check", "metamx").code == 2
    part = cli("check", "given", "--only", "class")  # the exam brings its policy
    assert part.code == 0
    said, asked = part.out.splitlines()[-1].split(" (")
    assert said == "given passes what was asked"
    assert asked.startswith("1 of ")
    assert int(asked.removeprefix("1 of ").rstrip(")")) > 10
    for only, why in (("zzz", "no question has the words 'zzz'; questions: "), ("(", "--only '(': write words with")):
        unasked = cli("check", "given", "--only", only)
        assert (unasked.code, unasked.out) == (2, "")
        assert unasked.err.startswith(f"error: {why}")
        assert len(unasked.err.splitlines()) == 1
    wrong = cli("check", "hawq", "--set", "tolerence=1")
    assert wrong.code == 2
    assert "tolerance" in wrong.err
    none = cli("check", "uniform-lsq", "--set", "x=1")
    assert (none.code, none.err) == (2, "error: uniform-lsq has no options, got x\n")
