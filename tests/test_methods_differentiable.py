"""Differentiable search: who learns from what."""

from __future__ import annotations

import pytest
import torch

from methods.differentiable import MIXTURE, THETA, WEIGHTS, Differentiable
from methods.quantization.cost import bops
from methods.quantization.modules import quant_layers
from tests.problems import JOINT, differing, make_method, make_problem, run_search, search, snapshot


def thetas(method: Differentiable) -> dict[str, torch.Tensor]:
    return {str(index): tensor.clone() for index, tensor in enumerate(method.theta.state_dict())}


def test_one_step_trains_weights_steps_and_theta_together():
    problem = make_problem(space=JOINT)
    method = make_method("differentiable", problem)
    assert isinstance(method, Differentiable)
    before, theta = snapshot(problem), thetas(method)
    run_search(search(problem, method), 1)
    changed = differing(before, snapshot(problem))
    for part in (".weight", "input_quantizer.steps.3", "weight_quantizer.steps.2"):
        assert any(name.endswith(part) for name in changed), part
    assert sorted(differing(theta, thetas(method))) == sorted(theta)


def test_alternating_steps_train_one_and_leave_the_other():
    problem = make_problem()
    method = make_method("differentiable", problem, {"alternate": True})
    assert isinstance(method, Differentiable)
    loop = search(problem, method)
    parameters = {name for name, _ in problem.model.named_parameters()}
    for phase, theta_moves in ((WEIGHTS, False), (THETA, True)):
        assert method.phase() == phase
        before, theta = snapshot(problem), thetas(method)
        run_search(loop, 1)
        assert bool(differing(theta, thetas(method))) == theta_moves
        assert bool(parameters & set(differing(before, snapshot(problem)))) != theta_moves


def test_weights_and_theta_learn_from_disjoint_images():
    problem = make_problem()
    images = [
        {micro.images[k].numpy().tobytes() for batch in range(4) for micro in [stream.next()[0]] for k in range(4)}
        for stream in (problem.batches(phase, "search") for phase in (WEIGHTS, THETA))
    ]
    split, rest = (problem.batches(phase, "search").split for phase in (THETA, WEIGHTS))
    assert not set(split.indices.tolist()) & set(rest.indices.tolist())  # type: ignore[attr-defined]
    assert len(split) + len(rest) == len(problem.data.train)
    assert all(images)


def test_without_a_choice_of_weights_they_run_at_their_one_width():
    problem = make_problem()
    method = make_method("differentiable", problem)
    assert isinstance(method, Differentiable)
    method.theta.mix()
    for name in problem.candidates:
        layer = quant_layers(problem.model)[name]
        mixed = layer.weight_quantizer(layer.weight)
        layer.weight_quantizer.select(4)
        assert torch.equal(mixed, layer.weight_quantizer(layer.weight))


@pytest.mark.parametrize("options", [{}, {"alternate": True}], ids=["together", "alternate"])
def test_it_spends_the_steps_it_planned(options):
    problem = make_problem()
    method = make_method("differentiable", problem, options)
    assert isinstance(method, Differentiable)
    loop = search(problem, method)
    run_search(loop)
    assert (loop.step, loop.stopped) == (method.total, False)
    assert problem.account.search_macs - problem.account.spent_macs < problem.price(MIXTURE) * 2


def test_a_strong_penalty_brings_the_expected_cost_to_the_ceiling():
    problem = make_problem(ceiling=0.2)
    method = make_method("differentiable", problem, {"penalty": 100.0, "reach": 6.0})
    run_search(search(problem, method))
    report = method.result().report
    # Theta starts at equal odds: E = the mean width of 5, a share (5 - 3) / (8 - 3) = 0.4 between least and most.
    assert report["expected_bops"] == pytest.approx(problem.ceiling, rel=0.05)
    assert bops(problem.ledger, method.result().policy) <= problem.ceiling
