"""Controls: what any method must be better than, or is measured against."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import field_validator

from methods.allocation import CeilingError, Group, groups_of
from methods.contract import FixedChoice, MethodOptions, Searched
from methods.quantization.cost import Ledger, bops
from methods.quantization.policy import LayerBits, Policy, PolicyError


class Float(FixedChoice):
    """The float network trained on with the same recipe and compute; every drop is against it, paired by seed."""

    quantizes = False

    def result(self) -> Searched:
        return Searched(policy=None)


class GivenOptions(MethodOptions):
    """policy: a policy file, or the record of another trial; its content, not its path, is part of the trial."""

    policy: dict[str, Any]

    @field_validator("policy", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return read_policy(Path(value)).to_dict() if isinstance(value, str) else value

    @field_validator("policy")
    @classmethod
    def _valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        return Policy.from_dict(value).to_dict()

    def check(self, ledger: Ledger) -> None:
        searchable = [layer.name for layer in ledger if not layer.pinned]
        policy = Policy.from_dict(self.policy)
        for name in policy:
            if name not in searchable:
                near = get_close_matches(name, searchable, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise PolicyError(f"unknown layer {name!r}; known: {', '.join(searchable)}{hint}")
        if missing := [name for name in searchable if name not in policy]:
            raise PolicyError(f"the policy gives no bits for {', '.join(missing)}")


def read_policy(path: Path) -> Policy:
    """The policy in a policy file or in a trial's record. Raises PolicyError."""
    import json

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"cannot read the policy {path}: {error}") from error
    if isinstance(data, dict) and "result" in data:
        data = data["result"].get("policy") if isinstance(data["result"], dict) else None
    try:
        return Policy.from_dict(data)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error


class Given(FixedChoice):
    """Trains a policy that is given: transplants, retraining variance, anyone's own bits."""

    Options: ClassVar[type[MethodOptions]] = GivenOptions

    def result(self) -> Searched:
        return Searched(Policy.from_dict(self.options.policy))


class Random(FixedChoice):
    """One random policy: all layers at their cheapest bits, then increments in random order, each taken if it fits.

    An increment raises one layer, or layers tied to one input grid, to the next dearer choice; rounds go on until
    none fits. Each seed and draw has a policy of its own.
    """

    chooses = True

    def result(self) -> Searched:
        problem = self.problem
        macs = {layer.name: layer.macs for layer in problem.ledger}
        groups = [_by_cost(group, macs) for group in groups_of(problem.ledger, problem.candidates)]
        generator = np.random.default_rng(problem.stream("search/random").initial_seed())
        level = [0] * len(groups)
        cost = bops(problem.ledger, _policy(groups, level))
        if cost > problem.ceiling:
            raise CeilingError(f"the cheapest policy costs {cost} BOPs, above the ceiling of {problem.ceiling} BOPs")
        increments = [(g, k) for g, group in enumerate(groups) for k in range(1, len(group.choices))]
        taken = True
        while taken:
            taken = False
            for index in generator.permutation(len(increments)):
                group, choice = increments[index]
                extra = _cost(groups[group], choice, macs) - _cost(groups[group], level[group], macs)
                if choice == level[group] + 1 and cost + extra <= problem.ceiling:
                    level[group], cost, taken = choice, cost + extra, True
        policy = _policy(groups, level)
        return Searched(Policy({name: policy[name] for name in problem.candidates}))


class MacGreedy(FixedChoice):
    """Bits by size alone: the layers with the most BOPs go down from their dearest bits until the ceiling is met.

    All layers start at their dearest bits; while over the ceiling, the layer with the most BOPs goes one choice down
    (ties: graph order); then layers go up again, the cheapest increment first, while it fits.

    Layers tied to one input grid move together. It knows nothing of the weights or the data.
    """

    chooses = True

    def result(self) -> Searched:
        problem = self.problem
        macs = {layer.name: layer.macs for layer in problem.ledger}
        groups = [_by_cost(group, macs) for group in groups_of(problem.ledger, problem.candidates)]
        level = [len(group.choices) - 1 for group in groups]

        def cost(group: int, choice: int) -> int:
            return _cost(groups[group], choice, macs)

        total = bops(problem.ledger, _policy(groups, level))
        while total > problem.ceiling:
            lowerable = [g for g in range(len(groups)) if level[g]]
            if not lowerable:
                raise CeilingError(
                    f"the cheapest policy costs {total} BOPs, above the ceiling of {problem.ceiling} BOPs"
                )
            largest = max(lowerable, key=lambda g: cost(g, level[g]))  # the first of several
            total += cost(largest, level[largest] - 1) - cost(largest, level[largest])
            level[largest] -= 1
        while raisable := [
            (extra, g)
            for g, group in enumerate(groups)
            if level[g] + 1 < len(group.choices)
            and total + (extra := cost(g, level[g] + 1) - cost(g, level[g])) <= problem.ceiling
        ]:
            extra, cheapest = min(raisable)
            level[cheapest], total = level[cheapest] + 1, total + extra
        policy = _policy(groups, level)
        return Searched(Policy({name: policy[name] for name in problem.candidates}))


def _cost(group: Group, choice: int, macs: dict[str, int]) -> int:
    return sum(macs[n] * b.weight * b.activation for n, b in zip(group.layers, group.choices[choice], strict=True))


def _by_cost(group: Group, macs: dict[str, int]) -> Group:
    order = sorted(range(len(group.choices)), key=lambda choice: _cost(group, choice, macs))
    return Group(group.layers, tuple(group.choices[choice] for choice in order))


def _policy(groups: list[Group], level: list[int]) -> dict[str, LayerBits]:
    return {
        name: bits
        for group, choice in zip(groups, level, strict=True)
        for name, bits in zip(group.layers, group.choices[choice], strict=True)
    }
