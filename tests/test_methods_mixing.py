"""Logits over widths: expected BOPs, the one-hot with a soft gradient, and the exact projection."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from benchmarks.trials.problem import Problem
from methods.allocation import groups_of
from methods.mixing import WidthLogits
from methods.quantization.cost import bops
from methods.quantization.policy import LayerBits, Policy
from tests.problems import JOINT, SPACE, make_problem
from tests.strategies import Block

SHORT = (
    Block("hardswish", depthwise=False, gate=False, residual=False, stride=1),
    Block("linear", depthwise=False, gate=False, residual=True, stride=2),
    Block("relu", depthwise=True, gate=False, residual=False, stride=1),
)
"""Three searchable layers of which two share an input: 3 x 3 policies of activations."""


def logits(problem: Problem, *, weights: bool = False, seed: int = 0) -> WidthLogits:
    generator = torch.Generator().manual_seed(seed)
    return WidthLogits(problem, weight_bits=None if weights else 4, spread=1.5, generator=generator)


def direct_bops(found: WidthLogits, problem: Problem) -> float:
    """The sum over layers of MACs x E[weight bits] x E[activation bits], MACs from the layers' own shapes."""
    total = 0.0
    for row in problem.ledger:
        if row.pinned:
            total += row.macs * 64
            continue
        layer = found.layers[row.name]
        weight = expected(found, layer.weight_quantizer) if layer.weight_quantizer in found.logits else 4.0
        total += row.macs * weight * expected(found, layer.input_quantizer)
    return total


def expected(found: WidthLogits, quantizer: object) -> float:
    exponentials = [math.exp(value) for value in found.logits[quantizer].tolist()]
    return sum(e * b for e, b in zip(exponentials, quantizer.widths, strict=True)) / sum(exponentials)


@pytest.mark.parametrize("weights", [False, True])
def test_expected_bops_are_the_direct_sum(weights):
    problem = make_problem(space=JOINT if weights else SPACE)
    found = logits(problem, weights=weights)
    # Softmax in float32: relative rounding of a few 2^-24 per probability.
    assert float(found.relative_bops().detach()) * problem.ceiling == pytest.approx(
        direct_bops(found, problem), rel=1e-6
    )


def test_a_depthwise_layer_counts_by_its_groups():
    problem = make_problem(blocks=SHORT)
    found = logits(problem)
    (row,) = [row for row in problem.ledger if row.name == "mixers.2"]
    layer = found.layers[row.name]
    assert row.type == "depthwise"
    assert row.macs == 4 * 9 * 3 * 3  # channels x kernel x positions, not x channels again
    before = float(found.relative_bops().detach())
    with torch.no_grad():
        found.logits[layer.input_quantizer].copy_(torch.tensor([0.0, 0.0, 100.0]))
    old = logits(problem)
    gained = row.macs * 4 * (8.0 - expected(old, old.layers[row.name].input_quantizer))
    assert (float(found.relative_bops().detach()) - before) * problem.ceiling == pytest.approx(gained, rel=1e-4)


def test_hard_bops_are_those_of_the_argmax_and_have_the_soft_gradient():
    problem = make_problem()
    found = logits(problem)
    hard = found.relative_bops(hard=True)
    # The one-hot is exact, and float64 sums of whole numbers are; only the division by the ceiling rounds.
    assert float(hard.detach()) * problem.ceiling == pytest.approx(bops(problem.ledger, found.argmax()), rel=1e-12)
    gradients = torch.autograd.grad(hard, found.parameters())
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_tied_layers_share_their_logits():
    problem = make_problem()
    found = logits(problem)
    ties = {row.tie for row in problem.ledger if row.tie}
    assert ties
    searchable = [row for row in problem.ledger if not row.pinned]
    assert len(found.parameters()) == len({row.tie or row.name for row in searchable}) < len(searchable)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weights", [False, True])
def test_the_projection_is_the_likeliest_policy_within_the_ceiling(seed, weights):
    problem = make_problem(blocks=SHORT, space=JOINT if weights else SPACE, ceiling=0.35)
    found = logits(problem, weights=weights, seed=seed)
    policy, report = found.project()
    if bops(problem.ledger, found.argmax()) <= problem.ceiling:
        assert (policy, report["layers_changed_by_projection"]) == (found.argmax(), 0)
        return
    best = min(
        surprise(found, other) for other in every_policy(problem) if bops(problem.ledger, other) <= problem.ceiling
    )
    assert bops(problem.ledger, policy) <= problem.ceiling
    assert surprise(found, policy) == pytest.approx(best, rel=1e-9)
    assert report["bops_after_projection"] == bops(problem.ledger, policy)
    assert report["bops_before_projection"] == bops(problem.ledger, found.argmax())
    assert report["layers_changed_by_projection"] == sum(policy[n] != found.argmax()[n] for n in policy)


def every_policy(problem: Problem) -> list[Policy]:
    groups = groups_of(problem.ledger, problem.candidates)
    return [
        Policy(
            {
                name: bits
                for g, choice in zip(groups, picks, strict=True)
                for name, bits in zip(g.layers, choice, strict=True)
            }
        )
        for picks in product(*(group.choices for group in groups))
    ]


def surprise(found: WidthLogits, policy: Policy) -> float:
    """-log of the policy's probability: each quantizer's choice once, shared or not."""
    chosen: dict[object, int] = {}
    for name, bits in policy.items():
        layer = found.layers[name]
        chosen[layer.input_quantizer] = bits.activation
        chosen[layer.weight_quantizer] = bits.weight
    total = 0.0
    for quantizer, values in found.logits.items():
        logs = values.detach().double().log_softmax(0)
        total -= float(logs[quantizer.widths.index(chosen[quantizer])])
    return total


def test_an_argmax_that_is_one_bop_too_dear_is_projected():
    problem = make_problem()
    found = logits(problem)
    dearest = bops(problem.ledger, found.argmax())
    problem.ceiling = dearest
    assert found.project()[0] == found.argmax()
    problem.ceiling = dearest - 1
    policy, report = found.project()
    assert bops(problem.ledger, policy) <= problem.ceiling
    assert report["layers_changed_by_projection"] >= 1


def test_margins_are_leads_over_the_next():
    problem = make_problem(blocks=SHORT)
    found = logits(problem)
    with torch.no_grad():
        for values in found.parameters():
            values.copy_(torch.tensor([0.5, 2.0, -1.0]))
    assert set(found.margins().values()) == {1.5}
    assert set(found.argmax().values()) == {LayerBits(4, 4)}


def test_mixing_sets_every_quantizer_to_its_probabilities():
    problem = make_problem()
    found = logits(problem)
    found.mix()
    for quantizer, values in found.logits.items():
        assert quantizer.probabilities is not None
        assert torch.equal(quantizer.probabilities, values.softmax(0))
    found.mix(hard=True)
    for quantizer in found.logits:
        assert quantizer.probabilities is not None
        assert quantizer.probabilities.detach().max() == 1.0
