"""A trial over several processes is the computation of one: 1x4 = 2x2 = 4x1 ranks x micro-batches, for every method."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.data.opening import load_dataset
from benchmarks.data.stream import Stream
from benchmarks.engines import run_jobs, several_processes
from benchmarks.engines.execute import execute
from benchmarks.engines.jobs import Job, jobs_of
from benchmarks.engines.local import LocalEngine
from benchmarks.engines.one_process import work
from benchmarks.engines.several_processes import together
from benchmarks.events import Outcome
from benchmarks.messages import SuiteError
from benchmarks.planning import plan
from benchmarks.ranks import ALONE, Ranks, RanksDifferError, joined
from benchmarks.records.record import Records
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import DataSpec, OptimizerSpec, Recipe
from benchmarks.trials.checkpoint import load_network, save_network
from benchmarks.trials.problem import Problem
from benchmarks.trials.training import WeightTraining
from methods.quantization.cost import with_pins
from tests.harness import ROOT, Silent, comparable, server, start, tiny_suite
from tests.problems import JOINT, SPACE, MemorySplit, make_method, make_problem, run_search, search

COUNTS = (1, 2, 4)
SEARCHES: dict[str, dict[str, Any]] = {
    "hawq": {},
    "differentiable": {"relaxation": "gumbel"},
    "metamix": {"statistics_batches": 1},
    "metamix-joint": {},
    "random": {},
    "mac-greedy": {},
    "uniform-lsq": {},
    "float": {},
}
RECIPE = Recipe(optimizer=OptimizerSpec(name="sgd", lr=0.01), batch_size=8, micro_batch=2, max_norm=1.0)
FINETUNING_STEPS = 3
TOLERANCE = 1e-9
"""Ranks add in another order than one process, in float64: 2e-16 of each sum, some hundred terms a sum, some ten steps.

The loss takes logits in float32, alike in both unless one lies within 1e-15 of a rounding border. Leaving out a
micro-batch, or weighing it twice, changes gradients by tenths.
"""


def doubled(name: str, ranks: Ranks) -> Problem:
    """A problem in float64, so that what differs by more than rounding stands out."""
    share = 0.0 if name == "float" else 0.8
    space = JOINT if name == "hawq" else SPACE  # so that it probes weights and inputs
    problem = make_problem(space=space, recipe=RECIPE, share=share, steps=60)
    train = problem.train
    assert isinstance(train, MemorySplit)
    doubles = replace(train, images=train.images.double())
    problem.model.double()
    return replace(problem, train=doubles, ranks=ranks)


def outcome_of(name: str, ranks: Ranks) -> dict[str, Any]:
    """What a search and some fine-tuning leave behind: numbers of the first rank, by what they are."""
    problem = doubled(name, ranks)
    method = make_method(name, problem, SEARCHES[name])
    logits = getattr(method, "alpha", None) or getattr(method, "theta", None)
    for parameter in logits.parameters() if logits else []:
        parameter.data = parameter.data.double()
    loop = search(problem, method)
    run_search(loop)
    searched = method.result()
    policy = None if searched.policy is None else with_pins(problem.ledger, searched.policy)
    if name == "float":
        policy = None
    training = WeightTraining(problem, policy, total=FINETUNING_STEPS)
    for _ in range(FINETUNING_STEPS):
        problem.model.train()
        stream = problem.batches(WeightTraining.PHASE, "finetune", training.taken, ranks=ranks)
        ranks.averages(problem.run(training, stream.next(), WeightTraining.PHASE))
    return {
        "policy": json.dumps(None if searched.policy is None else searched.policy.to_dict()),
        "account": json.dumps(problem.account.to_dict()),
        "curve": [value for row in loop.curve for key, value in row.items() if isinstance(value, float)],
        "report": numbers_in(searched.report),
        "weights": {name: parameter.detach() for name, parameter in problem.model.named_parameters()},
    }


def numbers_in(report: Any) -> list[float]:
    if isinstance(report, Mapping):
        return [number for key in sorted(report) for number in numbers_in(report[key])]
    if isinstance(report, Sequence) and not isinstance(report, str):
        return [number for part in report for number in numbers_in(part)]
    return [float(report)] if isinstance(report, int | float) else []


def take_part(rank: int, count: int, folder: Path) -> None:
    """One rank of every method's search, one method after the other."""
    torch.set_num_threads(1)
    with joined(rank, count, folder / "meeting", "cpu") as ranks:
        found = {name: outcome_of(name, ranks) for name in SEARCHES}
        ranks.agree("the test's weights", "ab" * 32)
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    """Every method's outcome by the number of ranks."""
    found = {}
    for count in COUNTS:
        folder = tmp_path_factory.mktemp(f"ranks{count}")
        ranks = [start(take_part, rank, count, folder) for rank in range(count)]
        for process in ranks:
            process.join(600)
            assert process.exitcode == 0
        found[count] = torch.load(folder / "found.pt", weights_only=True)
    return found


