"""MetaMix: what each of its steps may change, and what it learns from."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.suites.spec import Space
from benchmarks.trials.problem import Problem
from methods.contract import Batch, InapplicableError
from methods.metamix import META, SELECTION, STATISTICS, Branch, MetaMix, MetaMixJoint, MetaMixOptions
from methods.quantization.cost import bops
from methods.quantization.modules import quant_layers
from tests.problems import JOINT, differing, make_method, make_problem, run_search, search, snapshot


def started(**options: Any) -> tuple[Problem, MetaMix, Batch]:
    """A selection under way, and a batch for its next step."""
    problem = make_problem()
    method = make_method("metamix", problem, options)
    assert isinstance(method, MetaMix)
    run_search(search(problem, method), 2)
    problem.model.train()
    batch = problem.batches(SELECTION, "search", position=5).next()
    problem.micro_batches = len(batch)
    return problem, method, batch


def alphas(method: MetaMix) -> dict[str, torch.Tensor]:
    return {str(index): tensor.clone() for index, tensor in enumerate(method.alpha.state_dict())}


@pytest.mark.parametrize("mixture", ["soft", "hard"])
def test_the_search_step_changes_alpha_and_nothing_else(mixture):
    problem, method, batch = started(mixture=mixture)
    before, alpha = snapshot(problem), alphas(method)
    method._search_step(batch)
    assert differing(before, snapshot(problem)) == []  # weights, steps, running statistics and counters, gradients
    assert sorted(differing(alpha, alphas(method))) == sorted(alpha)
    assert any("num_batches_tracked" in name for name in before)


def test_without_the_fixed_meta_state_the_search_step_trains_everything():
    problem, method, batch = started(fixed_meta_state=False)
    before, alpha = snapshot(problem), alphas(method)
    method._search_step(batch)
    changed = differing(before, snapshot(problem))
    for part in ("weight", "input_quantizer.steps.3", "running_mean", "running_var", "num_batches_tracked"):
        assert any(name.endswith(part) for name in changed), part
    assert differing(alpha, alphas(method))


def test_weights_learn_from_the_mean_over_widths():
    problem, method, batch = started()
    learned_from = []
    with mock.patch.object(problem, "backward", lambda loss: learned_from.append(float(loss.detach()))):
        losses = method._meta_step(batch)
    assert len(learned_from) == len(losses) * len(batch) > len(batch)
    # A float32 quotient of each loss, some six of them.
    assert sum(learned_from) / len(batch) == pytest.approx(sum(losses.values()) / len(losses), rel=1e-6)


@pytest.mark.parametrize(("options", "penalty"), [({}, 4.0 * 3.31), ({"penalty": 2.0}, 2.0)])
def test_the_penalty_is_lambda_times_the_relative_excess_over_the_ceiling(options, penalty):
    _, method, _ = started(**options)
    with torch.no_grad():
        excess = abs(float(method.alpha.relative_bops(hard=True)) - 1)
        assert excess > 0
        assert float(method._cost_penalty()) == pytest.approx(penalty * excess, rel=1e-6)  # rounded to float32


def test_alpha_s_rate_falls_with_the_steps_that_search():
    _, method, _ = started()
    assert 0 < method.warmup < method.total
    assert {group["lr"] for group in method.alpha_optimizer.param_groups} == {0.5 / (method.total - method.warmup)}


def test_the_search_step_uses_batch_statistics():
    problem, method, batch = started()
    with torch.no_grad():
        for name, buffer in problem.model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(float("nan"))
    assert torch.isfinite(torch.tensor(method._search_step(batch)["mixture_loss"]))


def step_gradients(
    method: MetaMix, problem: Problem, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> dict[int, float]:
    """Total gradient of the searchable activation steps at each width after a bit-meta step's backward passes."""
    seen: dict[int, float] = {}

    def keep(_optimizer: object, max_norm: float | None = None) -> None:
        for name in problem.candidates:
            quantizer = quant_layers(problem.model)[name].input_quantizer
            for bits in quantizer.widths:
                gradient = quantizer.step_of(bits).grad
                seen[bits] = seen.get(bits, 0.0) + (0.0 if gradient is None else float(gradient.abs().sum()))

    monkeypatch.setattr(problem, "step", keep)
    for parameter in problem.model.parameters():
        parameter.grad = None
    method._meta_step(batch)
    return seen


