"""Differentiable search: which parameters learn from which images and losses."""

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


@pytest.mark.parametrize(("alternate", "parts"), [(False, 1), (True, 2)])
def test_theta_s_rate_reaches_as_far_however_many_steps_there_are(alternate, parts):
    method = make_method("differentiable", make_problem(), {"alternate": alternate, "reach": 3.0})
    assert isinstance(method, Differentiable)
    run_search(search(method.problem, method), 1)
    assert method.total > 2 * parts
    assert {group["lr"] for group in method.theta_optimizer.param_groups} == {3.0 / (method.total // parts)}


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
    assert len(split) + len(rest) == len(problem.train)
    assert all(images)


def test_without_a_choice_of_weights_they_run_at_their_one_width():
    problem = make_problem()
    method = make_method("differentiable", problem)
    assert isinstance(method, Differentiable)
    method.theta.mix()
    for name in problem.candidates:
        quantizer = quant_layers(problem.model)[name].weight_quantizer
        assert (quantizer.bits, quantizer.probabilities) == (4, None)


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


def test_gumbel_samples_have_the_softmax_as_the_distribution_of_their_argmax():
    problem = make_problem()
    method = make_method("differentiable", problem)
    assert isinstance(method, Differentiable)
    quantizer, logits = next((q, p) for q, p in method.theta.logits.items() if len(p) == 3)
    with torch.no_grad():
        logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
    noise, draws = torch.Generator().manual_seed(0), 4000
    counts = torch.zeros(3)
    for _ in range(draws):
        method.theta.sample(noise, 1.0)
        assert quantizer.probabilities is not None
        counts[quantizer.probabilities.argmax()] += 1
    expected = logits.detach().softmax(0)
    # 5 standard deviations of a binomial share, sqrt(1/4/4000) at most: missed once in a million times, and seeded.
    assert torch.allclose(counts / draws, expected, rtol=0, atol=5 * (0.25 / draws) ** 0.5)


def test_a_low_temperature_samples_near_one_hot_and_a_high_one_near_even():
    problem = make_problem()
    method = make_method("differentiable", problem)
    assert isinstance(method, Differentiable)
    largest = {}
    for temperature in (0.02, 50.0):
        method.theta.sample(torch.Generator().manual_seed(0), temperature)
        mixed = [q.probabilities for q in method.theta.logits if q.probabilities is not None and len(q.widths) > 1]
        largest[temperature] = torch.stack([p.max() for p in mixed]).mean()
    assert largest[0.02] > 0.95
    assert largest[50.0] < 0.4


def test_gumbel_draws_anew_each_step_and_trains_theta_and_weights():
    problem = make_problem(space=JOINT)
    method = make_method("differentiable", problem, {"relaxation": "gumbel"})
    assert isinstance(method, Differentiable)
    before, theta, seen = snapshot(problem), thetas(method), []
    for _ in range(2):
        run_search(search(problem, method), 1)
        seen.append(torch.cat([q.probabilities.detach() for q in method.theta.logits if q.probabilities is not None]))
    assert not torch.equal(seen[0], seen[1])
    assert sorted(differing(theta, thetas(method))) == sorted(theta)
    assert any(name.endswith(".weight") for name in differing(before, snapshot(problem)))


def test_the_temperature_falls_from_its_start_to_its_inverse():
    problem = make_problem()
    method = make_method("differentiable", problem, {"relaxation": "gumbel", "temperature": 4.0})
    assert isinstance(method, Differentiable)
    seen = []
    method.theta.sample = lambda noise, temperature: seen.append(temperature)  # type: ignore[method-assign]
    method.total = 5
    for method.taken in range(5):
        method._mix(problem.batches(MIXTURE, "search").next()[0])
    assert seen == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25])
