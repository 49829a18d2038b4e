"""Problems for tests of methods: the real harness over networks that run in microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.planning import candidates_of
from benchmarks.suites.spec import OptimizerSpec, Recipe, Space
from benchmarks.trials.compute import Account, ForwardMeter
from benchmarks.trials.harness import Harness
from benchmarks.trials.problem import Problem
from benchmarks.trials.training import Loop, WeightTraining
from methods import load_method
from methods.contract import Method, Searched
from methods.quantization.convert import QuantizerOptions, convert, ledger_of, replace_activations
from methods.quantization.cost import Ledger, bops, uniform_bits, with_pins
from methods.quantization.modules import initialise_activation_steps, initialise_weight_steps, quantization_off
from methods.quantization.policy import LayerBits
from tests.strategies import Block, TinyNetwork, tiny_network

# A stem, a gated depthwise block behind an h-swish, and a residual block whose two convolutions share their input:
# every kind of grid, a tie, squeeze-and-excitation and groups in ten layers.
BLOCKS = (
    Block("hardswish", depthwise=False, gate=False, residual=False, stride=1),
    Block("relu6", depthwise=True, gate=True, residual=False, stride=1),
    Block("linear", depthwise=False, gate=False, residual=True, stride=2),
    Block("relu", depthwise=False, gate=False, residual=False, stride=1),
)
SPACE = Space(weights=(4,), activations=(3, 4, 8))
JOINT = Space(weights=(2, 4), activations=(3, 4, 8))
RECIPE = Recipe(optimizer=OptimizerSpec(lr=0.01), batch_size=8, micro_batch=4)
QUANTIZER = QuantizerOptions()


@dataclass(frozen=True)
class MemorySplit:
    """Images in memory; an augmented image is shifted by its first draw."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        shift = 0.0 if draws is None else torch.from_numpy(draws[:, :1, None, None] - 0.5).float()
        return self.images[chosen] + shift, self.labels[chosen]


def split(count: int, seed: int) -> MemorySplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *TinyNetwork.image_shape, generator=generator)
    return MemorySplit(images, torch.randint(0, 3, (count,), generator=generator))


def make_problem(
    *,
    space: Space = SPACE,
    ceiling: float = 0.3,
    seed: int = 0,
    steps: float = 40,
    share: float = 0.8,
    blocks: Sequence[Block] = BLOCKS,
    recipe: Recipe = RECIPE,
    quantizer: QuantizerOptions = QUANTIZER,
) -> Problem:
    """ceiling: 0 is the cheapest policy's cost, 1 the dearest's. steps: fine-tuning steps that the account grants."""
    model = replace_activations(tiny_network(list(blocks)))
    ledger = ledger_of(model, TinyNetwork.image_shape)
    candidates = candidates_of(space, ledger)
    convert(model, ledger, candidates, quantizer)
    train = split(64, 1)
    harness = Harness(
        model=model,
        recipe=recipe,
        seed=seed,
        train=train,
        device=torch.device("cpu"),
    )
    initialise_weight_steps(model)
    initialise_activation_steps(model, [train.images[:8]])
    lowest = uniform_bits(ledger, space.weights[0], space.activations[0])
    training = WeightTraining(harness, with_pins(ledger, lowest), total=1)
    price = harness.price_of(training, WeightTraining.PHASE).macs * recipe.batch_size
    quantization_off(model)
    return Problem.of(
        harness,
        ledger=ledger,
        candidates=candidates,
        ceiling=between(ledger, space, ceiling),
        account=Account(round(steps * price), price, share),
    )


def between(ledger: Ledger, space: Space, share: float) -> int:
    cheapest = bops(ledger, uniform_bits(ledger, space.weights[0], space.activations[0]))
    dearest = bops(ledger, uniform_bits(ledger, space.weights[-1], space.activations[-1]))
    return cheapest + int(share * (dearest - cheapest))


def make_method(name: str, problem: Problem, options: Mapping[str, Any] | None = None) -> Method:
    return problem.build(load_method(name), options or {})


def search(problem: Problem, method: Method) -> Loop:
    """A loop over the method's search, within its share."""
    return Loop(problem, method, "search", problem.account, problem.account.search_macs)


def run_search(loop: Loop, steps: int | None = None) -> None:
    """All of the search, or this many steps more."""
    for taken, _ in enumerate(loop.run(), start=1):
        if taken == steps:
            return


def snapshot(problem: Problem) -> dict[str, Tensor]:
    """Every parameter and buffer, and every gradient that there is."""
    grads = {f"grad of {n}": p.grad for n, p in problem.model.named_parameters() if p.grad is not None}
    return deepcopy({**problem.model.state_dict(), **grads})


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit for bit alike, or on one side only."""
    lone = sorted(before.keys() ^ after.keys())
    return lone + [name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])]


def watched(problem: Problem) -> AbstractContextManager[None]:
    """Inside, running the network outside a step is an error, as in a trial."""
    problem.meter = ForwardMeter(tuple(layer.name for layer in problem.ledger))
    return problem.meter.watching(problem.model)


def finetuning(problem: Problem, searched: Searched) -> Problem:
    """The problem of fine-tuning that follows a search: the chosen widths only, the search's state."""
    widths = {n: [LayerBits(8, 8)] for n in problem.candidates} if searched.policy is None else searched.policy
    model = replace_activations(tiny_network(problem.model.plan))  # type: ignore[arg-type]
    convert(model, problem.ledger, {n: b if isinstance(b, list) else [b] for n, b in widths.items()}, QUANTIZER)
    initialise_weight_steps(model)
    initialise_activation_steps(model, [problem.train.load(np.arange(8), None)[0]])
    if searched.state is not None:
        own = model.state_dict()
        model.load_state_dict({**own, **{name: value for name, value in searched.state.items() if name in own}})
    return replace(problem, model=model, meter=None)