def test_the_mean_of_the_branches_teaches_every_width(monkeypatch):
    problem, method, batch = started()
    assert all(total > 0 for total in step_gradients(method, problem, batch, monkeypatch).values())


def test_the_last_branch_alone_teaches_the_widest_steps_only(monkeypatch):
    problem, method, batch = started(meta_loss="last")
    found = step_gradients(method, problem, batch, monkeypatch)
    assert (found[3], found[4]) == (0.0, 0.0)
    assert found[8] > 0


def test_weights_stay_float_while_bits_are_chosen():
    problem, method, batch = started()
    method.step(batch, SELECTION)
    assert all(not layer.weight_quantizer.active for layer in quant_layers(problem.model).values())
    pinned = [row.name for row in problem.ledger if row.pinned]
    assert all(quant_layers(problem.model)[name].input_quantizer.bits == 8 for name in pinned)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_the_warm_up_is_its_share_of_the_steps_that_the_share_pays(share):
    problem = make_problem()
    method = make_method("metamix", problem, {"warmup_share": share})
    loop = search(problem, method)
    run_search(loop)
    steps = {name: entry.steps for name, entry in problem.account.phases.items()}
    assert steps.get("search/bit-meta", 0) == int(share * loop.step)
    assert steps["search/bit-selection"] == loop.step - int(share * loop.step)
    assert not loop.stopped  # it had planned for what it got
    # One more step of the cheaper kind would leave less than a selection step of slack.
    assert problem.account.search_macs - problem.account.spent_macs < 2 * problem.price(SELECTION)
    assert problem.price(META) < problem.price(SELECTION)


def test_the_penalty_pushes_towards_the_ceiling():
    found = {}
    for ceiling in (0.05, 0.95):
        problem = make_problem(ceiling=ceiling, steps=150)
        method = make_method("metamix", problem, {"lambda": 1000.0})
        run_search(search(problem, method))
        assert isinstance(method, MetaMix)
        found[ceiling] = bops(problem.ledger, method.alpha.argmax())
    assert found[0.05] < found[0.95]


def test_the_paper_scale_is_the_absolute_form():
    problem, method, _ = started(scale="paper")
    gbops = bops(problem.ledger, method.alpha.argmax()) / 1e9
    assert float(method._cost_penalty().detach()) == pytest.approx(4 * abs(gbops - problem.ceiling / 1e9), rel=1e-4)
    assert {group["lr"] for group in method.alpha_optimizer.param_groups} == {1e-4}


def test_fine_tuning_starts_from_the_selection_or_from_float():
    for start, kept in (("selection", True), ("float", False)):
        _, method, _ = started(start=start)
        state = method.result().state
        assert (state is not None) == kept


def test_where_weights_are_free_it_says_which_width_it_took():
    problem = make_problem(space=JOINT, ceiling=0.7)
    method = make_method("metamix", problem, {"weight_bits": 2})
    run_search(search(problem, method), 2)
    searched = method.result()
    assert searched.policy is not None
    assert {bits.weight for bits in searched.policy.values()} == {2}
    assert "2-bit weights" in searched.report["note"]
    with pytest.raises(InapplicableError, match="weight_bits 5"):
        make_method("metamix", make_problem(space=JOINT), {"weight_bits": 5})


def test_lambda_is_written_as_lambda():
    assert MetaMixOptions.model_validate({"lambda": 3.0}).penalty == 3.0
    assert MetaMixOptions.model_validate({"lambda": 3.0}).model_dump(mode="json")["lambda"] == 3.0
    dumped = MetaMixOptions().model_dump(mode="json")
    assert MetaMixOptions.model_validate(dumped) == MetaMixOptions()