def close(a: Sequence[float], b: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    return len(a) == len(b) and np.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", COUNTS[1:])
@pytest.mark.parametrize("name", SEARCHES)
def test_any_number_of_ranks_computes_the_same(outcomes, name, count):
    alone, shared = outcomes[1][name], outcomes[count][name]
    assert shared["policy"] == alone["policy"]
    assert shared["account"] == alone["account"]
    assert close(shared["curve"], alone["curve"])
    # Its variances are averages of float32 values, 6e-8 of each, and the report has differences of their logarithms.
    assert close(shared["report"], alone["report"], 1e-6 if name == "metamix" else TOLERANCE)
    for parameter, value in alone["weights"].items():
        scale = float(value.abs().max()) + TOLERANCE
        assert float((shared["weights"][parameter] - value).abs().max()) <= TOLERANCE * scale, parameter


def test_the_searches_did_train(outcomes):
    fresh = dict(doubled("metamix", ALONE).model.named_parameters())
    for name in ("metamix", "differentiable", "uniform-lsq"):
        weights = outcomes[4][name]["weights"]
        moved = [float((weights[key] - value.detach()).abs().max()) for key, value in fresh.items()]
        assert max(moved) > 1e3 * TOLERANCE
    assert len(outcomes[4]["hawq"]["report"]) > 20


@pytest.mark.parametrize("count", COUNTS[1:])
def test_ranks_share_a_batch_between_them(count):
    train = load_dataset(DataSpec(dataset="digits", image_size=8, classes=10, augment="affine"), None).train
    recipe = {"batch_size": 32, "micro_batch": 8, "augment": True, "device": torch.device("cpu"), "position": 3}
    whole = Stream(train, 0, **recipe)
    shares = [Stream(train, 0, **recipe, ranks=Ranks(rank, count)) for rank in range(count)]
    for _ in range(14):  # over the end of an epoch
        expected = list(whole.next())
        found = [micro for share in shares for micro in share.next()]
        assert [micro.place for micro in found] == [0, 1, 2, 3]
        for here, there in zip(found, expected, strict=True):
            assert torch.equal(here.images, there.images)
            assert here.seed == there.seed


def test_dropout_draws_alike_whichever_rank_a_micro_batch_is_in():
    train = load_dataset(DataSpec(dataset="digits", image_size=8, classes=10), None).train
    recipe = {"batch_size": 32, "micro_batch": 8, "augment": False, "device": torch.device("cpu")}

    def masks(ranks: Ranks, steps: int = 3) -> dict[tuple[int, int, int], Tensor]:
        """By step, pass over the batch and micro-batch; the first pass of a step and the second differ."""
        torch.manual_seed(0)
        stream, found = Stream(train, 0, **recipe, ranks=ranks), {}
        for step in range(steps):
            batch = stream.next()
            for turn in range(2):
                for micro in batch:
                    found[step, turn, micro.place] = nn.functional.dropout(torch.ones(16), 0.5)
        return found

    whole = masks(ALONE)
    shared = {key: mask for rank in range(4) for key, mask in masks(Ranks(rank, 4)).items()}
    assert whole.keys() == shared.keys()
    for key, mask in whole.items():
        assert torch.equal(shared[key], mask), key
    assert len({tuple(mask.tolist()) for mask in whole.values()}) == len(whole)


def disagree(rank: int, folder: Path) -> None:
    with joined(rank, 2, folder / "meeting", "cpu") as ranks:
        try:
            ranks.agree("their policy", ("ab" if rank else "cd") * 32)
        except RanksDifferError as error:
            (folder / str(rank)).write_text(str(error))


def test_ranks_that_hold_different_policies_are_told(tmp_path):
    for process in [start(disagree, rank, tmp_path) for rank in range(2)]:
        process.join(120)
        assert process.exitcode == 0
    assert {(tmp_path / str(rank)).read_text() for rank in range(2)} == {
        "the trial's 2 processes differ in their policy"
    }


TWO = Runtime(ranks=2)
SHARED = {
    "recipe": {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 16, "micro_batch": 8},
    "pretraining": {
        "epochs": 1,
        "recipe": {"optimizer": {"name": "adam", "lr": 0.003}, "batch_size": 64, "micro_batch": 32},
    },
    "methods": ["metamix"],
}


def test_a_suite_s_trials_run_over_ranks_and_say_so(tmp_path):
    suite = tiny_suite({"resources.workers_per_trial": 2}, **SHARED)
    workspace = Workspace(tmp_path, "tiny")
    assert not run_jobs(LocalEngine(suite.resources), jobs_of(plan(suite)), workspace, TWO, Silent())
    (trial,) = plan(suite).trials
    record = workspace.records.get(trial.id)
    assert record is not None
    assert record.status == "ok"
    assert record.observed["ranks"] == 2
    assert record.result["account"]["phases"][-1]["images"] % 16 == 0
    assert trial.id == plan(tiny_suite(**SHARED)).trials[0].id  # ranks are no part of what is compared


@pytest.fixture
def quick_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks fork from a process that has torch, which saves each of them its import; the test above spawns them."""
    context = server()
    monkeypatch.setattr(several_processes.multiprocessing, "get_context", lambda _method: context)


def test_ranks_must_divide_the_micro_batches():
    with pytest.raises(SuiteError, match=r"workers_per_trial 4 does not divide the 2 micro-batches.*lower micro_batch"):
        tiny_suite({"resources.workers_per_trial": 4}, **SHARED)


def test_a_row_s_own_micro_batch_is_looked_at_too():
    row = {"name": "uniform-lsq", "settings": {"recipe.micro_batch": 16}}
    with pytest.raises(SuiteError, match=r"workers_per_trial 2 does not divide the 1 micro-batches"):
        tiny_suite({"resources.workers_per_trial": 2}, **{**SHARED, "methods": [row]})


def test_what_ranks_cannot_read_is_what_the_job_is_lost_for(tmp_path, quick_ranks):
    # Ranks are processes of their own, so the harm is done on disk: a folder is in the float start's place.
    suite = tiny_suite({"resources.workers_per_trial": 2}, **SHARED)
    workspace = Workspace(tmp_path, "tiny")
    first, job = jobs_of(plan(suite))
    workspace.start(first.spec.key).mkdir(parents=True)
    *_, outcome = together(job, workspace, TWO)
    assert isinstance(outcome, Outcome)
    assert outcome.status == "lost"
    assert "Is a directory" in outcome.message
    assert not list(Records(workspace.records.folder))


def test_a_killed_rank_is_started_again_and_the_trial_ends_as_if_nothing_had_been(tmp_path, quick_ranks):
    suite = tiny_suite({"resources.workers_per_trial": 2}, **SHARED)
    results, saved = [], Runtime(ranks=2, checkpoint_seconds=0)
    for harmed in (False, True):
        workspace = Workspace(tmp_path / str(harmed), "tiny")
        first, job = jobs_of(plan(suite))
        list(together(first, workspace, saved))
        for step, _ in enumerate(together(job, workspace, saved)):
            if harmed and step == 4:
                kill_a_rank()
        results.append(comparable(workspace.records.folder))
        (record,) = workspace.records
        assert record.observed["restarts"] == int(harmed)
    assert results[0] == results[1]


def work_as_rank(rank: int, job: Job, workspace: Workspace, folder: Path) -> None:
    """What a rank of an engine does; what it says in the end, after how many steps, goes into a file."""
    with joined(rank, 2, folder / "meeting", "cpu") as ranks:
        *steps, outcome = work(job, workspace, TWO, ranks)
    assert isinstance(outcome, Outcome)
    (folder / str(rank)).write_text(f"{len(steps)} {outcome.status} {outcome.message}")


def said_by_ranks(job: Job, workspace: Workspace, folder: Path) -> list[str]:
    folder.mkdir()
    for process in [start(work_as_rank, rank, job, workspace, folder) for rank in range(2)]:
        process.join(120)
        assert process.exitcode == 0
    return [(folder / str(rank)).read_text().strip() for rank in range(2)]


def test_ranks_that_begin_differently_are_told_before_their_first_step(tmp_path):
    suite = tiny_suite({"resources.workers_per_trial": 2}, **{**SHARED, "methods": ["uniform-lsq"]})
    places = [Workspace(tmp_path / name, "tiny") for name in ("one", "other")]
    first, job = jobs_of(plan(suite))
    list(execute(first, places[0], Runtime()))
    state = load_network(places[0].start(first.spec.key))
    state["conv1.weight"][0, 0, 0, 0] += 1e-3
    save_network(places[1].start(first.spec.key), state)
    for process in [start(work_as_rank, rank, job, place, tmp_path) for rank, place in enumerate(places)]:
        process.join(120)
        assert process.exitcode == 0
    said = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert said == ["0 lost the trial's 2 processes differ in what they begin with"] * 2


STEEP = {"name": "uniform-lsq", "settings": {"recipe.optimizer.lr": 1e30}}
"""A method that diverges."""


@pytest.mark.parametrize(("method", "status"), [(STEEP, "failed"), ("hawq", "refused")])
def test_where_a_method_fails_all_ranks_say_that_the_trial_is_done(tmp_path, method, status):
    few = {"epochs": 0.05, "search_share": 0.1} if status == "refused" else {"epochs": 0.1, "search_share": 0.9}
    suite = tiny_suite({"resources.workers_per_trial": 2}, **{**SHARED, "methods": [method], "compute": few})
    workspace = Workspace(tmp_path / "out", "tiny")
    first, job = jobs_of(plan(suite))
    list(execute(first, workspace, Runtime()))
    said = said_by_ranks(job, workspace, tmp_path / "first")
    assert [text.split()[1:] for text in said] == [["done"], ["done"]]
    (record,) = workspace.records
    assert record.status == status
    # Started again, as engines do where a process has died meanwhile, they find it done.
    assert said_by_ranks(job, workspace, tmp_path / "again") == ["0 done", "0 done"]


def kill_a_rank() -> None:
    """The younger of this process's children: rank 1."""
    max(multiprocessing.active_children(), key=lambda child: child.pid or 0).kill()


def test_a_cluster_s_nodes_are_sent_all_code_and_no_data():
    from pathspec import PathSpec

    from benchmarks.engines.ray.cluster import STAYS_HERE

    stays = PathSpec.from_lines("gitignore", STAYS_HERE)
    sent = [*ROOT.glob("methods/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("benchmarks/**/*.yaml")]
    assert len(sent) > 100
    assert not [path for path in sent if stays.match_file(path.relative_to(ROOT).as_posix())]
    assert all(stays.match_file(name) for name in ("runs/a/b.json", "data/x", ".venv/bin/python", "tests/a.py"))
