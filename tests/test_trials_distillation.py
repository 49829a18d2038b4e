"""A suite's teacher: its probabilities take the labels' place, once per batch, and its forward is paid for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.engines.jobs import jobs_of
from benchmarks.ledgers import ledger_for
from benchmarks.planning import plan
from benchmarks.records.record import Records
from benchmarks.trials.compute import measure_macs
from benchmarks.trials.problem import Problem
from benchmarks.trials.training import WeightTraining
from methods.contract import MicroBatch
from methods.quantization.convert import replace_activations
from methods.quantization.cost import uniform_bits, with_pins
from tests.harness import cli, comparable, finished, tiny_suite, write_suite
from tests.problems import BLOCKS, make_method, make_problem, run_search, search
from tests.strategies import tiny_network

SMALL_TEACHER = {"name": "mobilenet_v3_small", "width": 0.1, "form": "small"}


class Counted(nn.Module):
    """A teacher that knows how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.network = replace_activations(tiny_network(list(BLOCKS))).eval()
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        assert not torch.is_grad_enabled()
        answer: Tensor = self.network(images)
        return answer


def taught_problem() -> tuple[Problem, Counted]:
    problem, teacher = make_problem(), Counted()
    problem.teacher = teacher
    problem._prices.clear()
    return problem, teacher


def some_batch(problem: Problem) -> list[MicroBatch]:
    return list(problem.batches(WeightTraining.PHASE, "finetune").next())


def test_the_loss_is_the_cross_entropy_with_the_teachers_probabilities():
    problem, teacher = taught_problem()
    micro = some_batch(problem)[0]
    logits = torch.randn(len(micro.labels), 3, requires_grad=True)
    soft = teacher.network(micro.images).detach().softmax(1)
    loss = problem.loss(logits, micro)
    assert loss.item() == pytest.approx(-(soft * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    loss.backward()
    assert torch.allclose(logits.grad, (logits.softmax(1) - soft).detach() / len(soft), atol=1e-6)
    # Labels have no say.
    other = MicroBatch(micro.images, (micro.labels + 1) % 3)
    assert problem.loss(logits, other).item() == loss.item()


def test_a_teacher_is_asked_once_per_batch_and_anew_for_the_next():
    problem, teacher = taught_problem()
    training = WeightTraining(problem, with_pins(problem.ledger, uniform_bits(problem.ledger, 4, 4)), total=2)

    class Thrice(WeightTraining):
        def step(self, batch, phase):
            for _ in range(3):
                for micro in batch:
                    problem.loss(problem.model(micro.images), micro)
            return {}

    batch = some_batch(problem)
    problem.run(Thrice(problem, None, total=1), batch, WeightTraining.PHASE)
    assert teacher.asked == len(batch) == 2
    problem.run(training, batch, WeightTraining.PHASE)
    assert teacher.asked == 4


def test_a_teachers_forward_is_part_of_a_steps_price():
    plain, (taught, teacher) = make_problem(), taught_problem()
    policy = with_pins(plain.ledger, uniform_bits(plain.ledger, 4, 4))
    prices = []
    for problem in (plain, taught):
        problem._prices.clear()
        prices.append(problem.price_of(WeightTraining(problem, policy, total=1), WeightTraining.PHASE))
    images = some_batch(taught)[0].images
    with torch.no_grad():
        forward = measure_macs(lambda: teacher.network(images)) // len(images)
    assert prices[1].macs - prices[0].macs == forward
    assert [price.teacher for price in prices] == [0, forward]


def test_the_account_tells_student_and_teacher_apart():
    problem, _ = taught_problem()
    run_search(search(problem, make_method("metamix", problem)), 3)
    for phase in problem.account.to_dict()["phases"]:
        share = phase["teacher_macs"] / phase["macs"]
        # The teacher is as large as the student: one forward beside a step's forward and backward, or several of them.
        assert 0.05 < share < 0.4, phase
    alone = make_problem()
    run_search(search(alone, make_method("metamix", alone)), 3)
    assert all("teacher_macs" not in phase for phase in alone.account.to_dict()["phases"])


@pytest.mark.parametrize("name", ["metamix", "differentiable"])
def test_searches_are_taught_too(name):
    problem, teacher = taught_problem()
    method = make_method(name, problem)
    loop = search(problem, method)
    run_search(loop, 2)
    assert teacher.asked >= 2


def test_a_teacher_is_one_more_float_start_and_part_of_a_trials_identity():
    without, with_one = plan(tiny_suite()), plan(tiny_suite(teacher=SMALL_TEACHER, seeds=[0, 1]))
    assert [start.model.name for start in without.starts] == ["resnet18"]
    # One for each seed of the student, one teacher for all.
    assert sorted(start.model.name for start in with_one.starts) == ["mobilenet_v3_small", "resnet18", "resnet18"]
    assert {job.key for job in jobs_of(with_one)} >= {f"start-{start.key}" for start in with_one.starts}
    assert {trial.id for trial in without.trials}.isdisjoint(trial.id for trial in with_one.trials)
    assert all("teacher" not in trial.spec.model_dump() for trial in without.trials)
    assert all(trial.spec.teacher in with_one.starts for trial in with_one.trials)


def test_a_teacher_with_published_weights_is_not_trained():
    suite = tiny_suite(teacher={"name": "resnet18", "weights": "IMAGENET1K_V1"})
    (teacher,) = {trial.spec.teacher for trial in plan(suite).trials}
    assert teacher.pretraining is None
    assert teacher.model.weights == "IMAGENET1K_V1"
    scratch = plan(tiny_suite({"weights": "none"}, teacher={"name": "resnet18", "weights": "IMAGENET1K_V1"}))
    assert all(trial.spec.teacher.model.weights is None and trial.spec.teacher.pretraining for trial in scratch.trials)


def test_a_distilled_suite_runs_to_its_report(tmp_path: Path):
    suite = write_suite(tmp_path, teacher=SMALL_TEACHER, methods=["float", "uniform-lsq", "metamix"])
    ran = cli("--suite", suite, "--engine", "local", "--out", tmp_path / "out")
    assert ran.code == 0, ran
    records = list(Records(tmp_path / "out" / "tiny" / "records"))
    assert len(records) == 3
    assert len({record.observed["teacher_digest"] for record in records}) == 1
    by_method = {record.spec["method"]["name"]: record.result["account"] for record in records}
    (phase,) = by_method["uniform-lsq"]["phases"]
    assert phase["macs"] == by_method["uniform-lsq"]["granted_macs"]  # E epochs at the taught price
    plain = comparable(finished().out / "tiny" / "records")["uniform-lsq 0"][1]["account"]["phases"][0]
    (teacher,) = {trial.spec.teacher for trial in plan(tiny_suite(teacher=SMALL_TEACHER)).trials}
    forward = sum(layer.macs for layer in ledger_for(teacher.model, teacher.data))
    assert phase["macs_per_image"] == plain["macs_per_image"] + forward