def test_plain_training_teaches_the_highest_width_only(monkeypatch):
    problem, method, batch = started(branches="highest")
    found = step_gradients(method, problem, batch, monkeypatch)
    assert (found[3], found[4]) == (0.0, 0.0)
    assert found[8] > 0
    full, *_ = started()
    assert problem.price(META) < 0.4 * full.price(META)  # one branch of three


def test_alpha_s_course_is_kept():
    problem = make_problem(steps=200)
    method = make_method("metamix", problem)
    assert isinstance(method, MetaMix)
    run_search(search(problem, method))
    searched = method.total - method.warmup
    assert searched > 10
    steps = [point["search_step"] for point in method.result().report["course"]]
    assert len(steps) == 10
    assert steps == sorted(set(steps))
    assert steps[-1] == searched
    last = method.result().report["course"][-1]["probabilities"]
    shares = {name: layer.input_quantizer for name, layer in method.alpha.layers.items()}
    for name, quantizer in shares.items():
        now = method.alpha.probabilities(quantizer, hard=False)
        # Four decimals are kept.
        assert torch.allclose(torch.tensor(last[name]), now.detach(), rtol=0, atol=0.6e-4), name


@pytest.mark.parametrize("batches", [0, 2])
def test_variances_are_measured_before_and_after_and_change_nothing(batches):
    problem = make_problem()
    method = make_method("metamix", problem, {"statistics_batches": batches})
    assert isinstance(method, MetaMix)
    loop = search(problem, method)
    before = snapshot(problem)
    for _ in range(batches):
        assert method.phase() == STATISTICS
        run_search(loop, 1)
    assert differing(before, snapshot(problem)) == []
    assert method.phase() == META
    run_search(loop)
    steps = {name: entry.steps for name, entry in problem.account.phases.items()}
    assert steps.get("search/bn-statistics", 0) == 2 * batches
    assert not loop.stopped
    report = method.result().report
    if not batches:
        assert "variances" not in report
        return
    for when in ("before", "after"):
        assert len(report["variances"][when]) == sum("running_var" in name for name in before)
        assert all(set(widths) == {"3", "4"} for widths in report["variances"][when].values())
    # At the start weights are the same for every width; coarser widths lie farther from the finest.
    mean = {bits: sum(w[bits] for w in report["variances"]["before"].values()) for bits in ("3", "4")}
    assert mean["3"] > mean["4"] > 0


def test_measuring_takes_from_the_share_of_the_search():
    with pytest.raises(InapplicableError, match="leave its share no selection"):
        make_method("metamix", make_problem(), {"statistics_batches": 500}).phase()


def test_the_joint_search_trains_every_width_of_both_and_says_that_it_is_ours():
    problem = make_problem(space=JOINT, ceiling=0.5)
    method = make_method("metamix-joint", problem)
    assert isinstance(method, MetaMixJoint)
    assert method.branches == [Branch(2, 3), Branch(2, 4), Branch(4, 8)]
    before, alpha = snapshot(problem), alphas(method)
    run_search(search(problem, method))
    changed = differing(before, snapshot(problem))
    for part in ("weight_quantizer.steps.2", "weight_quantizer.steps.4", "input_quantizer.steps.3"):
        assert any(name.endswith(part) for name in changed), part
    assert sorted(differing(alpha, alphas(method))) == sorted(alpha)
    searched = method.result()
    assert searched.policy is not None
    assert bops(problem.ledger, searched.policy) <= problem.ceiling
    assert "not of the paper" in searched.report["note"]


def test_joint_branches_repeat_the_lowest_of_the_shorter_list():
    problem = make_problem(space=Space(weights=(2, 3, 4, 8), activations=(4, 8)), ceiling=0.5)
    method = make_method("metamix-joint", problem)
    assert isinstance(method, MetaMixJoint)
    assert method.branches == [Branch(2, 4), Branch(3, 4), Branch(4, 4), Branch(8, 8)]
    assert [str(branch) for branch in method.branches][:2] == ["w2a4", "w3a4"]
